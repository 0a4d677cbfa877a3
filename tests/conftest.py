"""What every test may ask for: settings in a temporary directory and the store they name."""

from pathlib import Path

import pytest

from pipelines import storage
from pipelines.settings import Settings


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
