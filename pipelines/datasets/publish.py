"""Publishing a version: plan, pack in chunks, commit. Each is safe to repeat; what was packed is not read again.

The plan lies in the store below `publishing/`, so that any machine can pack any chunk. Which shards a group of source
files became is noted under the hash of the group (`packed/`), where another attempt, and the next version, find it.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import datetime
from functools import partial
from itertools import chain
from typing import Literal, TypeVar

import zstandard
from pydantic import Field, NonNegativeInt, PositiveInt

import pipelines
from pipelines import bulk, environment, keys
from pipelines.datasets import catalog, claims, names, packing
from pipelines.datasets import pack as packer
from pipelines.datasets.catalog import Tag
from pipelines.datasets.manifest import Body, Manifest, Packing, Provenance, Sha256, Shard, VersionId
from pipelines.datasets.meter import Meter
from pipelines.datasets.packing import Groups, Kept, Totals
from pipelines.datasets.source import Piece, open_source
from pipelines.errors import CorruptObject, KeyNotFound, NotPacked, SourceRefused, Unknown
from pipelines.records import Name, Record
from pipelines.settings import Settings
from pipelines.storage import Store

CHUNK_GROUPS = 32
"""What one task packs: so many shards, or fewer where they have many files."""

_CHUNK_PIECES = 32_768
_WAIT_S = 3600.0  # for the collector, which takes minutes
_WORK = "publishing"  # folder below FLEETMARK_HOME

Say = Callable[[str], None]
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


class Preview(Record):
    """What publishing would do."""

    files: int
    size_bytes: int
    groups: int
    packed_before: int  # groups that nothing is read or written for
    packed_before_bytes: int


def preview(settings: Settings, store: Store, request: Request) -> Preview:
    """Look at the source and at what is packed already; touches nothing. Raises: see `plan`."""
    parent = _parent(store, request)
    groups = known = known_bytes = 0
    with _grouped(settings, store, request, parent) as grouped:
        totals = grouped.totals
        for pieces in grouped:
            groups += 1
            if store.exists(names.packed_key(request.dataset, packing.group_id(pieces, request.packing))):
                known += 1
                known_bytes += sum(piece.length for piece in pieces)
    return Preview(
        files=totals.files,
        size_bytes=totals.size_bytes,
        groups=groups,
        packed_before=known,
        packed_before_bytes=known_bytes,
    )


def plan(settings: Settings, store: Store, request: Request) -> Publication:
    """List the source and decide what goes into which shard. The same source, parameters and parent: the same plan.

    Raises:
        SourceRefused: there is nothing to publish, or something that cannot be.
        UnsafeStore: on this store several writers could publish the same name.
        Unknown, BadReference: the parent.
        StillCollecting: see `claims.publishing`.
    """
    store.require_atomic_create()
    parent = _parent(store, request)
    seen = catalog.tag_of(store, request.dataset, request.tag)
    with _grouped(settings, store, request, parent) as grouped:
        totals = grouped.totals
        publication = _id(request, parent, totals)
        claims.publishing(store, request.dataset, publication, _WAIT_S)
        groups = chunks = 0
        for chunk in _chunked(grouped, request.packing):
            key = _chunk_key(request.dataset, publication, chunks)
            store.create(key, zstandard.compress(chunk.model_dump_json().encode()))
            groups += len(chunk.groups)
            chunks += 1
    made = Publication(
        publication=publication,
        request=request,
        seen=seen,
        parent=parent.version if parent else None,
        files=totals.files,
        size_bytes=totals.size_bytes,
        listing=totals.listing,
        groups=groups,
        chunks=chunks,
    )
    store.replace(_plan_key(request.dataset, publication), made.model_dump_json().encode())
    return made


def load(store: Store, dataset: str, publication: str) -> Publication:
    """Raises: Unknown: no such publication is under way."""
    try:
        return Publication.model_validate_json(store.read(_plan_key(dataset, publication)))
    except KeyNotFound as e:
        known = store.folders_under(names.publishing_prefix(dataset))
        raise Unknown(f"publication of {dataset}", publication, tuple(known)) from e


def pack(settings: Settings, store: Store, publication: Publication, number: int, meter: Meter) -> None:
    """Pack a chunk of the plan, several shards at once. What was packed before, by whomever, is not read again.

    Raises:
        SourceChanged: a source file is not the one that was planned; nothing will be published.
        SourceRefused, StoreRefused, StoreUnreachable, CorruptObject, StillCollecting: see `pack.pack_group`.
    """
    dataset = publication.request.dataset
    done_key = _packed_key(dataset, publication.publication, number)
    chunk = _chunk(store, dataset, publication.publication, number)
    claims.publishing(store, dataset, publication.publication, _WAIT_S)
    if store.exists(done_key):
        meter.add(sum(piece.length for group in chunk.groups for piece in group.pieces), len(chunk.groups), spared=True)
        return
    work = settings.home / _WORK
    work.mkdir(parents=True, exist_ok=True)
    place = packer.Place(store, bulk.of(store), work)
    source = open_source(publication.request.source, settings)

    def one(group: Group) -> Packed:
        packed = _packed_before(place, dataset, group)
        spared = packed is not None
        if packed is None:
            shards = packer.pack_group(place, dataset, source, group.pieces, publication.request.packing)
            packed = Packed(group=group.group, shards=shards)
            body = zstandard.compress(packed.model_dump_json().encode())
            store.create(names.packed_key(dataset, group.group), body)
        meter.add(sum(piece.length for piece in group.pieces), spared=spared)
        return packed

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        packed_chunk = PackedChunk(groups=tuple(_all(pool, [partial(one, group) for group in chunk.groups])))
    store.create(done_key, zstandard.compress(packed_chunk.model_dump_json().encode()))


def commit(settings: Settings, store: Store, publication: Publication, at: datetime) -> Manifest:
    """Publish the version: its manifest in one create-only write, then the tag by compare and swap.

    Raises:
        NotPacked: a chunk is missing.
        TagMoved: somebody else moved the tag since this was planned. The version is published; the tag is theirs.
        CorruptObject: a shard has gone from the store.
        StillCollecting: see `claims.publishing`.
    """
    dataset, request = publication.request.dataset, publication.request
    claims.publishing(store, dataset, publication.publication, _WAIT_S)
    packed = list(chain.from_iterable(chunk.groups for chunk in _packed_chunks(store, publication)))
    body = Body(dataset=dataset, packing=request.packing, shards=tuple(chain.from_iterable(p.shards for p in packed)))
    _require_shards(store, body)
    seen = environment.snapshot(settings.home, ())
    store.create(keys.environment_key(seen.environment_id), seen.model_dump_json().encode())
    made = Manifest(
        version=body.version,
        body=body,
        provenance=Provenance(
            source=request.source,
            listing=publication.listing,
            packed=tuple(each.group for each in packed for _ in each.shards),
            parent=publication.parent,
            code_version=f"fleetmark {pipelines.__version__}, zstd {'.'.join(map(str, zstandard.ZSTD_VERSION))}",
            environment_id=seen.environment_id,
            hostname=os.uname().nodename,
            published_at=at,
            note=request.note,
        ),
    )
    store.create(names.version_key(dataset, made.version), made.model_dump_json().encode())
    store.delete(names.removed_key(dataset, made.version))
    published = catalog.load_version(store, dataset, made.version)
    catalog.move_tag(store, publication.seen, made.version, at, by=f"publish {request.source}"[:200])
    claims.published(store, dataset, publication.publication)
    return published


def publish(settings: Settings, store: Store, request: Request, at: datetime, say: Say) -> Manifest:
    """Plan, pack and commit on this machine. Raises: see those."""
    publication = plan(settings, store, request)
    say(
        f"publication {publication.publication}: {publication.files} files, {publication.size_bytes} B, "
        f"{publication.groups} groups"
    )
    meter = Meter(say, publication.size_bytes, publication.groups, "shards")
    for number in range(publication.chunks):
        pack(settings, store, publication, number, meter)
    say(meter.line())
    return commit(settings, store, publication, at)


def _parent(store: Store, request: Request) -> Manifest | None:
    """The version whose packing is kept, if it was packed in the same way."""
    if request.parent is None:
        return None
    if request.parent:
        which = names.Reference(dataset=request.dataset, which=names.checked("tag or version", request.parent))
        found = catalog.load(store, which)
    else:
        standing = catalog.tag_of(store, request.dataset, request.tag).version
        if standing is None:
            return None
        found = catalog.load_version(store, request.dataset, standing)
    return found if found.body.packing == request.packing else None


def _kept(store: Store, parent: Manifest | None) -> Iterator[Kept]:
    """What lies in which group of the parent."""
    if parent is None:
        return
    numbers = {group: number for number, group in enumerate(dict.fromkeys(parent.provenance.packed))}
    for group, shard in zip(parent.provenance.packed, parent.body.shards, strict=True):
        for entry in catalog.index_of(store, parent.dataset, shard):
            yield Kept(entry.path, entry.at, numbers[group])


def _grouped(
    settings: Settings, store: Store, request: Request, parent: Manifest | None
) -> AbstractContextManager[Groups]:
    units = packer.units_of(open_source(request.source, settings), request.packing)
    return packing.pack(_not_empty(request.source, units), _kept(store, parent), request.packing)


def _not_empty(source: str, units: Iterator[packing.Unit]) -> Iterator[packing.Unit]:
    first = next(units, None)
    if first is None:
        raise SourceRefused(source, "there is no file to publish")
    yield first
    yield from units


def _id(request: Request, parent: Manifest | None, totals: Totals) -> str:
    wanted = [request.source, request.dataset, request.packing.model_dump(mode="json"), request.tag]
    return keys.content_id([*wanted, parent.version if parent else None, totals.listing])


def _chunked(groups: Groups, how: Packing) -> Iterator[Chunk]:
    chunk: list[Group] = []
    pieces_in_chunk = 0
    for pieces in groups:
        if chunk and (len(chunk) == CHUNK_GROUPS or pieces_in_chunk + len(pieces) > _CHUNK_PIECES):
            yield Chunk(groups=tuple(chunk))
            chunk, pieces_in_chunk = [], 0
        chunk.append(Group(group=packing.group_id(pieces, how), pieces=pieces))
        pieces_in_chunk += len(pieces)
    yield Chunk(groups=tuple(chunk))


def _packed_before(place: packer.Place, dataset: str, group: Group) -> Packed | None:
    """What the group became at an earlier time, if the store still has it."""
    try:
        found = _read(place.store, names.packed_key(dataset, group.group), Packed)
    except KeyNotFound:
        return None
    for shard in found.shards:
        if place.bulk.size(names.shard_key(dataset, shard.sha256)) != shard.size_bytes:
            return None
    return found


def _all(pool: ThreadPoolExecutor, calls: Sequence[Callable[[], Packed]]) -> Iterator[Packed]:
    """Every answer in order; at the first error what has not begun is not begun."""
    futures = [pool.submit(call) for call in calls]
    try:
        for future in futures:
            yield future.result()
    finally:
        for future in futures:
            future.cancel()


def _packed_chunks(store: Store, publication: Publication) -> list[PackedChunk]:
    dataset = publication.request.dataset
    wanted = [_packed_key(dataset, publication.publication, number) for number in range(publication.chunks)]
    there = set(store.keys_under(names.publication_key(dataset, publication.publication, "packed")))
    if missing := len(set(wanted) - there):
        raise NotPacked(dataset, publication.publication, missing, publication.chunks)
    return [_read(store, key, PackedChunk) for key in wanted]


def _require_shards(store: Store, body: Body) -> None:
    """Raises: CorruptObject: a shard is not in the store, or not in its size."""
    large = bulk.of(store)

    def check(shard: Shard) -> None:
        key = names.shard_key(body.dataset, shard.sha256)
        if (size := large.size(key)) != shard.size_bytes:
            found = "nothing" if size is None else f"{size} B"
            raise CorruptObject(store.url(key), f"expected {shard.size_bytes} B, found {found}; publish again")

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(check, body.shards))


def _read(store: Store, key: str, record: type[R]) -> R:
    return record.model_validate_json(zstandard.decompress(store.read(key)))


def _chunk(store: Store, dataset: str, publication: str, number: int) -> Chunk:
    return _read(store, _chunk_key(dataset, publication, number), Chunk)


def _plan_key(dataset: str, publication: str) -> str:
    return names.publication_key(dataset, publication, "plan.json")


def _chunk_key(dataset: str, publication: str, number: int) -> str:
    return names.publication_key(dataset, publication, f"chunks/{number:06d}.json.zst")


def _packed_key(dataset: str, publication: str, number: int) -> str:
    return names.publication_key(dataset, publication, f"packed/{number:06d}.json.zst")
