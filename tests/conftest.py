"""What every test may ask for: settings in a temporary directory and the store they name."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import storage
from pipelines.settings import Settings
from tests import servers

_SHARED = ("fleet", "deployed")  # what takes long to start, once for all tests that use it
_LONG = ("test_ssh.py", "test_celery.py", "test_demo.py", "test_readme.py")


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several processes run the tests, those of one file, or that share a server, stay together; long ones first.

    Most of the time of a test with servers is waiting, so that more processes than processors are of use.
    """
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_together(item)))
    groups = (*_SHARED, *_LONG)
    items.sort(key=lambda item: groups.index(group) if (group := _together(item)) in groups else len(groups))


def _together(item: pytest.Item) -> str:
    shared = (name for name in _SHARED if name in getattr(item, "fixturenames", ()))
    return next(shared, item.path.name if item.path.name in _LONG else str(item.path))


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
