"""Rows about datasets: what the store says of versions, stagings and scrubs, each landed once in its table."""

import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

import pyarrow as pa
from pydantic import ValidationError

from pipelines import keys
from pipelines.datasets import catalog, manifest, names
from pipelines.datasets.events import Arrival, Scrub, Staging, Transfer
from pipelines.datasets.manifest import Manifest
from pipelines.errors import CorruptObject, KeyNotFound, Unknown
from pipelines.storage import Store
from pipelines.tables import delta, land
from pipelines.tables.schema import DATASETS, SCRUBS, STAGING

log = logging.getLogger(__name__)

R = TypeVar("R", Staging, Scrub)
Rows = Callable[[str, bytes, str], pa.Table]
"""From a record's key, bytes and URL its rows."""

_AT_ONCE = 64  # places in one commit: a node's record of 10,000 shards is 4 MB of JSON


def land_versions(store: Store, at: datetime) -> int:
    """Land a row for each version that the table `datasets` does not have yet. Returns how many this call has landed.

    Safe to repeat and to race. A damaged manifest is told of and left out; a version that is removed keeps its row.

    Raises:
        LandingConflict, StoreRefused, StoreUnreachable, UnsafeStore: see `land.land_table`.
    """
    published = {
        names.version_key(dataset, version): (dataset, version)
        for dataset in store.folders_under(names.root())
        for version in catalog.versions(store, dataset)
    }
    if not published:
        return 0
    units = {}
    for key in sorted(published.keys() - _landed(store)):
        try:
            made = catalog.load_version(store, *published[key])
        except (Unknown, CorruptObject) as e:  # removed since it was listed, or damaged
            log.warning("version left out: key=%s problem=%s", key, e)
            continue
        units[key] = pa.Table.from_pylist([_version(store, made, key, at)], schema=DATASETS)
    return land.land_units(store, "datasets", units)


def land_staging(store: Store, staging_id: str) -> int:
    """Land a row for each transfer that the staging's nodes have recorded. Returns how many this call has landed.

    Safe to repeat, to race, and to call again when another node has recorded what it did.

    Raises:
        CorruptObject: a record is damaged; those of the other nodes have landed.
        LandingConflict, StoreRefused, StoreUnreachable, UnsafeStore: see `land.land_table`.
    """
    return _land_records(store, "staging", names.staging_prefix(staging_id), _transfers)


def land_stagings_of(store: Store, run_id: str) -> None:
    """Land the transfers with which the nodes of a run began, in every attempt; safe to repeat and to race.

    A damaged record is told of and left out: the run's own rows stand without it.

    Raises:
        LandingConflict, StoreRefused, StoreUnreachable, UnsafeStore: see `land.land_table`.
    """
    for staging_id in stagings_of(store, run_id):
        try:
            land_staging(store, staging_id)
        except CorruptObject as e:
            log.warning("record of a staging left out: %s", e)


def stagings_of(store: Store, run_id: str) -> list[str]:
    """The ids of the stagings with which attempts at the run's jobs began, see `names.staging_of_run`."""
    that_day = names.staging_prefix(run_id).rpartition("/")[0]
    return [staging_id for staging_id in store.folders_under(that_day) if staging_id.startswith(f"{run_id}.")]


def land_scrub(store: Store, scrub_id: str) -> int:
    """Land a row for each check that the scrub has recorded, of every place. Returns how many this call has landed.

    Raises: see `land_staging`.
    """
    return _land_records(store, "scrubs", names.scrub_prefix(scrub_id), _checks)


def _landed(store: Store) -> set[str]:
    """The keys of the manifests that have a row. To ask for each one's transaction takes 10 ms each on S3."""
    from deltalake.exceptions import DeltaError

    table = delta.open_table(store, "datasets")
    try:
        return set(table.to_pyarrow_table(columns=["manifest_key"])["manifest_key"].to_pylist())
    except (DeltaError, OSError) as e:
        raise delta.failure(store, "datasets", e) from e


