"""What a fleet stands on: machines, an object store, a database. Fleets differ in what starts their nodes' tasks."""

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import servers
from tests.fleet import control, machines
from tests.fleet.control import Fleet
from tests.fleet.machines import Network

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


@dataclass(frozen=True)
class Ground:
    """Where a fleet can be started."""

    folder: Path
    network: Network
    s3: servers.S3
    database: str

    def fleet(
        self, suites: dict[str, str], *, rules: str = "", workers: bool = False, **how: Any
    ) -> AbstractContextManager[Fleet]:
        """A control plane, and edge workers if asked for; `rules` are the inventory's beside its nodes."""
        nodes = "".join(_NODE.format(name=each.name, address=each.address) for each in self.network.machines)
        return control.fleet(
            self.folder, self.network, rules + nodes, suites, self.s3, self.database, workers=workers, **how
        )


@contextmanager
def prepared(factory: pytest.TempPathFactory, nodes: tuple[str, ...], *tools: str) -> Iterator[Ground]:
    """Machines of these names. Skips the test where they, or one of the tools, cannot be had."""
    for tool in ("radosgw", *tools):
        if shutil.which(tool) is None and not Path("/usr/sbin", tool).exists():
            pytest.skip(f"{tool} is not installed")
    if not machines.have_namespaces():
        pytest.skip("network namespaces need root")
    if not Path("/usr/lib/postgresql").is_dir():
        pytest.skip("PostgreSQL is not installed")
    folder = factory.mktemp("fleet")
    with (
        machines.network(nodes, folder / "disks") as network,
        servers.ceph(factory.mktemp("ceph"), network.store_address) as s3,
        control.postgres() as database,
    ):
        yield Ground(folder, network, s3, database)
