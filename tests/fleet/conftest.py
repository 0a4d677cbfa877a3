"""One fleet of four nodes for the session."""

from collections.abc import Iterator

import pytest

from tests.fleet import ground
from tests.fleet.control import Fleet

NODES = ("node-a", "node-b", "node-c", "node-d")
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
_DISKS = """
description = "a job that needs an approval, and one beside which another watches"

[[benchmarks]]
benchmark = "raw_device"
params = { profile = "rand_write", runtime_s = 0.2, ramp_s = 0.0, size_bytes = 4194304 }

[[benchmarks]]
benchmark = "fio"
beside = ["dcgm_profile"]
params = { profile = "rand_read", runtime_s = 2.0, ramp_s = 0.0, size_bytes = 4194304 }
"""
SUITES = {
    **{name: _FIO.format(name=name, runtime_s=seconds) for name, seconds in {"tiny": 0.2, "seconds": 15.0}.items()},
    "disks": _DISKS,
    "pairs": _PAIRS,
    "both": _FIO.format(name="both", runtime_s=0.2) + _PAIRS.partition("\n\n")[2],
}


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with (
        ground.prepared(tmp_path_factory, NODES) as prepared,
        prepared.fleet(SUITES, rules="[pairs]\nwait_s = 60.0\n", workers=True) as made,
    ):
        yield made
