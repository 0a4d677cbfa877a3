"""A group of source files becomes shards in the store: read once, hashed on the way, verified, then seen."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from pipelines.bulk import Bulk
from pipelines.datasets import manifest, names
from pipelines.datasets.formats import blob, tar
from pipelines.datasets.manifest import Entry, Packing, Shard
from pipelines.datasets.newfile import Compressed, NewFile, Sink, new_file
from pipelines.datasets.packing import Groups, Unit
from pipelines.datasets.source import Piece, Source, SourceFile
from pipelines.errors import CorruptObject, KeyNotFound, SourceChanged
from pipelines.storage import Store


class Contents(NamedTuple):
    """What was written into one shard."""

    entries: Sequence[Entry]
    samples: int
    content_bytes: int


Part = Callable[[Sink], Contents]
"""Writes one shard of a group."""


@dataclass(frozen=True)
class Place:
    """Where shards go."""

    store: Store
    bulk: Bulk
    work: Path  # folder for shards on their way to a store that is not a directory
    reads_back: bool = True  # what was uploaded, to compare it


def units_of(source: Source, packing: Packing) -> Iterator[Unit]:
    """What is to be packed. Raises: SourceRefused: see `Source.files`; a format refuses files it cannot read."""
    if packing.format == "tar":
        return tar.units(source.files())
    if packing.format == "blob":
        return blob.units(source.files(), packing.shard_bytes)
    from pipelines.datasets.formats import parquet

    return parquet.units(source)


def columns_of(source_url: str, groups: Groups) -> str | None:
    """The columns of all shards to be, where the format has such. Raises: SourceRefused: files do not go together."""
    found = list(groups.columns)
    if not found:
        return None
    from pipelines.datasets.formats import columns

    return columns.unified(source_url, found)


def pack_group(
    place: Place, dataset: str, source: Source, pieces: Sequence[Piece], packing: Packing, columns: str | None
) -> tuple[Shard, ...]:
    """Write the shards of a group, and their indexes, unless the store has them. Safe to repeat and to race.

    Raises:
        SourceChanged, SourceRefused: see `Source.reading`; the group leaves nothing behind.
        CorruptObject: what was uploaded did not read back the same, twice.
        StoreRefused, StoreUnreachable: the store, or the disk of the work folder, does not take it.
    """
    return tuple(_write(place, dataset, part) for part in _parts(source, pieces, packing, columns))


def _parts(source: Source, pieces: Sequence[Piece], packing: Packing, columns: str | None) -> Iterator[Part]:
    if columns is not None:
        from pipelines.datasets.formats import parquet

        return parquet.parts(source, pieces, packing, columns)
    return iter([lambda into: _stream(source, pieces, packing, into)])


def _stream(source: Source, pieces: Sequence[Piece], packing: Packing, into: Sink) -> Contents:
    """The one shard of a format that is a stream of its pieces."""
    compressed = Compressed(into, packing.zstd_level) if packing.zstd_level else None
    form = tar if packing.format == "tar" else blob
    entries: list[Entry] = []
    with closing(source.reading(pieces)) as reading:
        try:
            entries.extend(form.pack(reading, compressed or into))
        except EOFError as e:
            file: SourceFile = pieces[len(entries)].file
            source.check(file)
            raise SourceChanged(f"{source.url}: {file.path}", f"{file.size_bytes} B", "fewer") from e
    if compressed:
        compressed.finish()
    samples = sum(1 for _ in groupby(entries, _sample_of(packing)))
    return Contents(entries, samples, sum(entry.length for entry in entries))


def _sample_of(packing: Packing) -> Callable[[Entry], object]:
    if packing.format == "tar":
        return lambda entry: tar.sample_key(entry.path)
    return lambda entry: (entry.path, entry.at)


def _write(place: Place, dataset: str, part: Part) -> Shard:
    key_like = names.shard_key(dataset, "0" * 64)  # any shard's: they share a folder
    folder = place.bulk.folder_for(key_like)
    with new_file(folder or place.work, is_kept=folder is not None) as file:
        contents = part(file)
        written = file.finish()
        sha256, index = manifest.write_index(contents.entries)
        shard = Shard(
            **vars(written),
            index=sha256,
            files=len(contents.entries),
            samples=contents.samples,
            content_bytes=contents.content_bytes,
        )
        _store(place, dataset, shard, file)
    place.store.create(names.index_key(dataset, shard.index), index)
    return shard


def _store(place: Place, dataset: str, shard: Shard, file: NewFile) -> None:
    key = names.shard_key(dataset, shard.sha256)
    for attempt in (1, 2):
        there = place.bulk.size(key)
        if there == shard.size_bytes:
            return  # stored once, whatever version it came with
        if there is not None:
            place.store.delete(key)  # a shard cut short: it has its name wrongly
        place.bulk.adopt(key, file.path)
        if place.store.is_local or not place.reads_back:
            return
        try:
            verify(place.bulk, dataset, shard)
        except (CorruptObject, KeyNotFound):
            place.store.delete(key)
            if attempt == 2:
                raise
        else:
            return


def verify(bulk: Bulk, dataset: str, shard: Shard) -> None:
    """Read a stored shard and compare each of its blocks.

    Raises:
        KeyNotFound: it is not there.
        CorruptObject: it has other bytes, or fewer, than were written.
    """
    key = names.shard_key(dataset, shard.sha256)
    for start, length, expected in shard.blocks:
        data = bulk.range(key, start, length)
        if data is None:
            raise KeyNotFound(key)
        if len(data) != length or (got := manifest.digest(data)) != expected:
            found = f"{len(data)} B" if len(data) != length else f"xxh3 {got}"
            raise CorruptObject(key, f"block at {start}: expected {length} B with xxh3 {expected}, got {found}")
