"""The stored bytes of one shard, from the node's cache where it has them, else from the store; all of them checked."""

import io
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any, NamedTuple, Protocol

import zstandard

from pipelines.bulk import Bulk
from pipelines.datasets import manifest, names
from pipelines.datasets.manifest import BLOCK_BYTES, BLOCK_DIGITS, Shard
from pipelines.errors import CacheUnusable, DamagedShard
from pipelines.storage import Store

_MOST_UNPACKED = 2**15  # times: a zstd block of 4 bytes may stand for 128 KiB, RFC 8878, 3.1.1.2
_ATTEMPTS = 2  # at the store, before its answer is believed to be what it has


class NodeCache(Protocol):
    """What is asked of a node's cache."""

    def open(self, shard: Shard) -> IO[bytes] | None:
        """The shard's file, which stays as long as it is open; None where the cache has it not."""

    def quarantine(self, sha256: str) -> None:
        """Put a damaged shard away, so that nobody is given it again."""


class Damage(NamedTuple):
    """What is wrong with some bytes."""

    expected: str
    got: str


Check = Callable[[memoryview], Damage | None]


def _nobody(sha256: str) -> None:
    del sha256


@dataclass(frozen=True)
class Place:
    """Where shards are read from, and who is told of one that was damaged in the cache."""

    store: Store
    bulk: Bulk
    cache: NodeCache | None = None
    report: Callable[[str], None] = _nobody


class ShardBytes:
    """Safe to use from several threads. A cached file with a wrong byte is quarantined and not looked at again."""

    def __init__(self, place: Place, dataset: str, shard: Shard) -> None:
        self.shard = shard
        self.dataset = dataset
        self.key = names.shard_key(dataset, shard.sha256)
        self.url = place.store.url(self.key)
        self._place = place
        self._lock = threading.Lock()
        self._file = place.cache.open(shard) if place.cache else None
        self._is_trusted = self._file is not None

    def checked(self, start: int, length: int, check: Check) -> memoryview:
        """A range of the stored bytes in which `check` finds no damage.

        Raises:
            DamagedShard: the store has other bytes, too.
            KeyNotFound: the store has not this shard.
            StoreUnreachable, StoreRefused.
        """
        if self._is_trusted:
            if (data := self._cached(start, length)) is not None and _damage(data, start, length, check) is None:
                return data
            self._distrust()
        for attempt in range(1, _ATTEMPTS + 1):
            data = (self._place.bulk.range(self.key, start, length) if length else None) or memoryview(b"")
            if (damage := _damage(data, start, length, check)) is None:
                return data
            if attempt == _ATTEMPTS:
                raise self.damaged(damage)
        raise AssertionError("the last attempt returns or raises")

    def block(self, number: int) -> memoryview:
        """A block as the manifest has it. Raises: see `checked`."""
        start = number * BLOCK_BYTES
        expected = self.shard.xxh3[number * BLOCK_DIGITS :][:BLOCK_DIGITS]

        def check(data: memoryview) -> Damage | None:
            got = manifest.digest(data)
            return None if got == expected else Damage(f"xxh3 {expected} of the block at {start}", got)

        return self.checked(start, min(BLOCK_BYTES, self.shard.size_bytes - start), check)

    def damaged(self, damage: Damage) -> DamagedShard:
        return DamagedShard(self.dataset, self.shard.sha256, self.url, *damage)

    def close(self) -> None:
        """Nobody may be reading any more."""
        if self._file is not None:
            self._file.close()

    def _cached(self, start: int, length: int) -> memoryview | None:
        """What the file has there; None when the disk does not give it."""
        if self._file is None:
            return None
        data = memoryview(bytearray(length))
        done = 0
        try:
            while done < length and (count := os.preadv(self._file.fileno(), [data[done:]], start + done)):
                done += count
        except OSError:
            return None
        return data[:done]

    def _distrust(self) -> None:
        with self._lock:
            if not self._is_trusted:
                return
            self._is_trusted = False
            if self._place.cache is not None:
                with suppress(CacheUnusable):  # where the disk takes no writes it stays, and others notice as we did
                    self._place.cache.quarantine(self.shard.sha256)
        self._place.report(self.shard.sha256)


def _damage(data: memoryview, start: int, length: int, check: Check) -> Damage | None:
    return check(data) if len(data) == length else Damage(f"{length} B at {start}", f"{len(data)} B")


class BlockFile(io.RawIOBase):
    """A shard as a file to read and to seek in. It holds one block at a time."""

    def __init__(self, source: ShardBytes) -> None:
        self._source = source
        self._position = 0
        self._held = -1
        self._block = memoryview(b"")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._source.shard.size_bytes}[whence]
        self._position = origin + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, space: Any) -> int:
        number, within = divmod(self._position, BLOCK_BYTES)
        if self._position >= self._source.shard.size_bytes:
            return 0
        if number != self._held:
            self._held, self._block = -1, memoryview(b"")  # before the next is there: memory has place for one
            self._block = self._source.block(number)
            self._held = number
        data = self._block[within : within + len(space)]
        memoryview(space).cast("B")[: len(data)] = data
        self._position += len(data)
        return len(data)


class Content:
    """What was packed into a shard of format tar or blob, as one reads a file: front to back where it is compressed."""

    def __init__(self, source: ShardBytes, is_compressed: bool) -> None:
        self.source = source
        blocks: Any = BlockFile(source)
        self._is_compressed = is_compressed
        self._file = zstandard.ZstdDecompressor().stream_reader(blocks, read_size=2**17) if is_compressed else blocks
        self._position = 0

    def pieces(self, start: int, length: int, most_bytes: int) -> Iterator[memoryview]:
        """A range in pieces, each of which is overwritten by the next. It begins where the last one ended, or later.

        Raises:
            DamagedShard: see `ShardBytes.checked`, or it unpacks to less than its index says.
            KeyNotFound, StoreUnreachable, StoreRefused.
        """
        self._seek(start, most_bytes)
        space = memoryview(bytearray(min(length, most_bytes)))
        while length:
            count = self._into(space[:length])
            yield space[:count]
            length -= count

    def read(self, start: int, length: int) -> memoryview:
        """A range. Raises: see `pieces`."""
        most_bytes = self.source.shard.size_bytes * (_MOST_UNPACKED if self._is_compressed else 1)
        if length > most_bytes:  # memory for it is taken before the first byte is there
            raise self.source.damaged(Damage(f"a file of at most {most_bytes} B", f"an index that says {length} B"))
        self._seek(start, BLOCK_BYTES)
        data = memoryview(bytearray(length))
        done = 0
        while done < length:
            done += self._into(data[done:])
        return data

    def _seek(self, start: int, most_bytes: int) -> None:
        if not self._is_compressed:
            self._file.seek(start)
            self._position = start
        scratch = memoryview(bytearray(min(start - self._position, most_bytes)))
        while self._position < start:
            self._into(scratch[: start - self._position])

    def _into(self, space: memoryview) -> int:
        with self._explained():
            count = int(self._file.readinto(space))
        if not count:
            raise self.source.damaged(Damage("a file of its index", f"the end after {self._position} B"))
        self._position += count
        return count

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except zstandard.ZstdError as e:  # its blocks are those of the manifest: it was not packed as it should be
            raise self.source.damaged(Damage("a zstd frame", str(e))) from e
