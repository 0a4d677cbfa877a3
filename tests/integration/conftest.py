"""One whole Airflow for the session: the embedded one, in a directory of its own, on a free port."""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines import storage
from pipelines.embedded import instance
from pipelines.embedded.api import Airflow, Run, Task
from pipelines.embedded.home import Home
from pipelines.settings import Settings
from pipelines.tables.query import open_reader
from tests.following import wait_for

ROOT = Path(__file__).parents[2]
DISKS = """
description = "a job that needs an approval, and one that does not"

[[benchmarks]]
benchmark = "raw_device"
params = { profile = "rand_write", runtime_s = 0.2, ramp_s = 0.0, size_bytes = 4194304 }

[[benchmarks]]
benchmark = "fio"
params = { profile = "rand_read", runtime_s = 0.2, ramp_s = 0.0, size_bytes = 4194304 }
"""
FIO = """
description = "{name}"

[[benchmarks]]
benchmark = "fio"
repeats = 2
params = {{ profile = "rand_read", runtime_s = {runtime_s}, ramp_s = 0.0, size_bytes = 4194304 }}
"""


def embedded_settings(folder: Path, quick_s: float = 0.2) -> Settings:
    """Settings of an embedded deployment whose suites are as small as they can be; `quick` takes 2 x `quick_s`."""
    suites = folder / "suites"
    suites.mkdir()
    for name, runtime_s in {"tiny": 0.2, "nightly": 0.2, "quick": quick_s, "seconds": 2.0}.items():
        (suites / f"{name}.toml").write_text(FIO.format(name=name, runtime_s=runtime_s))
    (suites / "disks.toml").write_text(DISKS)
    shutil.copy(ROOT / "infra/fleet.toml", folder)
    return Settings(
        home=folder / "home",
        inventory=folder / "fleet.toml",
        suites=suites,
        lease_dir=folder,
        dags=ROOT / "dags",
        store_retry_s=1.0,
    )


@dataclass(frozen=True)
class Deployed:
    """A running Airflow and how a test talks to it."""

    settings: Settings
    home: Home
    airflow: Airflow
    url: str
    keeper: int  # process id

    def ended(self, run: Run) -> tuple[Run, dict[str, Task]]:
        """The run and its tasks by name, once it has ended."""
        run = self.wait_for(lambda: now if (now := self.airflow.run(run)).ended else None)
        return run, {task.name: task for task in self.airflow.tasks(run)}

    def task(self, run: Run, name: str, *states: str) -> Task:
        """A task of the run, once it is in one of the states."""

        def look() -> Task | None:
            return next((t for t in self.airflow.tasks(run) if t.name == name and t.state in states), None)

        return self.wait_for(look)

    def answer(self, sql: str) -> tuple[tuple[Any, ...], ...]:
        with open_reader(storage.open_store(self.settings)) as reader:
            return reader.query(sql).rows

    wait_for = staticmethod(wait_for)


def descendants(pid: int) -> set[int]:
    """A process, its children and theirs."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


@pytest.fixture(scope="session")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    settings = embedded_settings(tmp_path_factory.mktemp("embedded"))
    home = Home(settings)
    with instance.running(settings, print) as (running, _):
        url = f"http://127.0.0.1:{running.port}"
        yield Deployed(settings, home, instance.client(home, running), url, running.keeper.pid)
