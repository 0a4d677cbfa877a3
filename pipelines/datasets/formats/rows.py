"""Rows of source files as Arrow record batches: of Parquet row groups, CSV and JSON lines; and what columns they have.

Every read goes through `Source.reading`, so that each range is compared with the file as it was listed. Parquet says
its types. CSV and JSON lines do not: they are what pyarrow takes the first 2 MiB for, and a later row that has
something else is an error, never a guess.

- CSV: RFC 4180 with a header. A field with nothing in it is null, one with two quotes is an empty string.
- JSON lines: an object on each line. A name that is not there is null; strings stay strings, also those that look like
  times.
"""

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

from pipelines.datasets.formats import jsonlines
from pipelines.datasets.formats.bytestreams import Ranges, Stream
from pipelines.datasets.formats.columns import arrow
from pipelines.datasets.source import Piece, Source, SourceFile
from pipelines.errors import SourceRefused

FIRST_BYTES = 2 * 2**20  # of a text file, which decide on its columns
_CSV_BLOCKS = (2**19, 2**21)  # bytes parsed at once; pyarrow reads 32 of them ahead. A row is no longer than the last
_MOST_ROWS = 8192  # of a batch: a value that a dictionary holds once may be many megabytes when each row has it
_BATCH_BYTES = 4 * 2**20  # of a batch, in Parquet's encoding before compression
_WHOLE_BYTES = 4 * 2**20  # a row group of this size is fetched in few large reads, a larger one page by page
_PAGES_BYTES = 4 * 2**20  # read ahead of a larger row group, all columns together
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_JSON_LINES = (".jsonl", ".ndjson", ".json-lines")
KINDS = (".parquet", *_DELIMITERS, *_JSON_LINES)
_EMPTY_CSV = "Empty CSV file"  # what pyarrow says,
_LONG_ROW = "straddles two block boundaries"  # and when a row does not fit into a block and the rest of another


class Described(NamedTuple):
    """What there is to know of a source file before its rows are read."""

    schema: Any  # pyarrow.Schema
    sizes: tuple[int, ...]  # bytes that each of its units takes in the file: row groups, or the whole file


def described(source: Source, file: SourceFile) -> Described:
    """The columns of a file and the sizes of its units; from its footer, or from its first block.

    Raises:
        SourceRefused: it is of another kind than those in KINDS, or not what its name says, or has two columns of a
            name.
        SourceChanged: it is not the file that was listed.
    """
    kind, compression = _kind(source, file)
    with _blamed(source, file):
        if kind == ".parquet":
            found = _footer(source, file)
        else:
            found = Described(_text_schema(source, file, kind, compression), (file.size_bytes,))
        names = found.schema.names
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"it has two columns {twice[0]!r}")
    return found


def reading(source: Source, pieces: Iterable[Piece], schema: Any) -> Iterator[tuple[Piece, Iterator[Any]]]:
    """Each piece with its rows: record batches of that schema, to be read to their end before the next piece.

    Raises:
        SourceRefused: a row does not fit the schema, or the file is damaged.
        SourceChanged: it is not the file that was listed, before it was read or after.
    """
    for file, of_file in groupby(pieces, lambda piece: piece.file):
        kind, compression = _kind(source, file)
        if kind == ".parquet":
            yield from _row_groups(source, file, of_file, schema)
            continue
        for piece in of_file:
            if kind in _JSON_LINES:
                yield piece, _json_rows(source, piece, compression, schema)
            else:
                yield piece, _csv_rows(source, piece, compression, schema, _DELIMITERS[kind])


def _kind(source: Source, file: SourceFile) -> tuple[str, str | None]:
    """The ending that says what a file holds, and how it is compressed."""
    name = file.path.lower()
    compression = next((ending for ending in _COMPRESSIONS if name.endswith(ending)), "")
    kind = next((ending for ending in KINDS if name.removesuffix(compression).endswith(ending)), None)
    if kind is None or (kind == ".parquet" and compression):
        wanted = f"{', '.join(KINDS)}, the text ones also with {' or '.join(_COMPRESSIONS)}"
        raise SourceRefused(f"{source.url}: {file.path}", f"rows come from files that end in {wanted}")
    return kind, _COMPRESSIONS.get(compression)


@contextmanager
def _blamed(source: Source, file: SourceFile) -> Iterator[None]:
    """What pyarrow cannot read is the file's fault, unless the file changed."""
    try:
        yield
    except (ValueError, TypeError, LookupError, NotImplementedError, OSError, arrow().ArrowException) as e:
        source.check(file)
        raise SourceRefused(f"{source.url}: {file.path}", " ".join(str(e).split())[:500]) from e


# --- Parquet ------------------------------------------------------------------------------------------------


def _footer(source: Source, file: SourceFile) -> Described:
    with _open_parquet(source, file, pre_buffer=False) as parquet:
        return Described(parquet.schema_arrow, tuple(map(partial(_stored_bytes, parquet.metadata), _numbers(parquet))))


def _open_parquet(source: Source, file: SourceFile, **how: Any) -> Any:
    return arrow().parquet.ParquetFile(Ranges(source, file), page_checksum_verification=True, **how)


