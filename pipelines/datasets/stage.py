"""Staging: shards come from the store into the node's cache, checked block by block as they come, and then as a whole.

A shard is seen in the cache when all of it is on the disk and has the sha256 that its manifest says. An interrupted
download goes on at its last good block.
"""

import hashlib
import mmap
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pipelines import bulk, environment, keys
from pipelines.bulk import Bulk
from pipelines.datasets import incoming, names
from pipelines.datasets.cache import Cache
from pipelines.datasets.events import Arrival, Staging, Transfer
from pipelines.datasets.incoming import Partial
from pipelines.datasets.manifest import Manifest, Shard, digest
from pipelines.datasets.meter import Meter
from pipelines.errors import DamagedShard, FleetmarkError, KeyNotFound, StoreUnreachable
from pipelines.settings import Settings
from pipelines.storage import Store

_SHARDS_AT_ONCE = 2
_BLOCKS_AHEAD = 2  # of one shard; each costs memory twice, as the allocator keeps what a thread has freed
_BUFFER_BYTES = 2**20  # stays in the processor's cache between copying and writing
_ALIGNED = 4096  # a multiple of every disk's logical block (open(2), O_DIRECT)

Say = Callable[[str], None]
Block = tuple[int, int, str]  # see manifest.Shard.blocks


@dataclass(frozen=True)
class _Work:
    """What the transfers of one staging share."""

    cache: Cache
    bulk: Bulk
    url: str
    manifest: Manifest
    wanted: frozenset[str]  # never evicted for another of them
    requests: ThreadPoolExecutor
    meter: Meter
    say: Say
    stopped: threading.Event = field(default_factory=threading.Event)
    unreachable: list[StoreUnreachable] = field(default_factory=list)  # it gave up once: it is not waited for again


def stage(
    settings: Settings, store: Store, manifest: Manifest, shards: Sequence[Shard], *, staging_id: str, say: Say
) -> Staging:
    """Bring shards of a version into this node's cache. Safe to repeat, and beside other processes that do the same.

    What is there is read back before it counts. A shard that cannot be had is a transfer that says why; others go on.
    Interrupted, it ends with the blocks that are on their way, and keeps them.

    Raises:
        CacheUnusable: the cache's directory cannot be read or written.
        StoreUnreachable, StoreRefused: not even what this node is could be kept there.
    """
    cache = Cache.of(settings)
    meter = Meter(say, sum(shard.size_bytes for shard in shards), len(shards), "shards")
    seen = environment.snapshot(cache.root, ())
    store.create(keys.environment_key(seen.environment_id), seen.model_dump_json().encode())
    wanted = frozenset(shard.sha256 for shard in shards)
    with ThreadPoolExecutor(_SHARDS_AT_ONCE * _BLOCKS_AHEAD) as requests, ThreadPoolExecutor(_SHARDS_AT_ONCE) as pool:
        work = _Work(cache, bulk.of(store), store.base_url, manifest, wanted, requests, meter, say)
        try:
            transfers = tuple(pool.map(lambda shard: _transfer(work, shard), shards))
        except BaseException:
            work.stopped.set()
            raise
    say(meter.line())
    return Staging(
        staging_id=staging_id,
        node=settings.node_name,
        store=store.base_url,
        cache=str(cache.root),
        environment_id=seen.environment_id,
        transfers=transfers,
    )


def record(store: Store, staging: Staging) -> None:
    """Keep what was done; a repeat of the same staging adds nothing."""
    store.create(names.staging_key(staging.staging_id, staging.node), staging.model_dump_json().encode())


def _transfer(work: _Work, shard: Shard) -> Transfer:
    began, started_at = time.monotonic(), datetime.now(UTC)
    fetched_bytes, reason = 0, ""
    try:
        arrival, fetched_bytes = _bring(work, shard)
    except FleetmarkError as e:
        arrival, reason = Arrival.FAILED, str(e)
        work.say(reason)
        work.meter.add(0)
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
        there = work.cache.checked(shard)
        if there:
            work.meter.add(shard.size_bytes, spared=True)
            return Arrival.PRESENT, 0
        if there is False:
            work.say(f"shard {shard.sha256[:12]} is damaged in the cache; it is put away and fetched again")
        if work.unreachable:  # before anything is evicted for it
            raise work.unreachable[0]
        with incoming.receiving(work.cache, shard, work.wanted, work.say) as partial:
            if partial is None:
                continue  # another process brought it: look at what it is
            try:
                fetched_bytes = _fetch(work, shard, partial)
            except (DamagedShard, KeyNotFound):
                incoming.discard(work.cache, shard)
                raise
            incoming.publish(work.cache, work.manifest.dataset, shard, partial)
            work.meter.add(0)
            return Arrival.RESUMED if fetched_bytes < shard.size_bytes else Arrival.FETCHED, fetched_bytes


