"""Folders of files to publish, what came out of a shard, and which files somebody opened."""

import ctypes
import io
import os
import random
import struct
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import zstandard

from pipelines.datasets import catalog, names, publish
from pipelines.datasets.manifest import Format, Manifest, Packing
from pipelines.datasets.publications import Request
from pipelines.settings import Settings
from pipelines.storage import Store, open_store

NOW = datetime(2026, 11, 21, 2, 0, tzinfo=UTC)
SHARD_BYTES = 2**16
TAR = Packing(format="tar", shard_bytes=SHARD_BYTES)
BLOB = Packing(format="blob", shard_bytes=SHARD_BYTES)

Tree = Mapping[str, bytes]


def tree(count: int, size_bytes: int = 4000, seed: int = 1) -> dict[str, bytes]:
    """Files of random bytes in four folders; every second one is the label of the one before."""
    chance = random.Random(seed)
    found = {}
    for number in range(0, count, 2):
        found[f"{number % 8 // 2}/{number:05d}.jpg"] = chance.randbytes(chance.randrange(2 * size_bytes))
        found[f"{number % 8 // 2}/{number:05d}.cls"] = str(number).encode()
    return found


def write(folder: Path, files: Tree) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def request(source: Path | str, packing: Packing = TAR, dataset: str = "photos", **more: str | None) -> Request:
    return Request(source=str(source), dataset=dataset, packing=packing, **more)


def published(settings: Settings, wanted: Request, at: datetime = NOW) -> Manifest:
    """Publish from beginning to end; picklable, for a process of its own."""
    return publish.publish(settings, open_store(settings), wanted, at, say=lambda _: None)


def packing_of(form: Format, zstd_level: int | None = None) -> Packing:
    return Packing(format=form, shard_bytes=SHARD_BYTES, zstd_level=zstd_level)


def shard_bytes(store: Store, of: Manifest, number: int) -> bytes:
    """A shard of a version, unpacked if it is compressed."""
    data = store.read(names.shard_key(of.dataset, of.body.shards[number].sha256))
    return zstandard.ZstdDecompressor().decompressobj().decompress(data) if of.body.packing.zstd_level else data


def extracted(store: Store, of: Manifest) -> dict[str, bytes]:
    """Every file of a version, as Python's own tarfile reads it from tar, else put together by the indexes."""
    found: dict[str, bytearray] = {}
    for number, shard in enumerate(of.body.shards):
        data = shard_bytes(store, of, number)
        if of.body.packing.format == "tar":
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                for member in archive.getmembers():
                    content = archive.extractfile(member)
                    assert content is not None
                    assert member.name not in found, f"{member.name} is there twice"
                    found[member.name] = bytearray(content.read())
            continue
        for entry in catalog.index_of(store, of.dataset, shard):
            file = found.setdefault(entry.path, bytearray())
            file.extend(bytes(max(0, entry.at + entry.length - len(file))))
            file[entry.at : entry.at + entry.length] = data[entry.offset : entry.offset + entry.length]
    return {path: bytes(content) for path, content in found.items()}


def stored(settings: Settings, pattern: str = "*") -> dict[str, bytes]:
    """Every file of a store that is a directory, by its path in it."""
    root = Path(settings.store_url.removeprefix("file://"))
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob(pattern) if path.is_file()}


@contextmanager
def opened(*folders: Path) -> Iterator[list[str]]:
    """The names of the files in these folders that any process opens before the block ends, as the kernel tells them.

    Source: inotify(7).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert descriptor >= 0, os.strerror(ctypes.get_errno())
    seen: list[str] = []
    try:
        for folder in folders:
            assert libc.inotify_add_watch(descriptor, os.fsencode(folder), _IN_OPEN) >= 0
        yield seen
        seen += _events(descriptor)
    finally:
        os.close(descriptor)


_IN_OPEN, _IN_Q_OVERFLOW, _IN_ISDIR = 0x20, 0x4000, 0x40000000
_EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name that follows


def _events(descriptor: int) -> Iterator[str]:
    while True:
        try:
            data = os.read(descriptor, 2**20)
        except BlockingIOError:
            return
        while data:
            _, mask, _, length = _EVENT.unpack_from(data)
            assert not mask & _IN_Q_OVERFLOW
            name = data[_EVENT.size : _EVENT.size + length].rstrip(b"\0")
            data = data[_EVENT.size + length :]
            if not mask & _IN_ISDIR:
                yield os.fsdecode(name)
