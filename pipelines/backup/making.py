"""A backup made: what the store has is copied, what is there already is not."""

import hashlib
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

from pipelines import bulk, keys
from pipelines.backup.kept import (
    AT_ONCE,
    LISTS,
    PIECE_BYTES,
    Backup,
    Kept,
    TemporaryFile,
    fill,
    ids,
    list_key,
    load,
    object_key,
    source_of,
)
from pipelines.backup.listing import listed
from pipelines.bulk import Bulk
from pipelines.datasets import claims
from pipelines.datasets.meter import Meter
from pipelines.errors import KeyNotFound, StoreChanging, StoreRefused
from pipelines.storage import Store, Stored

_ATTEMPTS = 5  # to list and copy while somebody deletes
_WAIT_S = 60.0  # for a pruning to give way, which it does within seconds
_RENEWED_EVERY_S = 600.0

Say = Callable[[str], None]


def make(store: Store, to: Store, at: datetime, say: Say, dump: Path | None = None) -> Backup:
    """Copy what the store has, and `dump` beside it. Safe to repeat: interrupted, the next one copies what is missing.

    Raises:
        StoreChanging: objects went while they were copied, again and again.
        StillCollecting: somebody prunes the backups there, and does not give way; safe to try again.
        StoreRefused, StoreUnreachable.
    """
    if f"{to.base_url}/".startswith(f"{store.base_url}/"):
        raise StoreRefused(to.base_url, "it lies in the store that it is to be a backup of")
    flag = f"backup-{uuid.uuid4().hex[:8]}"
    try:
        return _make(store, to, at, say, dump, flag)
    finally:
        claims.published(to, LISTS, flag)


def _make(store: Store, to: Store, at: datetime, say: Say, dump: Path | None, flag: str) -> Backup:
    backup_id = keys.run_id(at, store.base_url)
    for _ in range(_ATTEMPTS):
        claims.publishing(to, LISTS, flag, _WAIT_S)
        database = _put_file(to, dump, at) if dump else None
        earlier = [each for each in ids(to) if source_of(each) == source_of(backup_id)]
        known = load(to, earlier[-1]).objects if earlier else ()
        found, left_out = listed(store)
        try:
            objects, copied = _copied(store, to, found, known, say, flag)
        except KeyNotFound as e:
            say(f"{e}: it went meanwhile; listing again")
            continue
        made = Backup(
            backup_id=backup_id,
            made_at=at,
            source=store.base_url,
            objects=tuple(objects),
            left_out=tuple(left_out),
            database=database,
            copied_objects=len(copied),
            copied_bytes=sum(copied),
        )
        if not claims.stands(to, LISTS, flag):
            say("a pruning took this backup for abandoned; looking again at what is there")
            continue
        to.replace(list_key(backup_id), made.model_dump_json().encode())
        return made
    raise StoreChanging(store.base_url, _ATTEMPTS)


def _copied(
    store: Store, to: Store, found: list[Stored], earlier: tuple[Kept, ...], say: Say, flag: str
) -> tuple[list[Kept], list[int]]:
    """What was found, with its hashes; and the sizes of what had to be copied. The flag is renewed meanwhile."""
    known = {(each.key, each.size_bytes, each.modified_at): each.sha256 for each in earlier}
    source, target = bulk.of(store), bulk.of(to)
    copied: list[int] = []
    meter = Meter(say, sum(each.size_bytes for each in found), len(found), "objects")

    def copy(each: Stored) -> Kept:
        sha256 = known.get((each.key, each.size_bytes, each.modified_at))
        is_new = sha256 is None or target.size(object_key(sha256)) != each.size_bytes
        if sha256 is None or is_new:
            sha256 = _copy(source, target, each, to)
            copied.append(each.size_bytes)
        meter.add(each.size_bytes, spared=not is_new)
        return Kept(key=each.key, size_bytes=each.size_bytes, sha256=sha256, modified_at=each.modified_at)

    objects, renewed_at = [], time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            for done in [pool.submit(copy, each) for each in found]:
                objects.append(done.result())
                if time.monotonic() - renewed_at > _RENEWED_EVERY_S:
                    claims.publishing(to, LISTS, flag, _WAIT_S)
                    renewed_at = time.monotonic()
        finally:
            pool.shutdown(cancel_futures=True)
    return objects, copied


def _copy(source: Bulk, target: Bulk, each: Stored, to: Store) -> str:
    digest = hashlib.sha256()

    def read() -> Iterator[memoryview]:
        for start in range(0, each.size_bytes, PIECE_BYTES):
            length = min(PIECE_BYTES, each.size_bytes - start)
            piece = source.range(each.key, start, length) or memoryview(b"")
            if len(piece) != length:
                raise KeyNotFound(each.key)  # another object is there than was listed
            digest.update(piece)
            yield piece

    with TemporaryFile(target, object_key("new")) as path:
        fill(path, read(), to.base_url)
        key = object_key(digest.hexdigest())
        if (there := target.size(key)) is None:
            target.adopt(key, str(path))
        elif there != each.size_bytes:
            target.replace(key, str(path))
    return digest.hexdigest()


def _put_file(to: Store, path: Path, at: datetime) -> Kept:
    """A file of this machine as an object of a backup."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    target = bulk.of(to)
    with TemporaryFile(target, object_key(sha256)) as own, path.open("rb") as file:
        fill(own, iter(lambda: memoryview(file.read(PIECE_BYTES)), memoryview(b"")), str(path))
        target.adopt(object_key(sha256), str(own))
    return Kept(key=path.name, size_bytes=path.stat().st_size, sha256=sha256, modified_at=at)
