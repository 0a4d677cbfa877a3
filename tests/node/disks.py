"""Disks for tests: loop devices, which are real block devices, on files that are gone afterwards."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MIB = 2**20
SIZE_BYTES = 48 * MIB  # 16 MiB at either end are left alone

Attach = Callable[..., Path]


@contextmanager
def attached(folder: Path) -> Iterator[Attach]:
    """Attaches a new file below `folder` as a disk, by its name, with options of losetup(8). Needs root."""
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        pytest.skip("attaching a loop device needs root, and a kernel that has them")
    made: list[Path] = []

    def attach(name: str, *options: str, size_bytes: int = SIZE_BYTES) -> Path:
        file = folder / name
        file.parent.mkdir(exist_ok=True, parents=True)
        file.touch()
        os.truncate(file, size_bytes)
        argv = ("losetup", "--find", "--show", *options, str(file))
        done = subprocess.run(argv, check=True, capture_output=True, text=True)
        made.append(Path(done.stdout.strip()))
        return made[-1]

    try:
        yield attach
    finally:
        for device in reversed(made):
            subprocess.run(("losetup", "--detach", device), check=True)
