"""Jobs on raw devices and companions through edge workers: a real loop device, real fio, a stand-in of dcgmi."""

from pathlib import Path

import pytest

from tests.fleet import disks
from tests.fleet.conftest import NODES
from tests.fleet.control import Fleet

pytestmark = pytest.mark.integration


def test_a_disk_is_written_to_once_another_person_agrees_and_what_watches_beside_fio_lands(
    fleet: Fleet, tmp_path: Path
) -> None:
    without, node = NODES[:2]
    with disks.given(fleet, node, tmp_path) as disk:
        no, yes = (fleet.trigger(suite="disks", nodes=[without, node]) for _ in range(2))
        disks.answer(fleet, no, "user", "Refuse")
        disks.question(fleet, yes)
        disks.decided(fleet, no)
        disks.require_untouched(disk)
        disks.answer(fleet, yes, "user", "Approve")
        assert [fleet.ended(run).state for run in (no, yes)] == ["success"] * 2
        disks.require_written(disk)

    not_listed = "the inventory has no such disk of this node: its serial number has to stand in `devices`"
    rows = {
        (without, "fio"): ("ok", "", False),
        (without, "raw_device"): ("config", f"benchmark raw_device, parameter 'device': {not_listed}", False),
        (node, "fio"): ("ok", "", False),
        (node, "dcgm_profile"): ("ok", "", True),
        (node, "raw_device"): ("ok", "", False),
    }
    assert disks.jobs(fleet, yes) == rows
    assert disks.jobs(fleet, no) == {**rows, (node, "raw_device"): ("config", "not approved: user refused", False)}
    assert {host for host, benchmark in disks.raws(fleet, yes) if benchmark == "raw_device"} == {without, node}
    disks.require_watched(fleet, yes, node)
    written = fleet.answer("SELECT DISTINCT node FROM measurements WHERE benchmark = 'raw_device'")
    assert written == ((node,),)
