"""Shards of format blob: ranges of files, one after the other; for model weights and other large files.

A file larger than a shard is cut at multiples of the shard's size, so that a file that grows at its end, or changes in
one place, changes one shard.
"""

from collections.abc import Iterable, Iterator

from pipelines.datasets.manifest import Entry
from pipelines.datasets.newfile import Sink
from pipelines.datasets.packing import Unit
from pipelines.datasets.source import Piece, ReadInto, SourceFile

_NOTHING = b"\0"  # what stands for empty files alone: no shard is empty, so that each has a block to check


def units(files: Iterable[SourceFile], shard_bytes: int) -> Iterator[Unit]:
    """A unit for each range of each file; an empty file is one, too."""
    for file in files:
        for start in range(0, max(1, file.size_bytes), shard_bytes):
            length = min(shard_bytes, file.size_bytes - start)
            yield Unit(Piece(file, start, length), weight=length, sample=f"{file.path}\0{start:020d}")


def pack(reading: Iterable[tuple[Piece, ReadInto]], into: Sink) -> Iterator[Entry]:
    """Write the pieces; yields what lies where."""
    offset = 0
    for piece, read in reading:
        xxh3 = into.fill(piece.length, read)
        yield Entry(path=piece.file.path, at=piece.start, offset=offset, length=piece.length, xxh3=xxh3)
        offset += piece.length
    if not offset:
        into.write(_NOTHING)
