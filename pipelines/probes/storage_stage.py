"""Stage a dataset's shards from the store into a new cache: `storage_stage --dataset=NAME@TAG --most-bytes=N`.

The cache lies in the working directory, so that each shard is a transfer, verified by the code of `fleetmark dataset
stage`. Store and credentials come from the environment; relative paths there mean where the starting process is.
"""

import json
import os
import statistics
import sys
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines import bulk, keys, page_cache, settings, storage
from pipelines.datasets import catalog, names, stage, stage_plan
from pipelines.datasets.events import Transfer
from pipelines.datasets.manifest import Manifest, Shard
from pipelines.errors import (
    BadReference,
    BadSettings,
    CorruptObject,
    FleetmarkError,
    KeyNotFound,
    StoreRefused,
    StoreUnreachable,
    Unknown,
)
from pipelines.families.probe_tool import CONFIG, UNAVAILABLE
from pipelines.settings import Settings
from pipelines.storage import Store

_ASKED = 9  # requests of one byte; an odd number has a median
_UNLIMITED_BYTES = 2**62


def main(argv: Sequence[str]) -> int:
    parser = ArgumentParser(prog="fleetmark-probe storage_stage")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--most-bytes", type=int, required=True)
    asked = parser.parse_args(argv)
    try:
        current = settings.load(cwd=Path(f"/proc/{os.getppid()}/cwd").resolve())
        print(json.dumps(measured(current, Path.cwd(), asked.dataset, asked.most_bytes)))
    except (FleetmarkError, ValueError) as e:
        print(f"storage_stage: {e}", file=sys.stderr)
        return _status(e)
    return 0


def _status(error: Exception) -> int:
    if isinstance(error, StoreUnreachable):
        return UNAVAILABLE
    wrong = (BadReference, BadSettings, KeyNotFound, StoreRefused, Unknown, ValueError)
    return CONFIG if isinstance(error, wrong) else 1


def measured(current: Settings, folder: Path, dataset: str, most_bytes: int) -> dict[str, Any]:
    """One staging of as many shards as fit, in their order, as the document says it.

    Raises:
        Unknown, BadReference: there is no such dataset.
        ValueError: none of its shards fits.
        StoreUnreachable, StoreRefused, CorruptObject, CacheUnusable.
    """
    here = current.model_copy(
        update={"cache": folder / "cache", "cache_bytes": _UNLIMITED_BYTES, "cache_floor_bytes": 0}
    )
    store = storage.open_store(here)
    manifest = catalog.load(store, dataset)
    shards = within(stage_plan.choose(manifest, "all"), most_bytes)
    if not shards:
        raise ValueError(f"no shard of {manifest.reference} has at most {most_bytes} B; ask for more")
    cache = _forgotten(store, manifest, shards)
    staging_id = keys.run_id(datetime.now(UTC), "bench")
    began = time.monotonic()
    done = stage.stage(here, store, manifest, shards, staging_id=staging_id, say=lambda _: None)
    whole_s = time.monotonic() - began
    return {
        "probe": "storage_stage",
        "dataset": manifest.reference,
        "store": store.base_url.partition("://")[0],
        "cache": cache,
        "seconds": _span(done.transfers) or whole_s,
        "transfers": [
            each.model_dump(mode="json", include={"arrival", "reason", "size_bytes", "fetched_bytes", "duration_s"})
            for each in done.transfers
        ],
        "first_byte_s": _first_byte(store, manifest, shards),
    }


def _forgotten(store: Store, manifest: Manifest, shards: Sequence[Shard]) -> str | None:
    """Of a store that is a directory: `dropped`: this node has its shards in memory no more; `warm`: it may have them.

    What the servers of another store have in memory cannot be known: None.
    """
    if not store.is_local:
        return None
    paths = [Path(store.path(names.shard_key(manifest.dataset, shard.sha256))) for shard in shards]
    try:
        return "dropped" if page_cache.forget(paths) else "warm"
    except OSError:  # one is not there: staging says which
        return "warm"


def within(shards: Sequence[Shard], most_bytes: int) -> tuple[Shard, ...]:
    """Those from the first on that have at most so many bytes together; one that does not fit is left out. Pure."""
    chosen: list[Shard] = []
    for shard in shards:
        if shard.size_bytes <= most_bytes:
            chosen.append(shard)
            most_bytes -= shard.size_bytes
    return tuple(chosen)


def _span(transfers: Sequence[Transfer]) -> float:
    """Seconds from the beginning of the first transfer to the end of the last.

    Staging looks at the node before, which is no part of it. Where the clock was set in between it says nothing: 0.
    """
    starts = [each.started_at.timestamp() for each in transfers]
    ends = [start + each.duration_s for start, each in zip(starts, transfers, strict=True)]
    span, longest = max(ends) - min(starts), max(each.duration_s for each in transfers)
    return span if longest <= span <= sum(each.duration_s for each in transfers) + 1 else 0.0


def _first_byte(store: Store, manifest: Manifest, shards: Sequence[Shard]) -> float | None:
    """Median seconds of a request for one byte of a shard, over connections that are open; None: one was refused."""
    reader = bulk.of(store)
    took = []
    for number in range(_ASKED + 1):
        key = names.shard_key(manifest.dataset, shards[number % len(shards)].sha256)
        began = time.perf_counter()
        try:
            data = reader.range(key, 0, 1)
        except (StoreUnreachable, StoreRefused, KeyNotFound, CorruptObject):
            return None
        if data is None or len(data) != 1:
            return None
        took.append(time.perf_counter() - began)
    return statistics.median(took[1:])
