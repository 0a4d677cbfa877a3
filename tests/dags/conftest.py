"""An Airflow without servers: a fresh SQLite database for the session, and the project's own DAG files."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

TINY = """
description = "one case, as small as it gets"

[[benchmarks]]
benchmark = "fio"
repeats = 2
params = { profile = "rand_read", runtime_s = 0.2, ramp_s = 0.0, size_bytes = 4194304 }
"""


@pytest.fixture(scope="session", autouse=True)
def _airflow_database() -> None:
    from airflow.utils.db import initdb

    initdb()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """FLEETMARK_HOME of a deployment with the project's inventory and the suites `tiny` and `quick`."""
    suites = tmp_path / "suites"
    suites.mkdir()
    (suites / "tiny.toml").write_text(TINY)
    shutil.copy(ROOT / "infra/suites/quick.toml", suites)
    shutil.copy(ROOT / "infra/fleet.toml", tmp_path)
    for name, value in {
        "HOME": tmp_path,
        "SUITES": suites,
        "INVENTORY": tmp_path / "fleet.toml",
        "LEASE_DIR": tmp_path,
    }.items():
        monkeypatch.setenv(f"FLEETMARK_{name}", str(value))
    monkeypatch.setenv("FLEETMARK_STORE_RETRY_S", "1")
    return tmp_path


@pytest.fixture
def read_dags(home: Path) -> Callable[[], Any]:
    """Reads the project's DAG files as Airflow does."""

    def read() -> Any:
        from airflow.dag_processing.dagbag import DagBag

        return DagBag(str(ROOT / "dags"), bundle_name="dags-folder")

    return read
