"""What earlier commits wrote, unpacked: a store, a node's cache, Airflow's database, and what they said of them."""

import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import storage
from pipelines.settings import Settings
from pipelines.storage import Store
from tests.upgrade.make_fixture import unpack

FIXTURES = sorted(Path(__file__).parent.glob("*.tar.xz"))


@dataclass(frozen=True)
class Old:
    """A deployment of an earlier commit, whose settings are today's."""

    settings: Settings
    said: dict[str, Any]  # see make_fixture.fill

    @property
    def store(self) -> Store:
        return storage.open_store(self.settings)

    @property
    def runs(self) -> list[str]:
        return sorted({row["run_id"] for row in self.said["answers"]["runs"]})


def unpacked(fixture: Path, settings: Settings) -> Old:
    """In the home of these settings."""
    with tarfile.open(fixture) as archive:
        unpack(archive, settings.home)
    return Old(settings, json.loads((settings.home / "said.json").read_text()))


def has_database(fixture: Path) -> bool:
    """Whether Airflow's database is in it, which an earlier commit's could not be."""
    with tarfile.open(fixture) as archive:
        return "airflow/airflow.db" in archive.getnames()
