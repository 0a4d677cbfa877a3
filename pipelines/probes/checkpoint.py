"""Save and restore a checkpoint in the working directory: `checkpoint --writers=N --size=BYTES [--direct=1]`.

Save: each writer writes a shard of its own and has it durable; then the directory is, it is renamed into place, and the
rename is durable. Restore: each shard is read by a reader of its own, after its bytes were put out of memory; where
they stay there, past the page cache. What was restored is checked after the clock has stopped.
"""

import json
import mmap
import os
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import xxhash

from pipelines import page_cache

_CHUNK_BYTES = 4 * 2**20  # of one write and one read
_POOL_BYTES = 16 * 2**20
_STRIDE = 4099  # a prime: no multiple of any block size
_BEING_WRITTEN, _SAVED = "checkpoint.tmp", "checkpoint"


@dataclass(frozen=True)
class _Shard:
    """A writer's file. Its bytes are windows into random ones, made before the clock starts.

    /dev/urandom gives 0.5 GB/s, less than a disk takes, so 16 MiB are used over and over; but each write begins at
    another odd offset, so that no two 4 KiB blocks of 16 GiB are equal: a drive can neither compress them nor store
    them once.
    """

    name: str
    size_bytes: int
    pool: memoryview

    def chunks(self) -> Iterator[memoryview]:
        for number, start in enumerate(range(0, self.size_bytes, _CHUNK_BYTES)):
            offset = number * _STRIDE % _POOL_BYTES
            yield self.pool[offset : offset + min(_CHUNK_BYTES, self.size_bytes - start)]


def main(argv: Sequence[str]) -> int:
    parser = ArgumentParser(prog="fleetmark-probe checkpoint")
    parser.add_argument("--writers", type=int, required=True)
    parser.add_argument("--size", type=int, required=True, help="bytes of each writer's shard")
    parser.add_argument("--direct", type=int, default=0, help="1: the filesystem takes O_DIRECT")
    asked = parser.parse_args(argv)
    try:
        print(json.dumps(measured(Path.cwd(), asked.writers, asked.size, bool(asked.direct))))
    except (OSError, ValueError) as e:
        print(f"checkpoint: {e}", file=sys.stderr)
        return 1
    return 0


def measured(folder: Path, writers: int, size_bytes: int, direct_io: bool) -> dict[str, object]:
    """One save and one restore in an empty directory, as the document says it.

    Raises:
        OSError: the disk is full, or it fails.
        ValueError: what was restored is not what was saved.
    """
    shards = [
        _Shard(f"shard-{number:05}", size_bytes, memoryview(os.urandom(_POOL_BYTES + _CHUNK_BYTES)))
        for number in range(writers)
    ]
    with ThreadPoolExecutor(writers) as pool:
        save_s, sync_s = _save(folder, shards, pool)
        paths = [folder / _SAVED / shard.name for shard in shards]
        cache = _forgotten(paths, direct_io)
        restore_s = _timed(lambda: list(pool.map(_read_direct if cache == "bypassed" else _read, paths)))
        for shard, right in zip(shards, pool.map(_is_right, shards, paths), strict=True):
            if not right:
                raise ValueError(f"{shard.name} was restored with other bytes than it was saved with")
    return {
        "probe": "checkpoint",
        "writers": writers,
        "size_bytes": size_bytes,
        "save_s": save_s,
        "sync_s": sync_s,
        "restore_s": restore_s,
        "cache": cache,
    }


def _save(folder: Path, shards: Sequence[_Shard], pool: ThreadPoolExecutor) -> tuple[float, float]:
    """Seconds from the first write to the durable rename, and how many of them were after the last write."""
    began = time.perf_counter()
    temporary = folder / _BEING_WRITTEN
    temporary.mkdir()
    written = list(pool.map(lambda shard: _write(temporary / shard.name, shard), shards))
    _sync_directory(temporary)
    temporary.rename(folder / _SAVED)
    _sync_directory(folder)
    ended = time.perf_counter()
    return ended - began, ended - max(written)


def _write(path: Path, shard: _Shard) -> float:
    """When its last write had returned."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        for chunk in shard.chunks():
            left = chunk
            while left:
                left = left[os.write(descriptor, left) :]
        written = time.perf_counter()
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return written


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _forgotten(paths: Sequence[Path], direct_io: bool) -> str:
    """`dropped`: they are not in memory; `bypassed`: they are, and are read past it; `warm`: they are read there."""
    if page_cache.forget(paths):
        return "dropped"
    return "bypassed" if direct_io and page_cache.is_all(paths[0]) else "warm"


def _read(path: Path) -> None:
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def _read_direct(path: Path) -> None:
    """O_DIRECT wants aligned memory (open(2)); at the end of a file it gives what is left."""
    with mmap.mmap(-1, _CHUNK_BYTES) as aligned:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            while os.readv(descriptor, [aligned]):
                pass
        finally:
            os.close(descriptor)


def _is_right(shard: _Shard, path: Path) -> bool:
    """Whether the file has the bytes that were written: in memory is what restoring has read."""
    saved, restored = xxhash.xxh3_128(), xxhash.xxh3_128()
    for chunk in shard.chunks():
        saved.update(chunk)
    with path.open("rb", buffering=0) as file:
        while chunk := memoryview(file.read(_CHUNK_BYTES)):
            restored.update(chunk)
    return saved.digest() == restored.digest()


def _timed(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began
