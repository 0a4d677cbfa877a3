"""Whether what the store has of a version is what its manifest says, every byte of it."""

import os
from concurrent.futures import ThreadPoolExecutor

from pipelines.bulk import Bulk
from pipelines.datasets import catalog, names
from pipelines.datasets.manifest import Manifest, Shard
from pipelines.datasets.meter import Meter
from pipelines.datasets.pack import verify
from pipelines.errors import CorruptObject, KeyNotFound
from pipelines.storage import Store


def damaged(store: Store, large: Bulk, of: Manifest, meter: Meter) -> list[str]:
    """A sentence for each shard and index of the version that is missing or has other bytes, in its order."""
    dataset = of.dataset
    shards = list({shard.sha256: shard for shard in of.body.shards}.values())

    def check(shard: Shard) -> list[str]:
        found = []
        try:
            verify(large, dataset, shard)
        except (CorruptObject, KeyNotFound) as e:
            found.append(f"shard {store.url(names.shard_key(dataset, shard.sha256))}: {e}")
        try:
            catalog.index_of(store, dataset, shard)
        except (CorruptObject, KeyNotFound) as e:
            found.append(str(e))
        meter.add(shard.size_bytes)
        return found

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [sentence for sentences in pool.map(check, shards) for sentence in sentences]
