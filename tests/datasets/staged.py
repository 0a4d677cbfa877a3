"""Caches of nodes for tests, and versions to stage into them."""

from collections.abc import Sequence
from pathlib import Path

from pipelines import storage
from pipelines.datasets import stage
from pipelines.datasets.cache import Cache
from pipelines.datasets.events import Arrival, Staging
from pipelines.datasets.manifest import Manifest, Packing, Shard
from pipelines.settings import Settings
from tests.datasets.trees import NOW, published, request, tree, write

STAGING = "20261121T020000Z-1a2b3c"


def version(settings: Settings, folder: Path, files: int = 60, seed: int = 1, dataset: str = "photos") -> Manifest:
    """A few shards of 64 KiB."""
    return published(settings, request(write(folder, tree(files, seed=seed)), dataset=dataset))


def large(settings: Settings, folder: Path, size_bytes: int, shard_bytes: int, seed: int = 1) -> Manifest:
    """One file in shards of several blocks."""
    import random

    folder.mkdir(parents=True)
    (folder / "weights.bin").write_bytes(random.Random(seed).randbytes(size_bytes))
    packing = Packing(format="blob", shard_bytes=shard_bytes)
    return published(settings, request(folder, packing, dataset="weights"))


def distinct(of: Manifest) -> list[Shard]:
    return list({shard.sha256: shard for shard in of.body.shards}.values())


def stage_all(settings: Settings, of: Manifest, shards: Sequence[Shard] | None = None) -> Staging:
    """Stage a version's shards; picklable, for a process of its own."""
    store = storage.open_store(settings)
    return stage.stage(
        settings, store, of, distinct(of) if shards is None else shards, staging_id=STAGING, say=lambda _: None
    )


def arrivals(of: Staging) -> list[Arrival]:
    return [transfer.arrival for transfer in of.transfers]


def require_right(settings: Settings) -> None:
    """Every shard that the cache serves has the bytes of its name, and no more is held than the budget allows."""
    import hashlib

    cache = Cache.of(settings)
    for each in cache.present():
        assert hashlib.sha256(cache.path(each.sha256).read_bytes()).hexdigest() == each.sha256
    room = cache.room()
    assert room.held_bytes <= room.budget_bytes


__all__ = ["NOW", "STAGING", "arrivals", "distinct", "large", "require_right", "stage_all", "version"]
