"""The DuckDB connection that reads the tables' files: locked down, in UTC, never fetching an extension."""

import json
import re
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.storage import Store

if TYPE_CHECKING:
    import duckdb

_WRITING = re.compile(r"(^|_)(COPY|INSERT|DELETE|UPDATE)(_|$)")  # among DuckDB's names of physical operators


def connect(store: Store, threads: int | None = None) -> "duckdb.DuckDBPyConnection":
    """A connection of its own that opens files below `tables/` of the store and nowhere else.

    `threads`: how many cores one query may use; all of them by default.
    """
    import duckdb

    spill = Path(tempfile.gettempdir()) / f"fleetmark-{uuid.uuid4().hex}"  # made when needed, gone on close
    connection = duckdb.connect(
        ":memory:",
        config={
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "python_enable_replacements": False,
            "temp_directory": str(spill),
            **({"threads": threads} if threads else {}),
        },
    )
    if not store.is_local:
        connection.register_filesystem(store.filesystem)
    folder = store.path("tables") if store.is_local else store.url("tables")
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET validate_external_file_cache = 'NO_VALIDATION'")  # the files of a Delta table never change
    connection.execute(f"SET allowed_directories = [{quoted(folder + '/')}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")  # or a SELECT FROM enable_logging() would write files there
    return connection


def writes(connection: "duckdb.DuckDBPyConnection", select: str) -> bool:
    """Whether a SELECT changes something: DuckDB 2 takes INSERT, DELETE, UPDATE and COPY into its outermost WITH.

    A COPY there could put any file in the place of one of the tables'.
    """
    ((_, plan),) = connection.execute(f"EXPLAIN (FORMAT json) {select}").fetchall()
    return any(_WRITING.search(name) for name in _operators(json.loads(plan)))


def _operators(plan: Any) -> Iterator[str]:
    left = list(plan)
    while left:
        operator = left.pop()
        yield operator["name"]
        left += operator["children"]


def alike(connection: "duckdb.DuckDBPyConnection", files: Iterable[str]) -> bool:
    """Whether every file has the same columns of the same types."""
    listed = ", ".join(map(quoted, files))
    columns = "SELECT list_sort(list((name, type, logical_type))) AS columns"
    schemas = f"{columns} FROM parquet_schema([{listed}]) GROUP BY file_name"
    found = connection.execute(f"SELECT count(DISTINCT columns) FROM ({schemas})").fetchall()  # noqa: S608
    return bool(found[0][0] == 1)


def parquet(files: Iterable[str], partition: str | None, are_alike: bool = False) -> str:
    """A SELECT over these files: the partition's column from their path, columns that a file lacks as null.

    Files that are not `alike` have all their footers read for each query: with 20 files 6 ms.
    """
    by_name = "false" if are_alike else "true"
    hive = (
        f"hive_partitioning = true, hive_types = {{'{partition}': VARCHAR}}"
        if partition
        else "hive_partitioning = false"
    )
    return f"SELECT * FROM read_parquet([{', '.join(map(quoted, files))}], union_by_name = {by_name}, {hive})"  # noqa: S608


def quoted(text: str) -> str:
    """A string literal."""
    return "'" + text.replace("'", "''") + "'"
