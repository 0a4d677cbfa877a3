"""Staging: shards come from the store into the node's cache, checked block by block as they come, and then as a whole.

A shard is seen in the cache when all of it is on the disk and has the sha256 that its manifest says. An interrupted
download goes on at its last good block.
"""

import hashlib
import mmap
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipelines import bulk, environment, keys
from pipelines.bulk import Bulk
from pipelines.datasets import names
from pipelines.datasets.cache import Cache
from pipelines.datasets.events import Arrival, Staging, Transfer
from pipelines.datasets.manifest import BLOCK_BYTES, Manifest, Shard, digest
from pipelines.datasets.meter import Meter
from pipelines.errors import DamagedShard, FleetmarkError
from pipelines.settings import Settings
from pipelines.storage import Store

_SHARDS_AT_ONCE = 2
_BLOCKS_AHEAD = 4  # of one shard
_ALIGNED = 4096  # a multiple of every disk's logical block (open(2), O_DIRECT)

Say = Callable[[str], None]


@dataclass(frozen=True)
class _Work:
    """What the transfers of one staging share."""

    cache: Cache
    bulk: Bulk
    url: str
    manifest: Manifest
    wanted: frozenset[str]  # never evicted for another of them
    requests: ThreadPoolExecutor
    say: Say


def stage(
    settings: Settings, store: Store, manifest: Manifest, shards: Sequence[Shard], *, staging_id: str, say: Say
) -> Staging:
    """Bring shards of a version into this node's cache. Safe to repeat, and beside other processes that do the same.

    What is there is read back before it counts. A shard that cannot be had is a transfer that says why; others go on.

    Raises:
        CacheUnusable: the cache's directory cannot be read or written.
    """
    cache = Cache.of(settings)
    meter = Meter(say, sum(shard.size_bytes for shard in shards), len(shards), "shards")
    seen = environment.snapshot(cache.root, ())
    store.create(keys.environment_key(seen.environment_id), seen.model_dump_json().encode())
    with ThreadPoolExecutor(_SHARDS_AT_ONCE * _BLOCKS_AHEAD) as requests, ThreadPoolExecutor(_SHARDS_AT_ONCE) as pool:
        wanted = frozenset(shard.sha256 for shard in shards)
        work = _Work(cache, bulk.of(store), store.base_url, manifest, wanted, requests, say)
        transfers = tuple(pool.map(lambda shard: _counted(_transfer(work, shard), meter), shards))
    say(meter.line())
    return Staging(
        staging_id=staging_id,
        node=settings.node,
        store=store.base_url,
        cache=str(cache.root),
        environment_id=seen.environment_id,
        transfers=transfers,
    )


def record(store: Store, staging: Staging) -> None:
    """Keep what was done; a repeat of the same staging adds nothing."""
    store.create(names.staging_key(staging.staging_id, staging.node), staging.model_dump_json().encode())


def _counted(transfer: Transfer, meter: Meter) -> Transfer:
    meter.add(transfer.size_bytes, spared=transfer.fetched_bytes == 0)
    return transfer


def _transfer(work: _Work, shard: Shard) -> Transfer:
    began, started_at = time.monotonic(), datetime.now(UTC)
    fetched_bytes, reason = 0, ""
    try:
        arrival, fetched_bytes = _bring(work, shard)
    except FleetmarkError as e:
        arrival, reason = Arrival.FAILED, str(e)
        work.say(reason)
    return Transfer(
        dataset=work.manifest.dataset,
        version=work.manifest.version,
        shard=shard.sha256,
        size_bytes=shard.size_bytes,
        arrival=arrival,
        reason=reason,
        fetched_bytes=fetched_bytes,
        duration_s=time.monotonic() - began,
        started_at=started_at,
    )


