"""One fleet of four nodes for the session."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import servers
from tests.fleet import control, machines
from tests.fleet.control import Fleet

NODES = ("node-a", "node-b", "node-c", "node-d")
_NODE = """
[[nodes]]
name = "{name}"
queue = "{name}"
address = "{address}"
scratch = "/mnt/nvme"
scratch_cap_bytes = 1073741824
free_floor_bytes = 0
labels = {{ sku = "netns" }}
"""
_FIO = """
description = "{name}"

[[benchmarks]]
benchmark = "fio"
repeats = 2
params = {{ profile = "rand_read", runtime_s = {runtime_s}, ramp_s = 0.0, size_bytes = 4194304 }}
"""
_PAIRS = """
description = "pairs"

[[benchmarks]]
benchmark = "iperf3"
pairs = "quick"
params = { duration_s = 1, omit_s = 0 }
"""
SUITES = {
    **{name: _FIO.format(name=name, runtime_s=seconds) for name, seconds in {"tiny": 0.2, "seconds": 15.0}.items()},
    "pairs": _PAIRS,
    "both": _FIO.format(name="both", runtime_s=0.2) + _PAIRS.partition("\n\n")[2],
}


def _inventory(network: machines.Network) -> str:
    nodes = (_NODE.format(name=machine.name, address=machine.address) for machine in network.machines)
    return "".join(("[pairs]\nwait_s = 60.0\n", *nodes))


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    if not machines.have_namespaces():
        pytest.skip("network namespaces need root")
    if shutil.which("radosgw") is None:
        pytest.skip("radosgw is not installed")
    if not Path("/usr/lib/postgresql").is_dir():
        pytest.skip("PostgreSQL is not installed")
    folder: Path = tmp_path_factory.mktemp("fleet")
    with (
        machines.network(NODES, folder / "disks") as network,
        servers.ceph(tmp_path_factory.mktemp("ceph"), network.store_address) as s3,
        control.postgres() as database,
        control.fleet(folder, network, _inventory(network), SUITES, s3, database) as made,
    ):
        yield made
