"""An answer as a file: Parquet, CSV or JSON, written beside its name and put in place when it is whole."""

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.errors import BadFile, Unknown
from pipelines.tables import render
from pipelines.tables.query import SCHEMAS, Reader
from pipelines.tables.render import Column, Result

if TYPE_CHECKING:
    import pyarrow as pa

_VIEWS = (*SCHEMAS, "results", "completed")


def export(reader: Reader, source: str, path: Path, form: str | None = None) -> int:
    """Write the rows of `source`, a table's or view's name or a SELECT, to `path`; returns how many there are.

    `form` is `parquet`, `csv` or `json`; by default what the path ends in.

    Raises:
        Unknown: another form, or a single word that is no table.
        BadQuery: the SELECT cannot be answered.
        BadFile: the file cannot be written.
    """
    form = form or path.suffix.removeprefix(".")
    if form not in _WRITERS:
        raise Unknown("file format", form, tuple(_WRITERS))
    if len(source.split()) == 1 and source not in _VIEWS:
        raise Unknown("table", source, _VIEWS)
    batches = reader.batches(f"FROM {source}" if source in _VIEWS else source)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        rows = _WRITERS[form](batches, partial)
        partial.replace(path)
    except OSError as e:
        raise BadFile(str(path), "export", str(e)) from e
    finally:
        partial.unlink(missing_ok=True)
    return rows


def _parquet(batches: "pa.RecordBatchReader", path: Path) -> int:
    import pyarrow.parquet as pq

    rows = 0
    with pq.ParquetWriter(path, batches.schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


def _csv(batches: "pa.RecordBatchReader", path: Path) -> int:
    rows = 0
    with path.open("x", encoding="utf-8", newline="") as file:
        for number, result in enumerate(_results(batches)):
            file.write(render.as_csv(result, header=number == 0))
            rows += len(result.rows)
    return rows


def _json(batches: "pa.RecordBatchReader", path: Path) -> int:
    rows = 0
    with path.open("x", encoding="utf-8") as file:
        file.write("[")
        for result in _results(batches):
            for row in render.as_objects(result):
                file.write(f"{',' if rows else ''}\n{json.dumps(row, ensure_ascii=False)}")
                rows += 1
        file.write("\n]\n")
    return rows


def _results(batches: "pa.RecordBatchReader") -> Iterator[Result]:
    """The batches as results; at least one, so that a file without rows has its header."""
    columns = tuple(Column(name=field.name, type=str(field.type)) for field in batches.schema)
    yield Result(columns=columns, rows=())
    for batch in batches:
        values = (column.to_pylist(maps_as_pydicts="strict") for column in batch.columns)
        yield Result(columns=columns, rows=tuple(zip(*values, strict=True)))


_WRITERS: dict[str, Callable[["pa.RecordBatchReader", Path], int]] = {"parquet": _parquet, "csv": _csv, "json": _json}
