"""The kernel's page cache: whether a file's bytes are in memory, and how they are put out of it."""

import ctypes
import mmap
import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from pipelines import mounts

_LIBC = ctypes.CDLL(None, use_errno=True)
_DROP_CACHES = Path("/proc/sys/vm/drop_caches")
_KEPT = 0.01  # of the pages: a kernel that was asked to forget a file may keep a few


def is_all(path: Path) -> bool:
    """Whether what this path's filesystem has in memory is in the page cache, and no more than a copy.

    What lies on tmpfs is nowhere else, and ZFS has a cache of its own, unseen from here; O_DIRECT passes neither.
    """
    mount = mounts.of(path)
    return mount is None or mount.filesystem not in mounts.WITH_MEMORY_OF_THEIR_OWN


def forget(paths: Sequence[Path]) -> bool:
    """Whether the bytes of these files of one filesystem are out of memory, where they are wished now.

    Raises: OSError: one of them is not there, or cannot be read.
    """
    if not is_all(paths[0]):
        return False
    drop(paths)
    return resident(paths) <= _KEPT


def drop(paths: Sequence[Path]) -> None:
    """Ask the kernel to forget the bytes of these files of one filesystem, after they are on the disk.

    syncfs(2), then posix_fadvise(2) with POSIX_FADV_DONTNEED. It is a wish: what others have mapped, or what lies on a
    filesystem in memory, stays. `resident` says what came of it.
    """
    flushed = False
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            flushed = flushed or not _LIBC.syncfs(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def drop_all() -> bool:
    """Have the kernel forget what it can of all files, inodes and names; whether this user may (proc_sys_vm(5))."""
    try:
        os.sync()
        _DROP_CACHES.write_text("3\n")
    except OSError:
        return False
    return True


def resident(paths: Sequence[Path]) -> float:
    """The share of these files' pages that are in memory (mincore(2)), 0 to 1; 0 of empty files.

    Of a file that is somebody else's and that this user may not write, the kernel says that all of it is.
    """
    total = there = 0
    for path in paths:
        with path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                continue
            with closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)) as mapped:
                pages = -(-len(mapped) // mmap.PAGESIZE)
                seen = (ctypes.c_ubyte * pages)()
                start = ctypes.c_char.from_buffer(mapped)
                address, length = ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(mapped))
                failed = _LIBC.mincore(address, length, seen)
                del start  # the map cannot be closed while something points into it
                if failed:
                    raise OSError(ctypes.get_errno(), "mincore", str(path))
                total += pages
                there += sum(page & 1 for page in seen)
    return there / total if total else 0.0
