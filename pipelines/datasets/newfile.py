"""A new file that nobody sees until it is whole, hashed as it is written, past the page cache where that works."""

import fcntl
import hashlib
import mmap
import os
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import xxhash
import zstandard

from pipelines.datasets.manifest import BLOCK_BYTES
from pipelines.errors import StoreRefused

_BUFFER_BYTES = 2**19  # stays in the processor's cache between hashing and writing; divides BLOCK_BYTES
_ALIGNED = 4096  # a multiple of every disk's logical block (open(2), O_DIRECT)


@dataclass(frozen=True)
class Written:
    """A finished file's identity."""

    sha256: str
    size_bytes: int
    xxh3: str  # of each block, see manifest.Shard


class Sink(Protocol):
    """What a format writes a shard to."""

    def write(self, data: bytes | memoryview) -> int:
        """Append `data`; returns its length, as a binary file does."""

    def fill(self, length: int, read: Callable[[memoryview], int]) -> str:
        """Append `length` bytes that `read` puts into the buffers it is given, as readinto does; their xxh3_64.

        Raises:
            EOFError: `read` came to its end before that.
        """


class NewFile:
    """Bytes go in through `write` or `fill`; `finish` flushes them to the disk and gives the hashes.

    There are two buffers: while one is filled and hashed, a thread writes the other.
    """

    def __init__(self, descriptor: int, path: str, is_direct: bool, is_kept: bool) -> None:
        self.path = path  # for a link or a copy while it is open
        self._descriptor = descriptor
        self._is_direct = is_direct
        self._is_kept = is_kept
        self.size_bytes = 0  # so far
        self._memory = mmap.mmap(-1, 2 * _BUFFER_BYTES)  # aligned to a page, as O_DIRECT wants it
        self._buffer = memoryview(self._memory)[:_BUFFER_BYTES]
        self._other = memoryview(self._memory)[_BUFFER_BYTES:]
        self._used = 0
        self._thread = ThreadPoolExecutor(1)
        self._flushing: Future[None] | None = None
        self._sha256 = hashlib.sha256()
        self._block = xxhash.xxh3_64()
        self._blocks: list[str] = []

    def write(self, data: bytes | memoryview) -> int:
        if isinstance(data, bytes) and len(data) < _BUFFER_BYTES - self._used:  # most often the header of a small file
            self._buffer[self._used : self._used + len(data)] = data
            self._advance(len(data))
            return len(data)
        left = memoryview(data).cast("B")
        while left:
            taken = min(len(left), _BUFFER_BYTES - self._used)
            self._buffer[self._used : self._used + taken] = left[:taken]
            self._advance(taken)
            left = left[taken:]
        return len(data)

    def fill(self, length: int, read: Callable[[memoryview], int]) -> str:
        digest = xxhash.xxh3_64()
        while length:
            space = self._buffer[self._used : self._used + length]  # a slice ends with the buffer
            count = read(space)
            if not count:
                raise EOFError
            digest.update(space[:count])
            self._advance(count)
            length -= count
        return digest.hexdigest()

    def finish(self) -> Written:
        """Everything is on the disk when this returns, if it is to be kept."""
        if self._used:
            self._flush()
        self._settle()
        if self._is_kept:
            os.fdatasync(self._descriptor)
        if self.size_bytes % BLOCK_BYTES:
            self._blocks.append(self._block.hexdigest())
        return Written(self._sha256.hexdigest(), self.size_bytes, "".join(self._blocks))

    def stop(self) -> None:
        """Nothing is being written any more when this returns, whatever happened."""
        self._thread.shutdown()

    def release(self) -> None:
        self._buffer.release()
        self._other.release()
        self._memory.close()

    def _advance(self, count: int) -> None:
        self._used += count
        self.size_bytes += count
        if self._used == _BUFFER_BYTES:
            self._flush()

    def _flush(self) -> None:
        """Hand the buffer over and go on in the other one, when it is free."""
        data = self._buffer[: self._used]
        self._sha256.update(data)
        self._block.update(data)
        if self.size_bytes % BLOCK_BYTES == 0:
            self._blocks.append(self._block.hexdigest())
            self._block.reset()
        self._settle()
        self._flushing = self._thread.submit(self._append, data)
        self._used = 0
        self._buffer, self._other = self._other, self._buffer

    def _settle(self) -> None:
        if self._flushing is not None:
            self._flushing.result()

    def _append(self, data: memoryview) -> None:
        """In the thread."""
        if self._is_direct and len(data) % _ALIGNED:  # the end: the last bytes go through the page cache
            flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        while data:
            written = os.write(self._descriptor, data)
            data = data[written:]


class Compressed:
    """A sink that hands zstd on. One frame, one thread: the same bytes from the same release of zstd."""

    def __init__(self, into: Sink, level: int) -> None:
        self._into = into
        self._compressor = zstandard.ZstdCompressor(level, write_checksum=True).compressobj()
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))

    def write(self, data: bytes | memoryview) -> int:
        self._into.write(self._compressor.compress(data))
        return len(data)

    def fill(self, length: int, read: Callable[[memoryview], int]) -> str:
        digest = xxhash.xxh3_64()
        while length:
            count = read(self._buffer[:length])
            if not count:
                raise EOFError
            digest.update(self._buffer[:count])
            self.write(self._buffer[:count])
            length -= count
        return digest.hexdigest()

    def finish(self) -> None:
        self._into.write(self._compressor.flush())


@contextmanager
def new_file(folder: Path, is_kept: bool = True) -> Iterator[NewFile]:
    """A file in `folder` that is gone at the end of the block, unless it was linked elsewhere.

    One that `is_kept` is to be linked. Another is read again at once: it stays in the page cache and need not reach
    the disk.

    It has no name (open(2), O_TMPFILE), so that a killed process leaves nothing; where the filesystem cannot do that
    (NFS), one that begins with `.tmp-`.

    Raises:
        StoreRefused: the folder's disk is full, or does not let us write.
    """
    name = folder / f".tmp-{uuid.uuid4().hex}"
    try:
        descriptor, is_direct, is_named = _open(folder, name, is_kept)
        try:
            path = str(name) if is_named else f"/proc/self/fd/{descriptor}"
            file = NewFile(descriptor, path, is_direct, is_kept)
            try:
                yield file
            finally:
                file.stop()
            file.release()
        finally:
            os.close(descriptor)
            if is_named:
                name.unlink(missing_ok=True)
    except OSError as e:
        raise StoreRefused(str(folder), e.strerror or str(e)) from e


def _open(folder: Path, name: Path, is_kept: bool) -> tuple[int, bool, bool]:
    """The descriptor; whether it is direct, which tmpfs before Linux 6.6 cannot; and whether it has the name."""
    flags = os.O_RDWR | os.O_CLOEXEC
    for nameless, direct in ((True, is_kept), (True, False), (False, is_kept)):
        how = flags | (os.O_TMPFILE if nameless else os.O_CREAT | os.O_EXCL) | (os.O_DIRECT if direct else 0)
        with suppress(OSError):
            return os.open(folder if nameless else name, how, 0o644), direct, not nameless
    return os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o644), False, True
