"""A version's files on a node's disk, for tools that want a path: put together from cached shards, gone after use."""

import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.datasets.cache import Cache
from pipelines.datasets.cachespace import written_bytes
from pipelines.datasets.download import download
from pipelines.datasets.manifest import Manifest
from pipelines.errors import CacheFull, CacheUnusable
from pipelines.settings import Settings
from pipelines.storage import Store

Say = Callable[[str], None]


@contextmanager
def materialise(settings: Settings, store: Store, manifest: Manifest, say: Say) -> Iterator[Path]:
    """A folder with the version's files, of formats tar and blob, for the time of the block.

    They come from the cache where it has the shards, verified, and count in its budget as long as they are there. They
    are copies: a tool that writes to one changes no shard.

    Raises:
        CacheFull, CacheUnusable: there is no room for them.
        Whatever `download.download` raises.
    """
    cache = Cache.of(settings)
    reclaim(cache, say)
    name = f"{manifest.version}.{uuid.uuid4().hex[:12]}"
    folder, lock = _made(cache, name, manifest)
    try:
        download(store, manifest, folder, "files", say, cache=cache)
        folder = _filled(cache, name, folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def reclaim(cache: Cache, say: Say) -> None:
    """Remove folders that killed processes left."""
    for folder in cache.reclaim():
        say(f"removed {folder}, which an earlier process left")


def _made(cache: Cache, name: str, manifest: Manifest) -> tuple[Path, int]:
    """A new folder, its space taken, and the descriptor that holds its lock."""
    try:
        # a file's last block, or its part's, is not full
        size_bytes = manifest.content_bytes + manifest.files * os.statvfs(cache.root).f_frsize
        folder = cache.files_folder(name, size_bytes, is_new=True)
        with cache.locked():
            _make_room(cache, size_bytes, manifest)
            folder.mkdir(mode=0o755)
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as e:
        raise CacheUnusable(str(cache.root), e.strerror or str(e)) from e
    return folder, lock


def _make_room(cache: Cache, size_bytes: int, manifest: Manifest) -> None:
    """Evict other versions' shards first, and only then the ones that are about to be read."""
    try:
        cache.make_room(size_bytes, frozenset(shard.sha256 for shard in manifest.body.shards))
    except CacheFull:
        cache.make_room(size_bytes)


def _filled(cache: Cache, name: str, folder: Path) -> Path:
    """The folder under the name that says what it really takes."""
    filled = cache.files_folder(name, written_bytes(folder), is_new=False)
    try:
        with cache.locked():
            return folder.rename(filled)
    except OSError as e:
        raise CacheUnusable(str(folder), e.strerror or str(e)) from e
