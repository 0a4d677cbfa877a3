"""Backup of a store to another one, and restoring it: by content, so that a second backup copies what is new.

    objects/<sha256>     the bytes of an object, once however many objects and backups have them
    backups/<id>.json    what a backup has; written last, it makes the backup

What commits something is listed before what it refers to, and restored after it: the logs of the tables, `runs` first
(a landing writes it last), then tags and manifests of datasets. So a run whose landing is under way is in the backup as
a whole, or `runs` has nothing of it.
"""

import hashlib
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from tempfile import gettempdir
from typing import Literal

from pydantic import AwareDatetime, NonNegativeInt, ValidationError

from pipelines import bulk, keys
from pipelines.bulk import Bulk
from pipelines.datasets.manifest import Sha256
from pipelines.datasets.meter import Meter
from pipelines.errors import BadKey, CorruptObject, KeyNotFound, StoreChanging, StoreNotEmpty, StoreRefused, Unknown
from pipelines.records import Record
from pipelines.storage import Store, Stored

_ATTEMPTS = 5  # to list and copy while somebody deletes
_AT_ONCE = 8
_PIECE_BYTES = 8 * 2**20
_FOLDER = "backups"
_RESTORING = "restoring"
_LOG = re.compile(r"^tables/([^/]+)/_delta_log/(\d{20})\.(checkpoint)?")
_RANKS = (
    r"^tables/runs/_delta_log/",
    r"^tables/[^/]+/_delta_log/",
    r"^datasets/[^/]+/tags/",
    r"^datasets/[^/]+/versions/",
)
_NOT_KEPT = re.compile(r"^(probe|restoring)/|^datasets/[^/]+/(publishing|publishers|collecting)/|/_last_checkpoint\Z")
"""What is of the moment: who is at work, and a hint that may be newer than the log as it was listed."""

Say = Callable[[str], None]


class Kept(Record):
    """An object as it was."""

    key: str
    size_bytes: NonNegativeInt
    sha256: Sha256
    modified_at: AwareDatetime


class Backup(Record):
    """What a store had, in the order in which it was listed; `database` is a dump of Airflow's, where one was made."""

    schema_version: Literal[1] = 1
    backup_id: str
    made_at: AwareDatetime
    source: str
    objects: tuple[Kept, ...]
    left_out: tuple[str, ...] = ()  # keys that are none of ours
    database: Kept | None = None
    copied_objects: NonNegativeInt = 0  # the others were in an earlier backup
    copied_bytes: NonNegativeInt = 0

    @property
    def size_bytes(self) -> int:
        return sum(each.size_bytes for each in self.objects)


def make(store: Store, to: Store, at: datetime, say: Say, dump: Path | None = None) -> Backup:
    """Copy what the store has, and `dump` beside it. Safe to repeat: interrupted, the next one copies what is missing.

    Raises:
        StoreChanging: objects went while they were copied, again and again.
        StoreRefused, StoreUnreachable.
    """
    if f"{to.base_url}/".startswith(f"{store.base_url}/"):
        raise StoreRefused(to.base_url, "it lies in the store that it is to be a backup of")
    database = _put_file(to, dump, at) if dump else None
    known = {(each.key, each.size_bytes, each.modified_at): each.sha256 for each in _newest(to)}
    for _ in range(_ATTEMPTS):
        found, left_out = _listed(store)
        try:
            objects, copied = _copied(store, to, found, known, say)
        except KeyNotFound as e:
            say(f"{e}: it went meanwhile; listing again")
            continue
        made = Backup(
            backup_id=keys.run_id(at, store.base_url),
            made_at=at,
            source=store.base_url,
            objects=tuple(objects),
            left_out=tuple(left_out),
            database=database,
            copied_objects=len(copied),
            copied_bytes=sum(copied),
        )
        to.replace(keys.checked(f"{_FOLDER}/{made.backup_id}.json"), made.model_dump_json().encode())
        return made
    raise StoreChanging(store.base_url, _ATTEMPTS)


