"""Small datasets in a store, from files that a test has in memory."""

import random
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pipelines.datasets import publish as publisher
from pipelines.datasets.manifest import Format, Manifest, Packing
from pipelines.datasets.names import LATEST
from pipelines.settings import Settings
from pipelines.storage import Store
from tests.datasets.trees import NOW, request, write


def publish(
    settings: Settings,
    store: Store,
    files: Mapping[str, bytes],
    dataset: str = "d",
    form: Format = "blob",
    shard_bytes: int = 2**16,
    tag: str = LATEST,
) -> Manifest:
    """The version that these files became."""
    with tempfile.TemporaryDirectory() as folder:
        packing = Packing(format=form, shard_bytes=shard_bytes)
        wanted = request(write(Path(folder), files), packing, dataset=dataset, tag=tag)
        return publisher.publish(settings, store, wanted, NOW, say=lambda _: None)


def random_files(seed: int, count: int, size: int) -> dict[str, bytes]:
    """So many files of so many random bytes."""
    chance = random.Random(seed)
    return {f"{number:05d}.bin": chance.randbytes(size) for number in range(count)}
