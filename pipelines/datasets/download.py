"""A version as files of a folder: its shards, for readers of their formats, or the files it was made of, bit-exact."""

import hashlib
import os
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Literal

from pipelines import bulk
from pipelines.datasets import manifest
from pipelines.datasets.manifest import Manifest, Shard
from pipelines.datasets.originals import Originals
from pipelines.datasets.shardbytes import Damage, NodeCache, Place, ShardBytes
from pipelines.datasets.target import Tally, Target, written
from pipelines.errors import DownloadRefused
from pipelines.records import Record
from pipelines.storage import Store

Form = Literal["shards", "files"]
Say = Callable[[str], None]

_THREADS = 8  # shards at once


class Downloaded(Record):
    """What a download came to."""

    files: int
    size_bytes: int
    present_bytes: int  # of them: what was there before, and right


def download(
    store: Store,
    of: Manifest,
    target: Path,
    form: Form,
    say: Say,
    overwrite: bool = False,
    cache: NodeCache | None = None,
) -> Downloaded:
    """Put a version's shards, or its files, into a folder. Safe to repeat: what is there and right is not fetched.

    What this node's `cache` has does not come from the store. Shards are named so that `webdataset` and HF `datasets`
    find them. Files that were cut are put together again.

    Raises:
        DownloadRefused: a file with other bytes is there and not to be overwritten, or a link; or the disk is full.
        DamagedShard, CorruptObject, KeyNotFound: the store has not what the manifest says.
        StoreUnreachable, StoreRefused.
    """
    if form == "files" and of.body.packing.format == "parquet":
        raise DownloadRefused(str(target), f"{of.reference} was made of rows, not of files; download its shards")
    place = Place(store, bulk.of(store), cache)
    with Target(target, say, overwrite) as into:
        if form == "shards":
            return _shards(place, of, into, say)
        return _files(place, of, into, say)


def shard_names(of: Manifest) -> list[str]:
    """What the shards are called in a folder, in their order."""
    count, packing = len(of.body.shards), of.body.packing
    if packing.format == "parquet":  # huggingface.co/docs/datasets/repository_structure
        return [f"data-{number:05d}-of-{count:05d}.parquet" for number in range(count)]
    ending = packing.format + (".zst" if packing.zstd_level else "")
    return [f"{of.dataset}-{number:06d}.{ending}" for number in range(count)]


def _shards(place: Place, of: Manifest, into: Target, say: Say) -> Downloaded:
    shards, called = of.body.shards, shard_names(of)
    _refuse_strangers(of, into, set(called))
    size_bytes = sum(shard.size_bytes for shard in shards)
    tally = Tally(say, size_bytes, len(shards), "shards")

    def put(number: int) -> None:
        with closing(ShardBytes(place, of.dataset, shards[number])) as source:
            _shard(source, called[number], into, tally)

    _each(len(shards), put)
    say(tally.line())
    return Downloaded(files=len(shards), size_bytes=size_bytes, present_bytes=tally.present_bytes)


def _files(place: Place, of: Manifest, into: Target, say: Say) -> Downloaded:
    tally = Tally(say, of.content_bytes, of.files, "files and parts of files")
    originals = Originals(place, of, into, tally)
    try:
        _each(len(of.body.shards), originals.put)
    finally:
        originals.close()
    say(tally.line())
    return Downloaded(files=originals.files, size_bytes=of.content_bytes, present_bytes=tally.present_bytes)


def _each(count: int, put: Callable[[int], None]) -> None:
    """For each shard's place; at the first error what has not begun is not begun."""
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            for done in [pool.submit(put, number) for number in range(count)]:
                done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _shard(source: ShardBytes, name: str, into: Target, tally: Tally) -> None:
    with into.explained(name), into.existing(name) as there:
        if there is not None and _is(there, source.shard):
            return tally.add(source.shard.size_bytes, 1, present=True)
    descriptor = into.partial(name)
    try:
        with into.explained(name):
            _fill(descriptor, source, tally)
        into.publish(name, descriptor, source.shard.size_bytes)
    finally:
        os.close(descriptor)
    return tally.add(0, 1)


def _fill(descriptor: int, source: ShardBytes, tally: Tally) -> None:
    """The shard's bytes into the file, but for blocks that it has from an earlier attempt."""
    sha256 = hashlib.sha256()
    for number, (start, length, expected) in enumerate(source.shard.blocks):
        data = memoryview(os.pread(descriptor, length, start))
        is_present = len(data) == length and manifest.digest(data) == expected
        if not is_present:
            data = source.block(number)
            written(descriptor, data, start)
        sha256.update(data)
        tally.add(length, 0, present=is_present)
    if (got := sha256.hexdigest()) != source.shard.sha256:
        raise source.damaged(Damage(f"sha256 {source.shard.sha256}", got))


def _is(descriptor: int, shard: Shard) -> bool:
    """Whether the file has the shard's bytes, and no others."""
    if os.fstat(descriptor).st_size != shard.size_bytes:
        return False
    return all(manifest.digest(os.pread(descriptor, length, start)) == xxh3 for start, length, xxh3 in shard.blocks)


def _refuse_strangers(of: Manifest, into: Target, called: Iterable[str]) -> None:
    """Shards of another version beside these would be read as if they were of this one."""
    packing = of.body.packing
    stem = r"data-\d+-of-\d+" if packing.format == "parquet" else rf"{re.escape(of.dataset)}-\d+"
    for name in sorted(set(into.names()) - set(called)):
        if re.fullmatch(rf"{stem}\.{packing.format}(\.zst)?", name):
            problem = f"it is no shard of {of.reference} and would be read with them; take an empty folder"
            raise DownloadRefused(f"{into.path}/{name}", problem)
