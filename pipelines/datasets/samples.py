"""The samples of one shard, in portions that are read together: of format tar, blob or parquet."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import Any, NamedTuple, Protocol

from pipelines.datasets import manifest
from pipelines.datasets.formats import tar
from pipelines.datasets.manifest import BLOCK_BYTES, BLOCK_DIGITS, Index, Packing
from pipelines.datasets.order import Portion
from pipelines.datasets.shardbytes import BlockFile, Content, Damage, ShardBytes
from pipelines.errors import AmbiguousSample, CorruptObject, NotInstalled

Sample = dict[str, Any]
KEY, AT, DATA = "__key__", "__at__", "data"

_ROWS_AT_ONCE = 1024  # made into Python's objects


class Samples(Protocol):
    """An open shard. `load` is called from several threads, unless the shard is to be read forward."""

    source: ShardBytes
    portions: list[Portion]

    @property
    def is_forward(self) -> bool:
        """Whether its portions are to be loaded in their order, one after the other."""

    def load(self, number: int) -> Any:
        """A portion's samples, checked; for `picked`. Raises: see `ShardBytes.checked`."""


def open_samples(source: ShardBytes, index: Index | None, packing: Packing, portion_bytes: int) -> Samples:
    """The samples of a shard; `index` is that of a tar or a blob.

    Raises:
        CorruptObject: there are not as many as the manifest says.
        NotInstalled: Parquet is read by pyarrow.
        DamagedShard, KeyNotFound, StoreUnreachable, StoreRefused: see `ShardBytes.checked`.
    """
    made: Samples = Rows(source, packing) if index is None else Files(source, index, packing, portion_bytes)
    if (count := sum(portion.samples for portion in made.portions)) != source.shard.samples:
        raise CorruptObject(source.url, f"its manifest says {source.shard.samples} samples, it has {count}")
    return made


def picked(loaded: Sequence[Any], places: Sequence[int]) -> Iterator[Sample]:
    """The samples at these places of what was loaded, counted through its portions."""
    if isinstance(loaded[0], list):
        flat: list[Sample] = [sample for portion in loaded for sample in portion]
        yield from (flat[place] for place in places)
        return
    pa = _arrow()
    rows = pa.concat_tables(loaded).combine_chunks()
    step = max(1, min(_ROWS_AT_ONCE, BLOCK_BYTES * len(rows) // max(1, rows.nbytes)))
    for start in range(0, len(places), step):
        yield from rows.take(pa.array(list(places[start : start + step]), pa.int64())).to_pylist()


class _Span(NamedTuple):
    """The files of a portion, and how many of them each of its samples has."""

    first: int
    files: int
    samples: tuple[int, ...]


class Files:
    """A shard of format tar or blob. What its index says is kept in columns: a shard may have 30,000 files."""

    def __init__(self, source: ShardBytes, index: Index, packing: Packing, portion_bytes: int) -> None:
        self.source = source
        self.is_forward = packing.zstd_level is not None
        self._is_tar = packing.format == "tar"
        self._content = Content(source, is_compressed=True) if self.is_forward else None
        self._paths = [entry.path for entry in index]
        self._at, self._offsets, self._lengths = (
            array("Q", (getattr(entry, name) for entry in index)) for name in ("at", "offset", "length")
        )
        self._digests = "".join(entry.xxh3 or "" for entry in index)
        self._spans = list(_spans(index, packing, portion_bytes))
        self.portions = [Portion(len(span.samples), self._range(span)[1]) for span in self._spans]

    def load(self, number: int) -> list[Sample]:
        span = self._spans[number]
        start, length = self._range(span)
        if self._content is None:
            data = self.source.checked(start, length, lambda data: self._damage(span, data))
        else:
            data = self._content.read(start, length)
            if (damage := self._damage(span, data)) is not None:
                raise self.source.damaged(damage)
        files = iter([(place, bytes(part)) for place, part in self._parts(span, data)])
        make = self._sample_of_tar if self._is_tar else self._sample_of_blob
        return [make(list(islice(files, count))) for count in span.samples]

    def _range(self, span: _Span) -> tuple[int, int]:
        last = span.first + span.files - 1
        start = self._offsets[span.first]
        return start, self._offsets[last] + self._lengths[last] - start

    def _parts(self, span: _Span, data: memoryview) -> Iterator[tuple[int, memoryview]]:
        base = self._offsets[span.first]
        for place in range(span.first, span.first + span.files):
            start = self._offsets[place] - base
            yield place, data[start : start + self._lengths[place]]

    def _damage(self, span: _Span, data: memoryview) -> Damage | None:
        for place, part in self._parts(span, data):
            expected = self._digests[place * BLOCK_DIGITS :][:BLOCK_DIGITS]
            if (got := manifest.digest(part)) != expected:
                return Damage(f"xxh3 {expected} of {self._paths[place]}", got)
        return None

    def _sample_of_tar(self, files: Iterable[tuple[int, bytes]]) -> Sample:
        sample: Sample = {}
        for place, data in files:
            path = self._paths[place]
            if not sample:
                sample[KEY] = tar.sample_key(path)
            ending = path.rpartition("/")[2].partition(".")[2]
            if ending in sample:
                raise AmbiguousSample(self.source.dataset, path, ending)
            sample[ending] = data
        return sample

    def _sample_of_blob(self, files: Iterable[tuple[int, bytes]]) -> Sample:
        ((place, data),) = files
        return {KEY: self._paths[place], AT: self._at[place], DATA: data}


def _spans(index: Index, packing: Packing, portion_bytes: int) -> Iterator[_Span]:
    """Runs of whole samples of about that size; a larger sample is one of its own."""
    is_tar = packing.format == "tar"
    first = place = begins = 0
    counts: list[int] = []
    for _, entries in groupby(index, lambda entry: tar.sample_key(entry.path) if is_tar else (entry.path, entry.at)):
        files = list(entries)
        if counts and files[-1].offset + files[-1].length - begins > portion_bytes:
            yield _Span(first, place - first, tuple(counts))
            first, counts = place, []
        if not counts:
            begins = files[0].offset
        counts.append(len(files))
        place += len(files)
    if counts:
        yield _Span(first, place - first, tuple(counts))


class Rows:
    """A shard of format parquet; a portion is a row group, and is kept as Arrow has it."""

    is_forward = True  # so that each block is fetched once

    def __init__(self, source: ShardBytes, packing: Packing) -> None:
        self.source = source
        self._file = _arrow().parquet.ParquetFile(BlockFile(source), pre_buffer=False)
        footer = self._file.metadata
        groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
        unpacked = min(BLOCK_BYTES, packing.shard_bytes)  # what a row group may take in memory, see formats.parquet
        self.portions = [Portion(group.num_rows, max(group.total_byte_size, unpacked)) for group in groups]

    def load(self, number: int) -> Any:
        return self._file.read_row_group(number, use_threads=False)


def _arrow() -> Any:
    """Raises: NotInstalled."""
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ModuleNotFoundError as e:
        raise NotInstalled("pyarrow", "tables") from e
    return pa
