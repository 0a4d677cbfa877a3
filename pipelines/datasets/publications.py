"""Publications under way: their records, and where each lies in the store until the version is published."""

from collections.abc import Iterator
from typing import Literal, TypeVar

import zstandard
from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError

from pipelines.datasets import names, packing
from pipelines.datasets.catalog import Tag
from pipelines.datasets.manifest import Packing, Sha256, Shard, VersionId
from pipelines.datasets.packing import Groups
from pipelines.datasets.source import Piece
from pipelines.errors import CorruptObject, KeyNotFound, NotPacked, Unknown
from pipelines.records import Name, Record
from pipelines.storage import Store

_CHUNK_GROUPS = 32  # what one task packs: so many shards ...
_CHUNK_PIECES = 65_536  # ... or fewer, where they have many files: still two that threads can pack at once
_MOST_CHUNKS = 1000  # Airflow maps a task over 1024 things at most ([core] max_map_length): then chunks are larger

R = TypeVar("R", bound=Record)


class Request(Record):
    """What a person asks for."""

    source: str
    dataset: Name
    packing: Packing
    tag: Name = names.LATEST
    parent: str | None = ""  # a version whose packing is kept; "": the one that the tag stands on; None: none
    note: str = Field(default="", max_length=500)


class Group(Record):
    """Source files that become one shard (of format parquet: one or more)."""

    group: Sha256  # see packing.group_id
    pieces: tuple[Piece, ...]


class Chunk(Record):
    groups: tuple[Group, ...]


class Packed(Record):
    """What a group became."""

    group: Sha256
    shards: tuple[Shard, ...]


class PackedChunk(Record):
    groups: tuple[Packed, ...]


class Publication(Record):
    """A publication under way. Its id is the hash of what is to be published and how."""

    schema_version: Literal[1] = 1
    publication: Name
    request: Request
    seen: Tag  # where the tag stood when this was planned
    parent: VersionId | None
    files: PositiveInt
    size_bytes: NonNegativeInt
    listing: Sha256
    groups: PositiveInt
    chunks: PositiveInt
    columns: str | None = None  # of format parquet: those of all shards, see formats.columns


def load(store: Store, dataset: str, publication: str) -> Publication:
    """Raises: Unknown: no such publication is under way. CorruptObject: its plan is not what was written."""
    key = _plan_key(dataset, publication)
    try:
        return Publication.model_validate_json(store.read(key))
    except ValidationError as e:
        raise CorruptObject(store.url(key), "it is not the plan of a publication") from e
    except KeyNotFound as e:
        known = store.folders_under(names.publishing_prefix(dataset))
        raise Unknown(f"publication of {dataset}", publication, tuple(known)) from e


def write(store: Store, planned: Publication) -> None:
    """Make the plan known, or renew it: where the tag stands may have changed."""
    store.replace(_plan_key(planned.request.dataset, planned.publication), planned.model_dump_json().encode())


def chunked(groups: Groups, how: Packing, columns: str | None) -> Iterator[Chunk]:
    """The groups in portions that one task packs."""
    most = max(_CHUNK_GROUPS, -(-len(groups) // _MOST_CHUNKS))
    chunk: list[Group] = []
    pieces_in_chunk = 0
    for pieces in groups:
        if chunk and (len(chunk) == most or pieces_in_chunk + len(pieces) > _CHUNK_PIECES):
            yield Chunk(groups=tuple(chunk))
            chunk, pieces_in_chunk = [], 0
        # not validated: a million tuples of our own making
        chunk.append(Group.model_construct(group=packing.group_id(pieces, how, columns), pieces=pieces))
        pieces_in_chunk += len(pieces)
    yield Chunk(groups=tuple(chunk))


def write_chunk(store: Store, dataset: str, publication: str, number: int, chunk: Chunk) -> None:
    store.create(_chunk_key(dataset, publication, number), _body(chunk))


def read_chunk(store: Store, of: Publication, number: int) -> Chunk:
    return read(store, _chunk_key(of.request.dataset, of.publication, number), Chunk)


def write_packed(store: Store, of: Publication, number: int, packed: PackedChunk) -> None:
    """What a chunk became; packed again, after its shards were lost, it may be another object with the same content."""
    store.replace(_packed_key(of, number), _body(packed))


def read_packed(store: Store, of: Publication) -> Iterator[PackedChunk]:
    """What every chunk became, in their order.

    Raises:
        NotPacked: some are not packed yet.
    """
    wanted = [_packed_key(of, number) for number in range(of.chunks)]
    there = set(store.keys_under(names.publication_key(of.request.dataset, of.publication, "packed")))
    if missing := len(set(wanted) - there):
        raise NotPacked(of.request.dataset, of.publication, missing, of.chunks)
    for key in wanted:
        yield read(store, key, PackedChunk)


def finish(store: Store, of: Publication, version: str) -> None:
    """Remember which version it became, for whoever else is at the same publication, and forget how."""
    dataset, publication = of.request.dataset, of.publication
    store.replace(_finished_key(dataset, publication), version.encode())
    for number in range(of.chunks):
        store.delete(_packed_key(of, number))
        store.delete(_chunk_key(dataset, publication, number))


def finished(store: Store, of: Publication) -> str | None:
    """The version it became, if somebody has committed it. Another plan has another id once that moved the tag."""
    try:
        return store.read(_finished_key(of.request.dataset, of.publication)).decode()
    except KeyNotFound:
        return None


def note(store: Store, dataset: str, packed: Packed) -> None:
    """Keep what a group became, for another attempt and for the next version. An older note may be outdated."""
    store.replace(names.packed_key(dataset, packed.group), _body(packed))


def noted(store: Store, dataset: str, group: str) -> Packed | None:
    """What a group became at an earlier time. Its shards need not be there any more."""
    try:
        return read(store, names.packed_key(dataset, group), Packed)
    except KeyNotFound:
        return None


def _body(record: Record) -> bytes:
    return zstandard.compress(record.model_dump_json().encode())


def read(store: Store, key: str, record: type[R]) -> R:
    """What a key of a publication has. Raises: KeyNotFound. CorruptObject: it is no such record."""
    try:
        return record.model_validate_json(zstandard.decompress(store.read(key)))
    except (zstandard.ZstdError, ValidationError) as e:
        raise CorruptObject(store.url(key), str(e)) from e


def _plan_key(dataset: str, publication: str) -> str:
    return names.publication_key(dataset, publication, "plan.json")


def _finished_key(dataset: str, publication: str) -> str:
    return names.publication_key(dataset, publication, "version")


def _chunk_key(dataset: str, publication: str, number: int) -> str:
    return names.publication_key(dataset, publication, f"chunks/{number:06d}.json.zst")


def _packed_key(of: Publication, number: int) -> str:
    return names.publication_key(of.request.dataset, of.publication, f"packed/{number:06d}.json.zst")