def load(source: Store, backup_id: str | None = None) -> Backup:
    """A backup; the newest by default.

    Raises:
        Unknown: there is no such backup, or none at all.
        CorruptObject: its list is damaged.
    """
    known = _ids(source)
    wanted = backup_id or (known[-1] if known else "")
    if wanted not in known:
        raise Unknown(f"backup in {source.base_url}", wanted, tuple(known))
    key = keys.checked(f"{_FOLDER}/{wanted}.json")
    try:
        return Backup.model_validate_json(source.read(key))
    except ValidationError as e:
        raise CorruptObject(source.url(key), "it is not the list of a backup") from e


def damaged(source: Store, of: Backup) -> list[str]:
    """A sentence for each object of the backup that is missing or has other bytes; everything is read."""
    objects = bulk.of(source)
    wanted = {each.sha256: each for each in (*of.objects, *((of.database,) if of.database else ()))}

    def check(each: Kept) -> str | None:
        try:
            for _ in _pieces(objects, source, each):
                pass
        except (CorruptObject, KeyNotFound) as e:
            return f"{each.key}: {e}"
        return None

    with ThreadPoolExecutor(_AT_ONCE) as pool:
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
            with _TemporaryFile(into, each.key) as path:
                _fill(path, _pieces(from_there, source, each), store.url(each.key))
                into.adopt(each.key, str(path))
        meter.add(each.size_bytes, spared=not is_new)
        return is_new

    for rank in range(len(_RANKS), -1, -1):
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            written += sum(pool.map(put, (each for each in of.objects if _rank(each.key) == rank)))
    then()
    store.delete(marker)
    return written


def fetch(source: Store, kept: Kept, path: Path) -> None:
    """One object of a backup as a file. Raises: CorruptObject, KeyNotFound, StoreRefused."""
    _fill(path, _pieces(bulk.of(source), source, kept), str(path))


def _ids(source: Store) -> list[str]:
    return [key.rpartition("/")[2].removesuffix(".json") for key in source.keys_under(_FOLDER)]


def _newest(to: Store) -> tuple[Kept, ...]:
    return load(to).objects if _ids(to) else ()


def _object_key(sha256: str) -> str:
    return keys.checked(f"objects/{sha256}")


# --- what there is ------------------------------------------------------------------------------------------


def _rank(key: str) -> int:
    """What is listed first and restored last has the least."""
    return next((rank for rank, pattern in enumerate(_RANKS) if re.match(pattern, key)), len(_RANKS))


def _listed(store: Store) -> tuple[list[Stored], list[str]]:
    """Every object that is kept, by rank; and the keys of those that are none of ours."""
    tables, datasets = store.folders_under("tables"), store.folders_under("datasets")
    first = [f"tables/{name}/_delta_log" for name in sorted(tables, key=lambda name: name != "runs")]
    first += [f"datasets/{name}/{part}" for part in ("tags", "versions") for name in datasets]
    found: dict[str, Stored] = {}
    left_out: list[str] = []
    for prefix in (*first, *store.roots()):
        is_all = "/" not in prefix
        for each in store.objects_under(prefix):
            if is_all and _rank(each.key) < len(_RANKS):
                continue  # it came after what commits was listed
            if not _NOT_KEPT.search(each.key):
                found[each.key] = each
    for key in list(found):
        try:
            keys.checked(key)
        except BadKey:
            left_out.append(key)
            del found[key]
    whole = _last_versions(found)
    kept = [each for each in found.values() if not (log := _LOG.match(each.key)) or int(log[2]) <= whole[log[1]]]
    return sorted(kept, key=lambda each: (_rank(each.key), each.key)), sorted(left_out)


