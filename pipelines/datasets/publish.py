"""Publishing a version: plan, pack in chunks, commit. Each is safe to repeat; what was packed is not read again.

The plan lies in the store below `publishing/`, so that any machine can pack any chunk. Which shards a group of source
files became is noted under the hash of the group (`packed/`), where another attempt, and the next version, find it.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime
from typing import TypeVar

from pipelines import bulk, forks, keys
from pipelines.datasets import catalog, claims, names, packing, publications
from pipelines.datasets import commit as committer
from pipelines.datasets import pack as packer
from pipelines.datasets.catalog import Tag
from pipelines.datasets.manifest import Manifest, Packing
from pipelines.datasets.meter import Meter
from pipelines.datasets.packing import Groups, Kept, Totals
from pipelines.datasets.publications import Group, Packed, PackedChunk, Publication, Request
from pipelines.datasets.source import Source, open_source
from pipelines.datasets.source_directory import Directory
from pipelines.errors import CorruptObject, KeyNotFound, SourceChanged, SourceRefused
from pipelines.records import Record
from pipelines.settings import Settings
from pipelines.storage import Store

_WORK = "publishing"  # folder below FLEETMARK_HOME

Say = Callable[[str], None]
T = TypeVar("T")
Submit = Callable[[int], Future[T]]


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
        columns = packer.columns_of(request.source, grouped)
        for pieces in grouped:
            groups += 1
            if store.exists(names.packed_key(request.dataset, packing.group_id(pieces, request.packing, columns))):
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
        columns = packer.columns_of(request.source, grouped)
        publication = _id(request, seen, parent, totals, columns)
        claims.publishing(store, request.dataset, publication)
        groups = chunks = 0
        for chunk in publications.chunked(grouped, request.packing, columns):
            publications.write_chunk(store, request.dataset, publication, chunks, chunk)
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
        columns=columns,
    )
    publications.write(store, made)
    return made


def pack(settings: Settings, store: Store, publication: Publication, number: int, meter: Meter) -> None:
    """Pack a chunk of the plan, several shards at once. What was packed before, by whomever, is not read again.

    Raises:
        SourceChanged: a source file is not the one that was planned; nothing will be published.
        SourceRefused, StoreRefused, StoreUnreachable, CorruptObject, StillCollecting: see `pack.pack_group`.
        WorkerLost: a process that packed was killed.
    """
    dataset = publication.request.dataset
    try:
        chunk = publications.read_chunk(store, publication, number)
    except KeyNotFound:
        if publications.finished(store, publication) is None:
            raise
        return  # somebody else was at the same publication and has committed it
    claims.publishing(store, dataset, publication.publication)
    work = settings.home / _WORK
    work.mkdir(parents=True, exist_ok=True)
    place = packer.Place(store, bulk.of(store), work)
    source = open_source(publication.request.source, settings)

    def one(index: int) -> tuple[Packed, bool]:
        """What a group became, and whether that was before."""
        group = chunk.groups[index]
        packed = _packed_before(place, dataset, group)
        if packed is not None:
            return packed, True
        how, columns = publication.request.packing, publication.columns
        packed = Packed(group=group.group, shards=packer.pack_group(place, dataset, source, group.pieces, how, columns))
        publications.note(store, dataset, packed)
        return packed, False

    packed = []
    try:
        with _workers(store, source, publication.request.packing, one) as submit:
            for group, (became, spared) in zip(chunk.groups, _all(submit, len(chunk.groups)), strict=True):
                meter.add(sum(piece.length for piece in group.pieces), spared=spared)
                packed.append(became)
    except (SourceChanged, SourceRefused):
        claims.published(store, dataset, publication.publication)  # it is over, and holds the collector up no longer
        raise
    publications.write_packed(store, publication, number, PackedChunk(groups=tuple(packed)))


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
    return committer.commit(settings, store, publication, at)


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
    """What lies in which group of the parent. Where an index is lost, its files are packed anew, which puts it back."""
    if parent is None:
        return
    numbers = {group: number for number, group in enumerate(dict.fromkeys(parent.provenance.packed))}
    for group, shard in zip(parent.provenance.packed, parent.body.shards, strict=True):
        with suppress(KeyNotFound, CorruptObject):
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


def _id(request: Request, seen: Tag, parent: Manifest | None, totals: Totals, columns: str | None) -> str:
    wanted = [request.source, request.dataset, request.packing.model_dump(mode="json"), request.tag, seen.number]
    return keys.content_id([*wanted, parent.version if parent else None, totals.listing, columns])


def _packed_before(place: packer.Place, dataset: str, group: Group) -> Packed | None:
    """What the group became at an earlier time, if the store still has it."""
    found = publications.noted(place.store, dataset, group.group)
    if found is None:
        return None
    for shard in found.shards:
        if place.bulk.size(names.shard_key(dataset, shard.sha256)) != shard.size_bytes:
            return None
        if not place.store.exists(names.index_key(dataset, shard.index)):  # put away by a scrub: packing makes it again
            return None
    return found


@contextmanager
def _workers(store: Store, source: Source, packing: Packing, call: Callable[[int], T]) -> Iterator[Submit[T]]:
    """What runs `call` on every core. With small files in a directory it is Python that takes the time."""
    if store.is_local and isinstance(source, Directory) and packing.format != "parquet":
        with forks.forked(call) as submit:
            yield submit
    else:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            yield lambda number: pool.submit(call, number)


def _all(submit: Submit[T], count: int) -> Iterator[T]:
    """Every answer in order; at the first error what has not begun is not begun."""
    futures = [submit(number) for number in range(count)]
    try:
        for future in futures:
            yield future.result()
    finally:
        for future in futures:
            future.cancel()