def _bring(work: _Work, shard: Shard) -> tuple[Arrival, int]:
    """How the shard came to be in the cache, and how many bytes were fetched for it."""
    while True:
        there = work.cache.verify(shard)
        if there:
            return Arrival.PRESENT, 0
        if there is False:
            work.say(f"shard {shard.sha256[:12]} is damaged in the cache; it is put away and fetched again")
            work.cache.quarantine(shard.sha256)
        with work.cache.receiving(shard, work.wanted, work.say) as descriptor:
            if descriptor is None:
                continue  # another process brought it: look at what it is
            try:
                fetched_bytes = _fetch(work, shard, descriptor)
            except DamagedShard:
                work.cache.discard(shard)
                raise
            work.cache.publish(work.manifest.dataset, shard, descriptor)
            return Arrival.RESUMED if fetched_bytes < shard.size_bytes else Arrival.FETCHED, fetched_bytes


def _fetch(work: _Work, shard: Shard, descriptor: int) -> int:
    """Complete a partial file, and flush it to the disk; how many bytes were fetched.

    Raises:
        DamagedShard: the store gives other bytes than the manifest says, twice.
    """
    whole = hashlib.sha256()
    blocks = list(shard.blocks)
    kept = _good_blocks(descriptor, blocks, whole)
    with _Writer(descriptor) as file:
        for (start, _, _), data in _blocks(work, shard, blocks[kept:]):
            whole.update(data)
            file.write(start, data)
    os.fdatasync(descriptor)
    if whole.hexdigest() != shard.sha256:
        raise _damaged(work, shard, f"sha256 {shard.sha256}", f"sha256 {whole.hexdigest()}")
    return sum(length for _, length, _ in blocks[kept:])


def _good_blocks(descriptor: int, blocks: Sequence[tuple[int, int, str]], whole: Any) -> int:
    """How many blocks an earlier attempt left at the beginning; they are added to the hash of the whole."""
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    for number, (start, length, expected) in enumerate(blocks):
        data = os.pread(descriptor, length, start)
        if digest(data) != expected:
            return number
        whole.update(data)
    return len(blocks)


def _blocks(
    work: _Work, shard: Shard, blocks: Sequence[tuple[int, int, str]]
) -> Iterator[tuple[tuple[int, int, str], memoryview]]:
    """Each block in turn, some of them on their way at once, and right."""
    key = names.shard_key(work.manifest.dataset, shard.sha256)
    left = iter(blocks)
    coming: deque[tuple[tuple[int, int, str], Future[memoryview | None]]] = deque()

    def send() -> None:
        if (block := next(left, None)) is not None:
            coming.append((block, work.requests.submit(work.bulk.range, key, block[0], block[1])))

    for _ in range(_BLOCKS_AHEAD):
        send()
    try:
        while coming:
            block, answer = coming.popleft()
            send()
            start, length, expected = block
            data = answer.result()
            if data is None or len(data) != length or digest(data) != expected:
                data = work.bulk.range(key, start, length)  # damaged on the way, perhaps
            if data is None or len(data) != length or (got := digest(data)) != expected:
                found = "nothing" if data is None else f"{len(data)} B" if len(data) != length else f"xxh3 {got}"
                raise _damaged(work, shard, f"xxh3 {expected} of {length} B at {start}", found)
            yield block, data
    finally:
        for _, answer in coming:
            answer.cancel()


def _damaged(work: _Work, shard: Shard, expected: str, got: str) -> DamagedShard:
    url = f"{work.url}/{names.shard_key(work.manifest.dataset, shard.sha256)}"
    return DamagedShard(work.manifest.dataset, shard.sha256, url, expected, got)


class _Writer:
    """Blocks into an open file, past the page cache where the filesystem takes that: memory holds what jobs read."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._direct: int | None = None
        with suppress(OSError):
            self._direct = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
        self._memory = mmap.mmap(-1, BLOCK_BYTES)

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._memory.close()
        if self._direct is not None:
            os.close(self._direct)

    def write(self, start: int, data: memoryview) -> None:
        aligned = len(data) - len(data) % _ALIGNED if self._direct is not None else 0
        if aligned:
            self._memory[:aligned] = data[:aligned]
            with memoryview(self._memory) as memory:
                _write_all(self._direct or 0, memory[:aligned], start)
        _write_all(self._descriptor, data[aligned:], start + aligned)


def _write_all(descriptor: int, data: memoryview, start: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, start)
        data, start = data[written:], start + written
