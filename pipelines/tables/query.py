"""Reading the tables by SQL: one DuckDB connection over exactly the files of one version of each table."""

import re
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pipelines.errors import BadQuery, HistoryGone
from pipelines.storage import Store
from pipelines.tables import delta, engine, latest, snapshot
from pipelines.tables.render import Column, Result
from pipelines.tables.schema import PARTITION, TABLES

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    from deltalake import DeltaTable

SCHEMAS = {name: table.schema for name, table in TABLES.items()} | {latest.TABLE.name: latest.TABLE.schema}

_COMPLETED = """
CREATE OR REPLACE TABLE completed AS
SELECT run_id, arg_max(batch_id, landed_at) AS batch_id, max(landed_at) AS landed_at, min(night) AS night,
       any_value(suite) AS suite, any_value("trigger") AS "trigger"
FROM runs GROUP BY run_id
"""
_MAY_WRITE = re.compile(r"\bwith\b", re.IGNORECASE)
_RESULTS = "CREATE OR REPLACE VIEW results AS SELECT * FROM measurements WHERE run_id IN (SELECT run_id FROM completed)"


class Reader:
    """Tables and views to query: every table by its name, and

    - `completed`: one row per complete run and its batch; a run without rows in `runs` is not there.
    - `results`: the measurements of complete runs. Raw `measurements` may hold a landing that is under way.
    - `latest`: of every metric of every node the newest complete run's median.
    - `last_night()`: the newest night of a complete run, a constant to the planner, so that it prunes files.

    Read only: a statement that is not one SELECT is refused, and so is every file outside the tables. Not for use by
    several threads at once; give each its own.
    """

    def __init__(self, store: Store, as_of: int | datetime | None, threads: int | None) -> None:
        self._store = store
        self._as_of = as_of
        self._tables = dict(snapshot.take(store, SCHEMAS, as_of))
        self._connection = engine.connect(store, threads)
        for name in SCHEMAS:
            self._show(name)
        self._derive()

    @property
    def versions(self) -> dict[str, int]:
        """The version of each table that answers are read from; a table without one has no rows."""
        return {name: table.version() for name, table in self._tables.items() if table}

    def query(self, sql: str) -> Result:
        """The answer to one SELECT.

        Raises:
            BadQuery: it is not one SELECT, or DuckDB refuses it; with DuckDB's own sentence.
        """
        relation = self._relation(sql)
        columns = zip(relation.columns, relation.types, strict=True)
        values = [_values(column) for column in _fetched(sql, relation).columns]
        return Result(
            columns=tuple(Column(name=name, type=str(kind)) for name, kind in columns),
            rows=tuple(zip(*values, strict=True)),
        )

    def arrow(self, sql: str) -> "pa.Table":
        """The answer as an Arrow table. Raises: BadQuery."""
        return _fetched(sql, self._relation(sql))

    def batches(self, sql: str) -> "pa.RecordBatchReader":
        """The answer as Arrow, batch by batch, for more rows than one wants to hold. Raises: BadQuery."""
        import duckdb

        try:
            return self._relation(sql).to_arrow_reader()
        except duckdb.Error as e:
            raise BadQuery(sql, _sentence(e)) from e

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _relation(self, sql: str) -> "duckdb.DuckDBPyRelation":
        import duckdb

        try:
            statements = self._connection.extract_statements(sql)
            if [statement.type for statement in statements] != [duckdb.StatementType.SELECT]:
                raise BadQuery(sql, "only a single SELECT is answered here")
            if _MAY_WRITE.search(sql) and engine.writes(self._connection, statements[0].query):
                raise BadQuery(sql, "only a single SELECT is answered here, and a WITH in it may not write")
            return self._connection.sql(statements[0].query)
        except duckdb.Error as e:
            raise BadQuery(sql, _sentence(e)) from e

    def _show(self, name: str) -> None:
        """Point the view `name` at the files of its table's version, with every column it should have."""
        import duckdb

        table = self._tables[name]
        files = snapshot.files(self._store, table) if table else []
        partition = PARTITION if name in TABLES else None
        connection = self._connection
        try:
            source = engine.parquet(files, partition, engine.alike(connection, files)) if files else _nothing(name)
            connection.execute(f"CREATE OR REPLACE VIEW {name} AS {self._with_every_column(name, source, table)}")
        except duckdb.IOException as e:
            if self._as_of is None:
                raise
            raise HistoryGone(name, str(self._as_of), "the files that are left after vacuum") from e

    def _with_every_column(self, name: str, source: str, table: "DeltaTable | None") -> str:
        """Columns that no file has yet are null: the table may have evolved, or be older than this program."""
        self._declare(name, table)
        have = self._types(source)
        wanted = self._types(_nothing(name))
        columns = [f'"{c}"' if c in have else f'CAST(NULL AS {kind}) AS "{c}"' for c, kind in wanted.items()]
        columns += [f'"{column}"' for column in have if column not in wanted]
        return f"SELECT {', '.join(columns)} FROM ({source})"  # noqa: S608

    def _types(self, source: str) -> dict[str, str]:
        described = self._connection.execute(f"DESCRIBE {source}").fetchall()
        return {str(row[0]): str(row[1]) for row in described}

    def _declare(self, name: str, table: "DeltaTable | None") -> None:
        """An empty table of the schema: ours, and what a newer program may have added to it."""
        import pyarrow as pa

        schema = SCHEMAS[name]
        if table:
            schema = pa.schema([*schema, *(field for field in delta.columns(table) if field.name not in schema.names)])
        self._connection.register("declared", pa.Table.from_batches([], schema))  # empty_table() imports pandas
        self._connection.execute("CREATE SCHEMA IF NOT EXISTS empty")
        self._connection.execute(f"CREATE OR REPLACE TABLE empty.{name} AS FROM declared")
        self._connection.unregister("declared")

    def _derive(self) -> None:
        """What follows from the tables: which runs are complete, which night is the last."""
        self._connection.execute(_COMPLETED)
        self._connection.execute(_RESULTS)
        if self._as_of is not None or self._tables[latest.TABLE.name] is None:
            # the materialised table follows a landing, so that as of the landing it lacks the run
            ordered = ", ".join(f'"{column}"' for column in latest.TABLE.schema.names)
            self._connection.execute(f"CREATE OR REPLACE VIEW latest AS SELECT {ordered} FROM ({latest.SELECT})")  # noqa: S608
        night = self._connection.execute("SELECT max(night) FROM completed").fetchall()[0][0]
        last = f"DATE '{night}'" if night else "CAST(NULL AS DATE)"
        self._connection.execute(f"CREATE OR REPLACE MACRO last_night() AS {last}")