def _fetch(work: _Work, shard: Shard, partial: Partial) -> int:
    """Complete a download, and flush it to the disk; how many bytes were fetched.

    Raises:
        DamagedShard: the store gives other bytes than the manifest says, twice.
        KeyNotFound, StoreUnreachable, StoreRefused.
    """
    whole = hashlib.sha256()
    blocks = list(shard.blocks)
    kept = _good_blocks(partial.descriptor, blocks, whole) if partial.is_begun else 0
    work.meter.add(_bytes(blocks[:kept]), 0, spared=True)
    with _Writer(partial.descriptor) as file:
        for (start, length, _), data in _blocks(work, shard, blocks[kept:]):
            whole.update(data)
            file.write(start, data)
            work.meter.add(length, 0)
    os.fdatasync(partial.descriptor)
    if whole.hexdigest() != shard.sha256:
        raise _damaged(work, shard, f"sha256 {shard.sha256}", f"sha256 {whole.hexdigest()}")
    return _bytes(blocks[kept:])


def _bytes(blocks: Sequence[Block]) -> int:
    return sum(length for _, length, _ in blocks)


def _good_blocks(descriptor: int, blocks: Sequence[Block], whole: Any) -> int:
    """How many blocks an earlier attempt left at the beginning; they are added to the hash of the whole."""
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    for number, (start, length, expected) in enumerate(blocks):
        try:
            data = os.pread(descriptor, length, start)
        except OSError:  # the disk does not give it back
            return number
        if digest(data) != expected:
            return number
        whole.update(data)
    return len(blocks)


def _blocks(work: _Work, shard: Shard, blocks: Sequence[Block]) -> Iterator[tuple[Block, memoryview]]:
    """Each block in turn, some of them on their way at once, and right."""
    key = names.shard_key(work.manifest.dataset, shard.sha256)
    left = iter(blocks)
    coming: deque[tuple[Block, Future[memoryview | None]]] = deque()

    def send() -> None:
        if (block := next(left, None)) is not None:
            coming.append((block, work.requests.submit(work.bulk.range, key, block[0], block[1])))

    for _ in range(_BLOCKS_AHEAD):
        send()
    try:
        while coming:
            if work.stopped.is_set():
                raise CancelledError
            block, answer = coming.popleft()
            send()
            yield block, _right(work, shard, block, answer)
    finally:
        for _, answer in coming:
            answer.cancel()


def _right(work: _Work, shard: Shard, block: Block, answer: Future[memoryview | None]) -> memoryview:
    """A block as it should be. One that was damaged on the way is asked for once more."""
    start, length, expected = block
    try:
        data = answer.result()
        if data is None or len(data) != length or digest(data) != expected:
            data = work.bulk.range(names.shard_key(work.manifest.dataset, shard.sha256), start, length)
    except StoreUnreachable as e:
        work.unreachable.append(e)
        raise
    if data is None or len(data) != length or (got := digest(data)) != expected:
        found = "nothing" if data is None else f"{len(data)} B" if len(data) != length else f"xxh3 {got}"
        raise _damaged(work, shard, f"xxh3 {expected} of {length} B at {start}", found)
    return data


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
        self._memory = memoryview(mmap.mmap(-1, _BUFFER_BYTES))  # aligned to a page, as O_DIRECT wants it

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        if self._direct is not None:
            os.close(self._direct)

    def write(self, start: int, data: memoryview) -> None:
        if self._direct is not None:
            while len(data) >= _ALIGNED:
                length = min(len(data) - len(data) % _ALIGNED, _BUFFER_BYTES)
                self._memory[:length] = data[:length]
                _write_all(self._direct, self._memory[:length], start)
                data, start = data[length:], start + length
        _write_all(self._descriptor, data, start)  # the end of the last block


def _write_all(descriptor: int, data: memoryview, start: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, start)
        data, start = data[written:], start + written
