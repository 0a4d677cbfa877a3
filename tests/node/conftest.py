"""Places for tests: filesystems of their own, small, full or read-only; a directory that every user may enter."""

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Mount = Callable[[str, str], Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mounts a tmpfs below `tmp_path`, given its name and options; unmounted at the end. Needs root."""
    if os.geteuid() != 0:
        pytest.skip("mounting a filesystem needs root")
    mounted: list[Path] = []

    def make(name: str, options: str) -> Path:
        point = tmp_path / name
        point.mkdir()
        subprocess.run(("mount", "-t", "tmpfs", "-o", options, "tmpfs", point), check=True)
        mounted.append(point)
        return point

    yield make
    for point in reversed(mounted):
        subprocess.run(("umount", "-l", point), check=True)


@pytest.fixture
def public_dir() -> Iterator[Path]:
    """A directory that every user may enter, which `tmp_path` is not."""
    with tempfile.TemporaryDirectory() as made:
        path = Path(made)
        path.chmod(0o755)
        yield path
