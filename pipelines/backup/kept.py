"""What a backup is: its list, and the bytes of its objects."""

import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import gettempdir
from typing import Literal

from pydantic import AwareDatetime, NonNegativeInt, ValidationError

from pipelines import keys
from pipelines.bulk import Bulk
from pipelines.datasets.manifest import Sha256
from pipelines.errors import CorruptObject, StoreRefused, Unknown
from pipelines.records import Record
from pipelines.storage import Store

LISTS = "backups"
OBJECTS = "objects"
PIECE_BYTES = 8 * 2**20
AT_ONCE = 8


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

    @property
    def everything(self) -> tuple[Kept, ...]:
        """Its objects, and the dump of the database."""
        return (*self.objects, *((self.database,) if self.database else ()))


def load(source: Store, backup_id: str | None = None) -> Backup:
    """A backup; the newest by default.

    Raises:
        Unknown: there is no such backup, or none at all.
        CorruptObject: its list is damaged.
    """
    known = ids(source)
    wanted = backup_id or (known[-1] if known else "")
    if wanted not in known:
        raise Unknown(f"backup in {source.base_url}", wanted, tuple(known))
    key = list_key(wanted)
    try:
        return Backup.model_validate_json(source.read(key))
    except ValidationError as e:
        raise CorruptObject(source.url(key), "it is not the list of a backup") from e


def ids(source: Store) -> list[str]:
    """Of every backup, the oldest first."""
    return [key.rpartition("/")[2].removesuffix(".json") for key in source.keys_under(LISTS)]


def source_of(backup_id: str) -> str:
    """The part of an id that is the same for every backup of a store: several may lie in one place."""
    return backup_id.rpartition("-")[2]


def list_key(backup_id: str) -> str:
    return keys.checked(f"{LISTS}/{backup_id}.json")


def object_key(sha256: str) -> str:
    return keys.checked(f"{OBJECTS}/{sha256}")


def pieces(objects: Bulk, source: Store, kept: Kept) -> Iterator[memoryview]:
    """The bytes of an object of a backup. Raises: CorruptObject: at their end, where they are not those."""
    key, digest = object_key(kept.sha256), hashlib.sha256()
    for start in range(0, kept.size_bytes, PIECE_BYTES):
        piece = objects.range(key, start, min(PIECE_BYTES, kept.size_bytes - start)) or memoryview(b"")
        digest.update(piece)
        yield piece
    if (got := digest.hexdigest()) != kept.sha256:
        raise CorruptObject(source.url(key), f"expected sha256 {kept.sha256}, got {got}")


def fill(path: Path, given: Iterable[memoryview], what: str) -> None:
    """Write a file, flushed. What `given` raises comes before the file is given to anybody."""
    try:
        with path.open("wb") as file:
            for piece in given:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    except OSError as e:
        raise StoreRefused(what, e.strerror or str(e)) from e


class TemporaryFile:
    """The path of a file that can become an object of the target, and is gone after the block."""

    def __init__(self, target: Bulk, key: str) -> None:
        self._path = (target.folder_for(key) or Path(gettempdir())) / f".tmp-{uuid.uuid4().hex}"

    def __enter__(self) -> Path:
        return self._path

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)
