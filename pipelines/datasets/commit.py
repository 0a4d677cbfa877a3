"""The commit of a publication: a version is there with one create-only write, then its tag is moved to it."""

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from importlib import metadata
from itertools import chain

import zstandard

import pipelines
from pipelines import bulk, environment, keys
from pipelines.datasets import catalog, claims, names, publications
from pipelines.datasets.manifest import Body, Manifest, Provenance, Shard
from pipelines.datasets.publications import Publication, Request
from pipelines.errors import CorruptObject, KeyNotFound, NotPacked
from pipelines.settings import Settings
from pipelines.storage import Store


def commit(settings: Settings, store: Store, publication: Publication, at: datetime) -> Manifest:
    """Publish the version: its manifest in one create-only write, then the tag by compare and swap.

    Raises:
        NotPacked: a chunk is missing.
        TagMoved: somebody else moved the tag since this was planned. The version is published; the tag is theirs.
        CorruptObject: a shard has gone from the store.
        StillCollecting: see `claims.publishing`.
    """
    try:
        return _committed(store, publication) or _commit(settings, store, publication, at)
    except (KeyNotFound, NotPacked):  # perhaps as somebody else has committed it since, and cleaned up
        if (published := _committed(store, publication)) is None:
            raise
        return published


def _committed(store: Store, publication: Publication) -> Manifest | None:
    """What was published, if somebody has committed it; what a process killed over that has left is cleaned up."""
    if (version := publications.finished(store, publication)) is None:
        return None
    published = catalog.load_version(store, publication.request.dataset, version)
    claims.published(store, publication.request.dataset, publication.publication)
    publications.finish(store, publication, version)
    return published


def _commit(settings: Settings, store: Store, publication: Publication, at: datetime) -> Manifest:
    dataset = publication.request.dataset
    claims.publishing(store, dataset, publication.publication)
    seen = environment.snapshot(settings.home, ())
    made = _manifest(store, publication, seen.environment_id, at)
    _require_shards(store, made.body)
    store.create(keys.environment_key(seen.environment_id), seen.model_dump_json().encode())
    if store.create(names.version_key(dataset, made.version), made.model_dump_json().encode()):
        _require_not_collected(store, publication, made.body)
    store.delete(names.removed_key(dataset, made.version))
    published = catalog.load_version(store, dataset, made.version)
    claims.published(store, dataset, publication.publication)
    catalog.move_tag(store, publication.seen, made.version, at, by=f"publish {publication.request.source}"[:200])
    publications.finish(store, publication, made.version)
    return published


def _manifest(store: Store, publication: Publication, environment_id: str, at: datetime) -> Manifest:
    """What the version is, and how it came to be. Raises: NotPacked, CorruptObject: see `publications.read_packed`."""
    request = publication.request
    packed = list(chain.from_iterable(chunk.groups for chunk in publications.read_packed(store, publication)))
    shards = tuple(chain.from_iterable(each.shards for each in packed))
    body = Body(dataset=request.dataset, packing=request.packing, shards=shards)
    return Manifest(
        version=body.version,
        body=body,
        provenance=Provenance(
            source=request.source,
            listing=publication.listing,
            packed=tuple(each.group for each in packed for _ in each.shards),
            parent=publication.parent,
            code_version=_code_version(request),
            environment_id=environment_id,
            hostname=os.uname().nodename,
            published_at=at,
            note=request.note,
        ),
    )


def _code_version(request: Request) -> str:
    """What decides the bytes of a shard, given its files."""
    known = [f"fleetmark {pipelines.__version__}", f"zstd {'.'.join(map(str, zstandard.ZSTD_VERSION))}"]
    if request.packing.format == "parquet":
        known.append(f"pyarrow {metadata.version('pyarrow')}")
    return ", ".join(known)


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


def _require_not_collected(store: Store, publication: Publication, body: Body) -> None:
    """Take a version back that came after its process slept for days and its publication was taken for abandoned.

    Raises:
        CorruptObject: the collector has deleted a shard of it.
    """
    if claims.stands(store, body.dataset, publication.publication):
        return
    try:
        _require_shards(store, body)
    except CorruptObject:
        store.delete(names.version_key(body.dataset, body.version))
        raise