def _last_versions(found: Iterable[str]) -> Mapping[str, int]:
    """The version of each table up to which its log was listed without a gap: a listing takes time.

    A checkpoint stands for every version before it, which may be gone.
    """
    versions: dict[str, set[int]] = {}
    last: dict[str, int] = {}
    for log in filter(None, map(_LOG.match, found)):
        versions.setdefault(log[1], set()).add(int(log[2]))
        if log[3]:
            last[log[1]] = max(int(log[2]), last.get(log[1], 0))
    for name, there in versions.items():
        last.setdefault(name, min(there))
        while last[name] + 1 in there:
            last[name] += 1
    return last


# --- copying ------------------------------------------------------------------------------------------------


def _copied(
    store: Store, to: Store, found: list[Stored], known: Mapping[tuple[str, int, datetime], str], say: Say
) -> tuple[list[Kept], list[int]]:
    """What was found, with its hashes; and the sizes of what had to be copied."""
    source, target = bulk.of(store), bulk.of(to)
    copied: list[int] = []
    meter = Meter(say, sum(each.size_bytes for each in found), len(found), "objects")

    def copy(each: Stored) -> Kept:
        sha256 = known.get((each.key, each.size_bytes, each.modified_at))
        is_new = sha256 is None or target.size(_object_key(sha256)) != each.size_bytes
        if sha256 is None or is_new:
            sha256 = _copy(source, target, each, to)
            copied.append(each.size_bytes)
        meter.add(each.size_bytes, spared=not is_new)
        return Kept(key=each.key, size_bytes=each.size_bytes, sha256=sha256, modified_at=each.modified_at)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        try:
            return [done.result() for done in [pool.submit(copy, each) for each in found]], copied
        finally:
            pool.shutdown(cancel_futures=True)


def _copy(source: Bulk, target: Bulk, each: Stored, to: Store) -> str:
    digest = hashlib.sha256()

    def read() -> Iterator[memoryview]:
        for start in range(0, each.size_bytes, _PIECE_BYTES):
            length = min(_PIECE_BYTES, each.size_bytes - start)
            piece = source.range(each.key, start, length) or memoryview(b"")
            if len(piece) != length:
                raise KeyNotFound(each.key)  # another object is there than was listed
            digest.update(piece)
            yield piece

    with _TemporaryFile(target, _object_key("new")) as path:
        _fill(path, read(), to.base_url)
        key = _object_key(digest.hexdigest())
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
    with _TemporaryFile(target, _object_key(sha256)) as own, path.open("rb") as file:
        _fill(own, iter(lambda: memoryview(file.read(_PIECE_BYTES)), memoryview(b"")), str(path))
        target.adopt(_object_key(sha256), str(own))
    return Kept(key=path.name, size_bytes=path.stat().st_size, sha256=sha256, modified_at=at)


def _pieces(objects: Bulk, source: Store, kept: Kept) -> Iterator[memoryview]:
    """The bytes of an object of a backup. Raises: CorruptObject: at their end, where they are not those."""
    key, digest = _object_key(kept.sha256), hashlib.sha256()
    for start in range(0, kept.size_bytes, _PIECE_BYTES):
        piece = objects.range(key, start, min(_PIECE_BYTES, kept.size_bytes - start)) or memoryview(b"")
        digest.update(piece)
        yield piece
    if (got := digest.hexdigest()) != kept.sha256:
        raise CorruptObject(source.url(key), f"expected sha256 {kept.sha256}, got {got}")


def _fill(path: Path, pieces: Iterable[memoryview], what: str) -> None:
    """Write a file, flushed. What `pieces` raises comes before the file is given to anybody."""
    try:
        with path.open("wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    except OSError as e:
        raise StoreRefused(what, e.strerror or str(e)) from e


class _TemporaryFile:
    """The path of a file that can become an object of the target, and is gone after the block."""

    def __init__(self, target: Bulk, key: str) -> None:
        self._path = (target.folder_for(key) or Path(gettempdir())) / f".tmp-{uuid.uuid4().hex}"

    def __enter__(self) -> Path:
        return self._path

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)