def open_reader(store: Store, as_of: int | datetime | None = None, threads: int | None = None) -> Reader:
    """A reader of the newest versions, or of what stood `as_of` a time or a version of `runs` (see `snapshot.take`).

    `threads`: how many cores one query may use; all of them by default.

    Raises:
        Unknown: `runs` has no such version.
        HistoryGone: the tables no longer reach back that far.
    """
    return Reader(store, as_of, threads)


def _fetched(sql: str, relation: "duckdb.DuckDBPyRelation") -> "pa.Table":
    import duckdb

    try:
        return relation.to_arrow_table()
    except duckdb.Error as e:
        raise BadQuery(sql, _sentence(e)) from e


def _values(column: "pa.ChunkedArray") -> list[Any]:
    """The column's Python values; maps as dicts, which costs ten times the rest, so only where there are maps."""
    kind = str(column.type)
    if kind == "decimal128(38, 0)":  # sums of integers; they are integers
        return [value if value is None else int(value) for value in column.to_pylist()]
    return list(column.to_pylist(maps_as_pydicts="strict") if "map<" in kind else column.to_pylist())


def _nothing(name: str) -> str:
    return f"SELECT * FROM empty.{name}"  # noqa: S608


def _sentence(e: Exception) -> str:
    """DuckDB's message without its drawing of the place in the query."""
    return " ".join(str(e).partition("\nLINE ")[0].split())
