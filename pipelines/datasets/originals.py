"""The files that shards of format tar and blob were made of, put together again bit-exact."""

import os
import threading
from contextlib import closing

import xxhash

from pipelines.datasets import catalog
from pipelines.datasets.manifest import Entry, Manifest
from pipelines.datasets.shardbytes import Content, Damage, Place, ShardBytes
from pipelines.datasets.target import Tally, Target, written

_PIECE_BYTES = 2**20


class Originals:
    """The files of a version on their way into a folder. Safe to use from several threads, a shard each."""

    def __init__(self, place: Place, of: Manifest, into: Target, tally: Tally) -> None:
        self.files = 0  # that are whole and in place
        self._place = place
        self._of = of
        self._into = into
        self._tally = tally
        self._lock = threading.Lock()
        self._cut = self._cut_files() if of.body.packing.format == "blob" else {}

    def put(self, number: int) -> None:
        """What lies in a shard into its files. Raises: see `download.download`."""
        shard, packing = self._of.body.shards[number], self._of.body.packing
        with closing(ShardBytes(self._place, self._of.dataset, shard)) as source:
            content = Content(source, packing.zstd_level is not None)
            for entry in catalog.index_of(self._place.store, self._of.dataset, shard):
                self._put(entry, content)

    def close(self) -> None:
        for file in self._cut.values():
            file.close()

    def _put(self, entry: Entry, content: Content) -> None:
        cut = self._cut.get(entry.path)
        file = cut or _File(self._into, entry.path, [entry])
        try:
            is_present, is_whole = file.put(entry, content)
        finally:
            if cut is None:
                file.close()
        self._tally.add(entry.length, 1, present=is_present)
        with self._lock:
            self.files += is_whole

    def _cut_files(self) -> dict[str, "_File"]:
        """Those that may lie in several shards: any other file of a blob is shorter than a range."""
        parts: dict[str, list[Entry]] = {}
        for shard in self._of.body.shards:
            for entry in catalog.index_of(self._place.store, self._of.dataset, shard):
                if entry.at or entry.length >= self._of.body.packing.shard_bytes:
                    parts.setdefault(entry.path, []).append(entry)
        return {path: _File(self._into, path, of_it) for path, of_it in parts.items()}


class _File:
    """A file that is put together from parts, which come in any order and from several threads."""

    def __init__(self, into: Target, path: str, parts: list[Entry]) -> None:
        self._into = into
        self._path = path
        self._parts = parts
        self._size_bytes = sum(part.length for part in parts)
        self._left = len(parts)
        self._lock = threading.Lock()
        self._is_there = False
        self._descriptor: int | None = None

    def put(self, part: Entry, content: Content) -> tuple[bool, bool]:
        """Whether the part was there already, and whether it was the last one that the file waited for."""
        with self._into.explained(self._path):
            with self._lock:
                if not self._is_there and self._descriptor is None:
                    self._begin()
            is_present = self._descriptor is None or _has(self._descriptor, part)
            if self._descriptor is not None and not is_present:
                self._write(self._descriptor, part, content)
            with self._lock:
                self._left -= 1
                if self._descriptor is not None and not self._left:
                    self._into.publish(self._path, self._descriptor, self._size_bytes)
                return is_present, not self._left

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _begin(self) -> None:
        with self._into.existing(self._path) as there:
            if there is not None and os.fstat(there).st_size == self._size_bytes:
                self._is_there = all(_has(there, part) for part in self._parts)
        if not self._is_there:
            self._descriptor = self._into.partial(self._path)

    def _write(self, descriptor: int, part: Entry, content: Content) -> None:
        digest, at = xxhash.xxh3_64(), part.at
        for piece in content.pieces(part.offset, part.length, _PIECE_BYTES):
            digest.update(piece)
            written(descriptor, piece, at)
            at += len(piece)
        if digest.hexdigest() != part.xxh3:
            expected = f"xxh3 {part.xxh3} of {part.path} from {part.at} on"
            raise content.source.damaged(Damage(expected, digest.hexdigest()))


def _has(descriptor: int, part: Entry) -> bool:
    """Whether the file has these bytes there."""
    digest, at, end = xxhash.xxh3_64(), part.at, part.at + part.length
    while at < end and (data := os.pread(descriptor, min(_PIECE_BYTES, end - at), at)):
        digest.update(data)
        at += len(data)
    return at == end and digest.hexdigest() == part.xxh3
