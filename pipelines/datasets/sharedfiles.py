"""Files that processes and users share: under locks that end with their process, with permissions that are given.

Locks are flock(2)'s. A path may be given to another file while one waits for the lock of the first, which is why
everything here looks once more when it has the lock.
"""

import fcntl
import os
import uuid
from contextlib import suppress
from pathlib import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def locked(path: Path, how: int) -> int | None:
    """A file or folder, opened for reading under a lock.

    None when there is none, when it went before we had the lock, or when another has a lock and `how` says LOCK_NB.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, how)
        if is_same(path, descriptor):
            return descriptor
    except BlockingIOError:
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def is_same(path: Path, descriptor: int) -> bool:
    """Whether the path still is the open file."""
    try:
        return os.path.samestat(path.stat(follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def opened(path: Path, mode: int) -> int:
    """A file to lock and write, made with these permissions if it is not there: nobody sees it with others."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        with suppress(FileNotFoundError):
            return os.open(path, flags)
        with suppress(FileExistsError):  # another was quicker
            return _made(path, flags, mode)


def _made(path: Path, flags: int, mode: int) -> int:
    try:
        descriptor = os.open(path.parent, flags | os.O_TMPFILE, 0o600)
    except OSError:  # a filesystem that has no nameless files (NFS): for a moment other users cannot open this one
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
        os.fchmod(descriptor, mode)
        return descriptor
    folder = os.open(path.parent, _FOLDER)
    try:
        os.fchmod(descriptor, mode)
        # src_dir_fd makes it linkat(2), which takes /proc/self/fd/N of a nameless file
        os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=folder, follow_symlinks=True)
    except BaseException:
        os.close(descriptor)
        raise
    finally:
        os.close(folder)
    return descriptor


def written(path: Path, body: bytes, mode: int, is_flushed: bool = True) -> None:
    """A small file in one step. What a killed process was writing begins with a dot."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(body)
            file.flush()
            if is_flushed:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def removed(path: Path) -> bool:
    """Remove a file; False where somebody has a lock on it, or it is not ours to remove (chmod(2), the sticky bit)."""
    try:
        descriptor = locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except PermissionError:
        return False
    if descriptor is None:
        return False
    try:
        path.unlink()
    except PermissionError:
        return False
    finally:
        os.close(descriptor)
    return True


def is_in_use(path: Path) -> bool:
    """Whether somebody has a lock on it. Others that try for one at that moment are told yes: keep them from it."""
    descriptor = locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if descriptor is None:
        return path.exists()
    os.close(descriptor)
    return False


def sync(folder: Path) -> None:
    """The folder's names are on the disk when this returns."""
    descriptor = os.open(folder, _FOLDER)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
