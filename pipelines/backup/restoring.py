"""A backup read: compared with what it was, brought back into an empty store, or an object of it fetched."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipelines import bulk, keys
from pipelines.backup.kept import AT_ONCE, Backup, Kept, TemporaryFile, fill, pieces
from pipelines.backup.listing import LAST_RANK, rank
from pipelines.datasets.meter import Meter
from pipelines.errors import CorruptObject, KeyNotFound, StoreNotEmpty
from pipelines.storage import Store

_RESTORING = "restoring"

Say = Callable[[str], None]


def damaged(source: Store, of: Backup) -> list[str]:
    """A sentence for each object of the backup that is missing or has other bytes; everything is read."""
    objects = bulk.of(source)
    wanted = {each.sha256: each for each in of.everything}

    def check(each: Kept) -> str | None:
        try:
            for _ in pieces(objects, source, each):
                pass
        except (CorruptObject, KeyNotFound) as e:
            return f"{each.key}: {e}"
        return None

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [sentence for sentence in pool.map(check, wanted.values()) if sentence]


def restore(source: Store, of: Backup, store: Store, say: Say, then: Callable[[], None] = lambda: None) -> int:
    """Put everything that a backup has into an empty store, what commits last. Returns how many objects were written.

    Interrupted, the same call goes on; `then` belongs to it, and is called when all of it is there.

    Raises:
        BadKey: the backup has a key that is none of ours; nothing was written.
        StoreNotEmpty: there is something in it that no interrupted restoring of this backup has put there.
        CorruptObject, KeyNotFound: the backup is damaged; nothing of that object was written.
        StoreRefused, StoreUnreachable.
    """
    marker = keys.checked(f"{_RESTORING}/{of.backup_id}")
    there = [root for root in store.roots() if store.keys_under(root)]
    if there and not store.exists(marker):
        raise StoreNotEmpty(store.base_url, tuple(there))
    for each in of.objects:
        keys.checked(each.key)
    store.create(marker, b"")
    from_there, into, written = bulk.of(source), bulk.of(store), 0
    meter = Meter(say, of.size_bytes, len(of.objects), "objects")

    def put(each: Kept) -> bool:
        is_new = into.size(each.key) != each.size_bytes
        if is_new:
            with TemporaryFile(into, each.key) as path:
                fill(path, pieces(from_there, source, each), store.url(each.key))
                into.adopt(each.key, str(path))
        meter.add(each.size_bytes, spared=not is_new)
        return is_new

    for last_first in range(LAST_RANK, -1, -1):
        with ThreadPoolExecutor(AT_ONCE) as pool:
            written += sum(pool.map(put, (each for each in of.objects if rank(each.key) == last_first)))
    then()
    store.delete(marker)
    return written


def fetch(source: Store, kept: Kept, path: Path) -> None:
    """One object of a backup as a file. Raises: CorruptObject, KeyNotFound, StoreRefused."""
    fill(path, pieces(bulk.of(source), source, kept), str(path))
