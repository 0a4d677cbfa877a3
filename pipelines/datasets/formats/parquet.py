"""Shards of format parquet: rows of Parquet, CSV and JSON lines in one schema, as any reader of Parquet wants them.

A unit is a row group of a Parquet file, or a whole file of the others. What a group of units holds is written row
group by row group, so that its size does not matter; beyond the size aimed at, another shard is begun. The bytes
depend on the rows, the packing and the release of pyarrow, which stands in each shard as its writer.
"""

import io
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from pipelines.datasets.formats import columns, rows
from pipelines.datasets.manifest import Entry, Packing
from pipelines.datasets.newfile import Sink
from pipelines.datasets.packing import Unit
from pipelines.datasets.source import Piece, Source, SourceFile

if TYPE_CHECKING:
    from pipelines.datasets.pack import Contents, Part

_LOOKED_AT = 4  # files at once, in planning
_ROW_GROUP_ROWS = 122_880  # DuckDB's; larger ones make point queries slow
_ROW_GROUP_BYTES = 8 * 2**20  # in memory: what a writer holds, with about as much encoded
_ZSTD_LEVEL = 3  # zstd's own default
_SLACK = 1.5  # times the size aimed at: a group that was planned as one shard and comes out larger is still one


class RowGroup(NamedTuple):
    """Rows that are written together, and which pieces they are of."""

    batches: list[Any]
    spans: list[tuple[Piece, int]]  # rows of each

    @property
    def rows(self) -> int:
        return sum(rows for _, rows in self.spans)


def units(source: Source) -> Iterator[Unit]:
    """A unit for each row group of Parquet files, and for each CSV or JSON lines file. Raises: see `rows.described`."""
    for file, found in _ahead(partial(rows.described, source), source.files()):
        for number, size in enumerate(found.sizes or (0,)):
            text = "" if number else columns.written(found.schema)
            yield Unit(Piece(file, number, size), size, sample=f"{file.path}\0{number:020d}", columns=text)


def parts(source: Source, pieces: Sequence[Piece], packing: Packing, schema: str) -> Iterator["Part"]:
    """Writers of the shards of a group, to be called one after the other. Raises, when called: see `rows.reading`."""
    wanted = columns.read(schema)
    planned = sum(piece.length for piece in pieces)
    full_bytes = int(packing.shard_bytes * (_SLACK if planned <= _SLACK * packing.shard_bytes else 1))
    with closing(_row_groups(rows.reading(source, pieces, wanted), min(_ROW_GROUP_BYTES, packing.shard_bytes))) as made:
        coming = _Coming(made)
        while coming.first is not None:
            yield partial(_pack, coming, wanted, packing.zstd_level or _ZSTD_LEVEL, full_bytes)


def _ahead(
    look: Callable[[SourceFile], rows.Described], files: Iterable[SourceFile]
) -> Iterator[tuple[SourceFile, rows.Described]]:
    """Each file and what `look` says, a few of them looked at in advance."""
    waiting: deque[tuple[SourceFile, Future[rows.Described]]] = deque()
    with ThreadPoolExecutor(_LOOKED_AT) as pool:
        try:
            for file in files:
                waiting.append((file, pool.submit(look, file)))
                if len(waiting) > 2 * _LOOKED_AT:
                    first, found = waiting.popleft()
                    yield first, found.result()
            while waiting:
                first, found = waiting.popleft()
                yield first, found.result()
        finally:
            for _, found in waiting:
                found.cancel()


def _row_groups(reading: Iterable[tuple[Piece, Iterator[Any]]], full_bytes: int) -> Generator[RowGroup, None, None]:
    """The rows of all pieces, in portions that depend on nothing but the rows and how they were read."""
    batches: list[Any] = []
    spans: list[tuple[Piece, int]] = []
    count = size_bytes = 0
    for piece, its_rows in reading:
        spans.append((piece, 0))  # so that an empty one is in the index, too
        for batch in its_rows:
            for part in _slices(batch, full_bytes):
                if count and (count + len(part) > _ROW_GROUP_ROWS or size_bytes + part.nbytes > full_bytes):
                    yield RowGroup(batches, spans)
                    batches, spans, count, size_bytes = [], [], 0, 0
                batches.append(part)
                spans.append((piece, len(part)))
                count += len(part)
                size_bytes += part.nbytes
    if spans:
        yield RowGroup(batches, spans)


def _slices(batch: Any, most_bytes: int) -> Iterator[Any]:
    """Parts of a batch that are about so large at most."""
    step = max(1, min(_ROW_GROUP_ROWS, len(batch) * most_bytes // max(1, batch.nbytes)))
    for start in range(0, len(batch), step):
        yield batch.slice(start, step)


class _Coming:
    """The row groups that are not written yet."""

    def __init__(self, row_groups: Iterator[RowGroup]) -> None:
        self._row_groups = row_groups
        self.first = next(row_groups, None)

    def take(self) -> None:
        self.first = None  # before the next is made: memory has place for one
        self.first = next(self._row_groups, None)


def _pack(coming: _Coming, schema: Any, zstd_level: int, full_bytes: int, into: Sink) -> "Contents":
    """Write one shard; what is left over stays in `coming`."""
    from pipelines.datasets.pack import Contents

    file = _Appending(into)
    spans: list[tuple[Piece, int]] = []
    footers: list[Any] = []
    with _writing(file, schema, zstd_level, footers) as write:
        while coming.first is not None:
            row_group = coming.first
            if row_group.rows:
                if file.size_bytes >= full_bytes:
                    break
                write(row_group)
            spans.extend(row_group.spans)
            del row_group
            coming.take()
    entries = tuple(_entries(spans))
    (footer,) = footers
    plain_bytes = sum(footer.row_group(number).total_byte_size for number in range(footer.num_row_groups))
    return Contents(entries, footer.num_rows, plain_bytes)


@contextmanager
def _writing(
    file: "_Appending", schema: Any, zstd_level: int, footers: list[Any]
) -> Iterator[Callable[[RowGroup], None]]:
    """Writes row groups; all that shapes the bytes is said here. The finished file's metadata is put into `footers`."""
    pa = columns.arrow()
    writer = pa.parquet.ParquetWriter(
        file, schema, version="2.6", data_page_version="1.0", use_dictionary=True, write_statistics=True,
        compression="zstd", compression_level=zstd_level, store_schema=True, metadata_collector=footers,
    )  # fmt: skip
    try:
        yield lambda of: writer.write_table(pa.Table.from_batches(of.batches, schema), of.rows)
    except BaseException:
        with suppress(RuntimeError, OSError, pa.ArrowException):  # what went wrong first is what matters
            writer.close()
        raise
    writer.close()


def _entries(spans: Iterable[tuple[Piece, int]]) -> Iterator[Entry]:
    offset = 0
    for piece, its_spans in groupby(spans, lambda span: span[0]):
        length = sum(rows for _, rows in its_spans)
        yield Entry(path=piece.file.path, at=piece.start, offset=offset, length=length)
        offset += length


class _Appending(io.RawIOBase):
    """A sink as the file that Arrow wants."""

    def __init__(self, into: Sink) -> None:
        self._into = into
        self.size_bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        count = self._into.write(data)
        self.size_bytes += count
        return count