def _version(store: Store, made: Manifest, key: str, at: datetime) -> Mapping[str, Any]:
    packing, provenance = made.body.packing, made.provenance
    return {
        **{name: getattr(made, name) for name in ("dataset", "version", "files", "samples")},
        **{name: getattr(made, name) for name in ("content_bytes", "stored_bytes")},
        **{name: getattr(packing, name) for name in ("format", "shard_bytes", "zstd_level")},
        **{name: getattr(provenance, name) for name in ("published_at", "parent", "source", "environment_id")},
        **{name: getattr(provenance, name) for name in ("code_version", "hostname", "note")},
        "month": f"{provenance.published_at.astimezone(UTC):%Y-%m}",
        "shards": len(made.body.shards),
        "new_bytes": _new_bytes(store, made),
        "manifest_key": key,
        "landed_at": at,
    }


def _new_bytes(store: Store, made: Manifest) -> int | None:
    """Stored bytes of the shards that the parent does not have; None where the parent can no longer be read."""
    parent = made.provenance.parent
    if parent is None:
        return made.stored_bytes
    try:
        before = _even_if_removed(store, made.dataset, parent)
    except (KeyNotFound, CorruptObject) as e:
        log.warning("new bytes left out: version=%s problem=%s", made.reference, e)
        return None
    had = {shard.sha256 for shard in before.body.shards}
    return sum({each.sha256: each.size_bytes for each in made.body.shards if each.sha256 not in had}.values())


def _even_if_removed(store: Store, dataset: str, version: str) -> Manifest:
    """Raises: KeyNotFound: it is neither there nor among those that were removed. CorruptObject."""
    try:
        return catalog.load_version(store, dataset, version)
    except Unknown:
        key = names.removed_key(dataset, version)
        return manifest.read_manifest(store.read(key), store.url(key))


def _land_records(store: Store, table: str, prefix: str, rows_of: Rows) -> int:
    found = store.keys_under(prefix)
    landed, damaged = 0, []
    for first in range(0, len(found), _AT_ONCE):
        some, units = found[first : first + _AT_ONCE], {}
        for key, data in zip(some, store.read_many(some), strict=True):
            try:
                units[key] = rows_of(key, data, store.url(key))
            except CorruptObject as e:
                damaged.append(e)
        landed += land.land_units(store, table, units)
    if damaged:
        raise damaged[0]
    return landed


def _transfers(key: str, data: bytes, url: str) -> pa.Table:
    staging = _read(Staging, data, url)
    shared = {
        **{name: getattr(staging, name) for name in ("staging_id", "node", "environment_id", "store", "cache")},
        **_traced(f"{names.staging_prefix(staging.staging_id)}/{staging.node}", staging.staging_id, key, data, url),
    }
    rows = [{**shared, **each.model_dump(), "bytes_per_s": _rate(each)} for each in staging.transfers]
    return pa.Table.from_pylist(rows, schema=STAGING)


def _checks(key: str, data: bytes, url: str) -> pa.Table:
    scrub = _read(Scrub, data, url)
    shared = {
        "scrub_id": scrub.scrub_id,
        "place": scrub.place,
        **_traced(f"{names.scrub_prefix(scrub.scrub_id)}/{scrub.place}", scrub.scrub_id, key, data, url),
    }
    return pa.Table.from_pylist([{**shared, **each.model_dump()} for each in scrub.checks], schema=SCRUBS)


def _read(kind: type[R], data: bytes, url: str) -> R:
    try:
        return kind.model_validate_json(data)
    except ValidationError as e:
        first = e.errors()[0]
        raise CorruptObject(url, f"{'.'.join(map(str, first['loc'])) or 'document'}: {first['msg']}") from e


def _traced(own: str, record_id: str, key: str, data: bytes, url: str) -> Mapping[str, str]:
    """Month and evidence of a record's rows. `own` is what the key of such a record begins with.

    What follows it differs: the store, one place of a scrub, has a record for each dataset.

    Raises:
        CorruptObject: it is the record of another staging or scrub, or of another place.
    """
    if not key.startswith(f"{own}."):
        raise CorruptObject(url, f"it is the record of {own}")
    return {"month": keys.run_date(record_id)[:7], "evidence_key": key, "evidence_sha256": keys.sha256(data)}


def _rate(transfer: Transfer) -> float | None:
    """B/s from the object store to the verified file; None where nothing came over the network."""
    if transfer.arrival is Arrival.FAILED or not transfer.fetched_bytes or not transfer.duration_s:
        return None
    return transfer.fetched_bytes / transfer.duration_s
