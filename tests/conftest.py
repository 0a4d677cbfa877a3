"""What every test may ask for: settings in a temporary directory and the store they name."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import storage
from pipelines.settings import Settings
from tests import servers


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
    )


@pytest.fixture
def store(settings: Settings) -> storage.Store:
    """An object store in a temporary directory."""
    return storage.open_store(settings)


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
