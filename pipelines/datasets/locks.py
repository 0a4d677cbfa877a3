"""Files under flock(2), which ends with its process: opened, waited for, and removed only where nobody holds them.

Between opening a file and having its lock, another process may have removed or moved it. A lock counts when the path
still leads to the open file.
"""

import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def open_locked(path: Path, how: int) -> int | None:
    """The file open for reading under a lock (LOCK_SH, LOCK_EX, LOCK_NB).

    None when it is not there, went before the lock was had, or, with LOCK_NB, somebody else has it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, how)
        if is_same(path, descriptor):
            return descriptor
    os.close(descriptor)
    return None


def wait_for(path: Path, mode: int, waiting: Callable[[], None]) -> int | None:
    """The file open for writing, made with these permissions if need be, when nobody else has its lock any more.

    None when it was removed or moved meanwhile. `waiting` is called if one has to wait.
    """
    descriptor = open_shared(path, mode)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        waiting()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    if is_same(path, descriptor):
        return descriptor
    os.close(descriptor)
    return None


def open_shared(path: Path, mode: int) -> int:
    """A file open for writing, made with these permissions if it is not there."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        with suppress(FileExistsError):
            descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
            os.fchmod(descriptor, mode)  # whatever the umask is
            return descriptor
        with suppress(FileNotFoundError):  # it went in between
            return os.open(path, flags)


def unlink_unused(path: Path) -> bool:
    """Remove a file unless somebody has its lock; whether it went."""
    descriptor = open_locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if descriptor is None:
        return False
    try:
        path.unlink()
    finally:
        os.close(descriptor)
    return True


def is_same(path: Path, descriptor: int) -> bool:
    """Whether the path leads to the open file."""
    try:
        there, opened = path.stat(), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (opened.st_dev, opened.st_ino)
