"""What every test may ask for: settings in a temporary directory and the store they name."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

from pipelines import storage
from pipelines.settings import Settings
from tests import servers

hypothesis.settings.register_profile("shared", suppress_health_check=[hypothesis.HealthCheck.too_slow], deadline=None)
hypothesis.settings.load_profile("shared")  # a machine that does other work is no fault of an input

_FIRST = (
    "fleet",
    "fleet/test_ssh.py",
    "integration",
    "fleet/test_celery.py",
    "integration/test_demo.py",
)  # they take long
_ONE_FLEET = ("credentials", "disks", "faults", "fleet", "pairs", "tls")
_ONE_AIRFLOW = ("airflow", "airflow_ui", "approval", "datasets")
_TOGETHER = {
    **{f"fleet/test_{name}.py": "fleet" for name in _ONE_FLEET},
    **{f"integration/test_{name}.py": "integration" for name in _ONE_AIRFLOW},
}
"""Files whose tests share what takes long to start."""


def _group(nodeid: str) -> str:
    file = nodeid.partition("::")[0].removeprefix("tests/")
    return _TOGETHER.get(file, file)


def pytest_configure(config: pytest.Config) -> None:
    """Airflow reads its environment when it is first imported, by whichever test."""
    home = tempfile.mkdtemp(prefix="fleetmark-airflow-")
    config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))
    os.environ.update(
        AIRFLOW_HOME=home,
        AIRFLOW__CORE__LOAD_EXAMPLES="False",
        HF_HUB_DISABLE_TELEMETRY="1",
        AIRFLOW__CORE__DAGS_FOLDER=str(Path(__file__).parents[1] / "dags"),
        AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=f"sqlite:///{home}/airflow.db",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that no process is left alone with them at the end."""
    items.sort(key=lambda item: _FIRST.index(group) if (group := _group(item.nodeid)) in _FIRST else len(_FIRST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """With several processes: the tests of a file, and of files that share a server, run in the same one."""

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    return Scheduling(config, log)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Embedded settings below `tmp_path`, with the project's own suites and inventory."""
    root = Path(__file__).parents[1]
    return Settings(
        home=tmp_path,
        inventory=root / "infra/fleet.toml",
        suites=root / "infra/suites",
        lease_dir=tmp_path,
        store_retry_s=1.0,
        spool_wait_s=1.0,
    )


@pytest.fixture
def store(settings: Settings) -> storage.Store:
    """An object store in a temporary directory."""
    return storage.open_store(settings)


_S3 = [pytest.param(name, marks=pytest.mark.integration) for name in ("moto", "ceph")]


@pytest.fixture(params=["directory", *_S3])
def any_settings(request: pytest.FixtureRequest, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of each kind of store in turn: a directory, and a new bucket of each S3 server."""
    if request.param == "directory":
        return settings
    return on(request.getfixturevalue(request.param), settings, monkeypatch)


@pytest.fixture
def any_store(any_settings: Settings) -> storage.Store:
    return storage.open_store(any_settings)


def on(server: servers.S3, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings, but for a new bucket of this server; its credentials are put into the environment."""
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    bucket = f"s3://{server.new_bucket()}/results"
    return settings.model_copy(update={"store": bucket, "s3_endpoint": server.endpoint})


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.S3]:
    """An S3 server that is up in a second."""
    with servers.moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(scope="session")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.S3]:
    """A real S3 server that checks signatures."""
    with servers.ceph(tmp_path_factory.mktemp("ceph")) as server:
        yield server


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.S3]:
    """An S3 server on which create-only writes do not work."""
    with servers.rclone(tmp_path_factory.mktemp("rclone")) as server:
        yield server
