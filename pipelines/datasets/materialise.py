"""A version's files on a node's disk, for tools that want a path: put together from cached shards, gone after use."""

import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.datasets.cache import Cache
from pipelines.datasets.download import download
from pipelines.datasets.manifest import Manifest
from pipelines.errors import CacheUnusable
from pipelines.settings import Settings
from pipelines.storage import Store

Say = Callable[[str], None]


@contextmanager
def materialise(settings: Settings, store: Store, manifest: Manifest, say: Say) -> Iterator[Path]:
    """A folder with the version's files, of formats tar and blob, for the time of the block.

    They come from the cache where it has the shards, verified, and count in its budget as long as they are there.

    Raises:
        CacheFull, CacheUnusable: there is no room for them.
        Whatever `download.download` raises.
    """
    cache = Cache.of(settings)
    reclaim(cache, say)
    with _folder(cache, manifest) as folder:
        download(store, manifest, folder, "files", say, cache=cache)
        yield folder


def reclaim(cache: Cache, say: Say) -> None:
    """Remove folders that killed processes left: nobody holds their lock."""
    for folder in cache.files():
        with _locked(folder) as is_ours:
            if is_ours:
                shutil.rmtree(folder, ignore_errors=True)
                say(f"removed {folder}, which an earlier process left")


@contextmanager
def _folder(cache: Cache, manifest: Manifest) -> Iterator[Path]:
    """A new folder under a lock, its space taken; it is removed at the end."""
    folder = cache.files_folder(f"{manifest.version}.{uuid.uuid4().hex[:12]}", manifest.content_bytes)
    try:
        with cache.locked():
            cache.make_room(manifest.content_bytes)
            folder.mkdir(mode=0o755)
            held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(held, fcntl.LOCK_EX)
    except OSError as e:
        raise CacheUnusable(str(folder), e.strerror or str(e)) from e
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Whether the folder's lock could be had, which is then held for the time of the block."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)
