"""How much space things in a cache take, and how old they are. What goes meanwhile takes none."""

import os
import re
import time
from contextlib import suppress
from pathlib import Path

_SPACE = re.compile(r"\.([0-9]+)(\.new)?$")


def folder_name(name: str, size_bytes: int, is_new: bool) -> str:
    """A folder of files says in its name how much space it takes, or may take while it is being filled."""
    return f"{name}.{size_bytes}{'.new' if is_new else ''}"


def written_bytes(folder: Path) -> int:
    """The disk's space that a folder's files take."""
    found = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                found += os.lstat(f"{parent}/{name}").st_blocks * 512
    return found


def file_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def modified_at(path: Path) -> float:
    """When a file was changed, in seconds since 1970; 0 when it is gone."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def age_s(path: Path) -> float:
    """How long ago a file was changed; 0 when it is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def taken_bytes(folder: Path) -> int:
    """The space that a folder of files was given."""
    space = _SPACE.search(folder.name)
    return int(space[1]) if space else 0


def promised_bytes(folder: Path) -> int:
    """How much of that the disk still counts as free."""
    space = _SPACE.search(folder.name)
    return max(0, int(space[1]) - written_bytes(folder)) if space and space[2] else 0