def _numbers(parquet: Any) -> range:
    return range(parquet.metadata.num_row_groups)


def _stored_bytes(metadata: Any, number: int) -> int:
    row_group = metadata.row_group(number)
    return sum(row_group.column(column).total_compressed_size for column in range(row_group.num_columns))


def _row_groups(
    source: Source, file: SourceFile, pieces: Iterable[Piece], schema: Any
) -> Iterator[tuple[Piece, Iterator[Any]]]:
    wanted = list(pieces)
    is_small = max(piece.length for piece in wanted) <= _WHOLE_BYTES
    with _blamed(source, file):
        parquet = _open_parquet(source, file, pre_buffer=is_small)
        if not is_small:
            ahead = max(2**16, min(_PAGES_BYTES // max(1, parquet.metadata.num_columns), 2**20))
            parquet = _open_parquet(source, file, pre_buffer=False, buffer_size=ahead, metadata=parquet.metadata)
    for piece in wanted:
        yield piece, _row_group(source, piece, parquet, schema)


def _row_group(source: Source, piece: Piece, parquet: Any, schema: Any) -> Iterator[Any]:
    if piece.start not in _numbers(parquet):
        return  # a file without row groups
    with _blamed(source, piece.file):
        row_group = parquet.metadata.row_group(piece.start)
        fitting = _BATCH_BYTES * row_group.num_rows // max(1, row_group.total_byte_size)
        rows = max(1, min(fitting, _MOST_ROWS))
        for batch in parquet.iter_batches(rows, row_groups=[piece.start], use_threads=False):
            yield conformed(batch, schema)


# --- text ---------------------------------------------------------------------------------------------------


@contextmanager
def _text(source: Source, piece: Piece, compression: str | None) -> Iterator[Any]:
    with (
        closing(Stream(source, piece)) as stream,
        arrow().input_stream(stream, compression=compression) as text,
    ):
        yield text


def _text_schema(source: Source, file: SourceFile, kind: str, compression: str | None) -> Any:
    """From the first bytes alone, unless the first row is longer."""
    for length in (2 * FIRST_BYTES, file.size_bytes):
        try:
            with _text(source, Piece(file, 0, min(length, file.size_bytes)), compression) as text:
                return jsonlines.schema(text) if kind in _JSON_LINES else _csv_schema(text, _DELIMITERS[kind])
        except (ValueError, OSError):
            if length >= file.size_bytes:
                raise
    raise AssertionError


def _json_rows(source: Source, piece: Piece, compression: str | None, schema: Any) -> Iterator[Any]:
    with _blamed(source, piece.file), _text(source, piece, compression) as text:
        for batch in jsonlines.batches(text, schema):
            yield conformed(batch, schema)


def _csv_rows(source: Source, piece: Piece, compression: str | None, schema: Any, delimiter: str) -> Iterator[Any]:
    """In small blocks; where a row does not fit into one, from there on in large ones."""
    given = 0
    with _blamed(source, piece.file):
        for block_bytes in _CSV_BLOCKS:
            again = given
            try:
                with _text(source, piece, compression) as text:
                    for batch in _csv_batches(text, schema, delimiter, block_bytes):
                        new = batch.slice(min(again, len(batch)))
                        again -= len(batch) - len(new)
                        given += len(new)
                        yield conformed(new, schema)
            except arrow().ArrowInvalid as e:
                if _LONG_ROW not in str(e) or block_bytes == _CSV_BLOCKS[-1]:
                    raise
            else:
                return


def _csv_schema(text: Any, delimiter: str) -> Any:
    opened = _open_csv(text, delimiter, {}, FIRST_BYTES)
    return arrow().schema([]) if opened is None else opened.schema


def _csv_batches(text: Any, schema: Any, delimiter: str, block_bytes: int) -> Iterator[Any]:
    pa = arrow()
    types = {field.name: pa.null() if pa.types.is_nested(field.type) else field.type for field in schema}
    return iter(_open_csv(text, delimiter, types, block_bytes) or ())


def _open_csv(text: Any, delimiter: str, types: dict[str, Any], block_bytes: int) -> Any:
    """A reader of batches, or None where there is not even a header."""
    csv = arrow().csv
    try:
        return csv.open_csv(
            text,
            csv.ReadOptions(use_threads=False, block_size=block_bytes),
            csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            csv.ConvertOptions(
                column_types=types, null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False
            ),
        )
    except arrow().ArrowInvalid as e:
        if str(e) == _EMPTY_CSV:
            return None
        raise


def conformed(batch: Any, schema: Any) -> Any:
    """The rows with the columns of `schema`, in its order; what a file does not have is null.

    Raises:
        ValueError: a value does not fit its column's type; or a string is not UTF-8.
    """
    pa = arrow()
    columns = []
    for field in schema:
        place = batch.schema.get_field_index(field.name)
        if place < 0:
            columns.append(pa.nulls(batch.num_rows, field.type))
            continue
        column = batch.column(place)
        try:
            column.validate(full=True)
            columns.append(column if column.type == field.type else pa.compute.cast(column, field.type))
        except pa.ArrowException as e:
            raise ValueError(f"column {field.name!r}: {e}") from e
    return pa.RecordBatch.from_arrays(columns, schema=schema)
