"""One pass over a part of an epoch: shards are opened and their portions loaded while earlier ones are served."""

import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from pipelines.datasets import catalog
from pipelines.datasets.manifest import Manifest
from pipelines.datasets.order import HELD_BYTES, Order, Round, Window
from pipelines.datasets.samples import Sample, Samples, open_samples, picked
from pipelines.datasets.shardbytes import Place, ShardBytes

_THREADS = 8  # requests at once: what a store that is some milliseconds away wants
_INDEXES_AT_ONCE = 2  # a large one is 25 MB while it is read
_SHARDS_AHEAD = 8  # being opened, or the next window where it has more


@dataclass(frozen=True)
class _Planned:
    """A round, and which of its samples are wanted: from `start` to before `end` of their order."""

    window: Window
    shards: Sequence[Samples]
    round: Round
    start: int
    end: int
    is_last: bool  # of its window

    @property
    def size_bytes(self) -> int:
        return self.round.size_bytes


class Pass:
    """What one iteration holds open."""

    def __init__(self, place: Place, manifest: Manifest, how: Order, epoch: int) -> None:
        self._place = place
        self._manifest = manifest
        self._order = how
        self._epoch = epoch
        self._counts = [shard.samples for shard in manifest.body.shards]
        self._indexing = threading.Semaphore(_INDEXES_AT_ONCE)
        self._lock = threading.Lock()
        self._sources: set[ShardBytes] = set()
        self._loaded: dict[Samples, threading.Event] = {}  # set when the portion asked for last is there

    def samples(self, first: int, end: int) -> Generator[Sample, None, None]:
        """The samples from `first` to before `end`. Raises: see `ShardBytes.checked`, `open_samples`."""
        pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="dataset-reader")
        try:
            with closing(self._rounds(pool, first, end)) as rounds:
                yield from self._served_ahead(pool, rounds)
        finally:
            pool.shutdown(cancel_futures=True)
            for source in self._sources:
                source.close()

    def _served_ahead(self, pool: ThreadPoolExecutor, rounds: Iterator[_Planned]) -> Iterator[Sample]:
        waiting: deque[tuple[_Planned, list[Future[Any]]]] = deque()
        held = 0
        for planned in rounds:
            while len(waiting) > 1 and held + planned.size_bytes > HELD_BYTES:
                held -= waiting[0][0].size_bytes
                yield from self._served(*waiting.popleft())
            waiting.append((planned, self._loading(pool, planned)))
            held += planned.size_bytes
        while waiting:
            yield from self._served(*waiting.popleft())

    def _served(self, planned: _Planned, loading: list[Future[Any]]) -> Iterator[Sample]:
        places = self._order.inside(self._epoch, planned.window, planned.round)[planned.start : planned.end]
        loaded = [future.result() for future in loading]
        loading.clear()
        yield from picked(loaded, places)
        if planned.is_last:
            self._close(planned.shards)

    def _loading(self, pool: ThreadPoolExecutor, planned: _Planned) -> list[Future[Any]]:
        return [self._load(pool, planned.shards[shard], portion) for shard, portion in planned.round.portions]

    def _load(self, pool: ThreadPoolExecutor, shard: Samples, portion: int) -> Future[Any]:
        if not shard.is_forward:
            return pool.submit(shard.load, portion)
        before, done = self._loaded.get(shard), threading.Event()
        self._loaded[shard] = done

        def load() -> Any:
            try:
                if before is not None:
                    before.wait()  # it was asked for earlier, and what was asked for earlier is begun earlier
                return shard.load(portion)
            finally:
                done.set()

        return pool.submit(load)

    def _rounds(self, pool: ThreadPoolExecutor, first: int, end: int) -> Generator[_Planned, None, None]:
        for window, shards in self._windows(pool, first, end):
            portions = [shard.portions for shard in shards]
            rounds = self._order.rounds(self._epoch, window, portions, shards[0].is_forward)
            parts = [
                (each, max(first - window.first - each.first, 0), min(end - window.first - each.first, each.samples))
                for each in rounds
            ]
            wanted = [part for part in parts if part[1] < part[2]]
            for each, start, its_end in wanted:
                yield _Planned(window, shards, each, start, its_end, is_last=each is wanted[-1][0])

    def _windows(self, pool: ThreadPoolExecutor, first: int, end: int) -> Iterator[tuple[Window, list[Samples]]]:
        """Each window with its shards open; meanwhile some more are opened."""
        coming: deque[tuple[Window, list[Future[Samples]]]] = deque()
        for window in self._order.windows(self._epoch, self._counts, first, end):
            coming.append((window, [pool.submit(self._opened, shard) for shard in window.shards]))
            if len(coming) > max(1, _SHARDS_AHEAD // len(window.shards)):
                yield _open(*coming.popleft())
        while coming:
            yield _open(*coming.popleft())

    def _opened(self, number: int) -> Samples:
        body = self._manifest.body
        source = ShardBytes(self._place, body.dataset, body.shards[number])
        with self._lock:
            self._sources.add(source)
        if body.packing.format == "parquet":
            return open_samples(source, None, body.packing, self._order.portion_bytes)
        with self._indexing:
            index = catalog.index_of(self._place.store, body.dataset, source.shard)
            return open_samples(source, index, body.packing, self._order.portion_bytes)

    def _close(self, shards: Sequence[Samples]) -> None:
        for shard in shards:
            self._loaded.pop(shard, None)
            shard.source.close()
            with self._lock:
                self._sources.discard(shard.source)


def _open(window: Window, opening: list[Future[Samples]]) -> tuple[Window, list[Samples]]:
    return window, [future.result() for future in opening]
