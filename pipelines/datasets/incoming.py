"""Downloads into a node's cache: one process at a time fetches a shard, its space is taken before, a retry goes on.

A download has the shard's full size from the start. Its lock is held by whoever fetches it, and ends with that process.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from pipelines.datasets import sharedfiles
from pipelines.datasets.cache import Cache, Note
from pipelines.datasets.manifest import Shard
from pipelines.errors import CacheFull, CacheUnusable

Say = Callable[[str], None]


class Partial(NamedTuple):
    """A download under way."""

    descriptor: int  # open for reading and writing
    is_begun: bool  # an earlier attempt may have left something in it


@contextmanager
def receiving(cache: Cache, shard: Shard, wanted: frozenset[str], say: Say) -> Iterator[Partial | None]:
    """The right to fetch a shard, for the time of the block. What was written stays for another attempt.

    None where another process has brought it in meanwhile. What is `wanted` is not evicted for it.

    Raises:
        CacheFull: there is no room for it.
        CacheUnusable: the disk does not take it.
    """
    path = _path(cache, shard)
    with cache.usable():
        descriptor = _claimed(cache, shard, say)
        if descriptor is None:
            yield None
            return
        try:
            yield Partial(descriptor, _allocated(cache, path, descriptor, shard, wanted))
        finally:
            os.close(descriptor)


def publish(cache: Cache, dataset: str, shard: Shard, partial: Partial) -> None:
    """Make a download that is whole and verified a shard of the cache."""
    body = Note(dataset=dataset, shard=shard).model_dump_json().encode()
    with cache.locked():
        sharedfiles.written(cache.root / "notes" / shard.sha256, body, cache.file_mode, is_flushed=False)
        _path(cache, shard).replace(cache.path(shard.sha256))
        # not before: killed in between, we would leave a download that nobody can go on with
        with suppress(PermissionError):  # another user has begun it
            os.fchmod(partial.descriptor, 0o444 & (cache.file_mode | 0o400))
        sharedfiles.sync(cache.root / "shards")


def discard(cache: Cache, shard: Shard) -> None:
    """Remove a download that the caller has the right to."""
    with cache.usable():
        _path(cache, shard).unlink(missing_ok=True)


def _path(cache: Cache, shard: Shard) -> Path:
    return cache.root / "partial" / shard.sha256


def _claimed(cache: Cache, shard: Shard, say: Say) -> int | None:
    """The locked partial file; None when the shard is complete by the time we have the lock."""
    path = _path(cache, shard)
    while not cache.path(shard.sha256).exists():
        descriptor = sharedfiles.opened(path, cache.file_mode)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"shard {shard.sha256[:12]}: another process is fetching it; waiting")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if sharedfiles.is_same(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # published or removed meanwhile
    return None


def _allocated(cache: Cache, path: Path, descriptor: int, shard: Shard, wanted: frozenset[str]) -> bool:
    """Give a partial file the shard's size, on the disk; whether it had that already."""
    try:
        with cache.locked():
            lacking = shard.size_bytes - os.fstat(descriptor).st_size
            if lacking > 0:
                cache.make_room(lacking, wanted)
                os.posix_fallocate(descriptor, 0, shard.size_bytes)
            return lacking <= 0
    except (CacheFull, CacheUnusable):  # half of its space helps nobody
        path.unlink(missing_ok=True)
        raise
