"""What whoever may ask a question of the tables can do beside asking: nothing."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.errors import BadQuery, Unknown
from pipelines.settings import Settings
from pipelines.storage import Store
from pipelines.tables.export import export
from pipelines.tables.query import Reader, open_reader
from pipelines.tables.results import results
from tests.tables import nights

WRITING = (
    "WITH x AS (COPY (SELECT 1) TO '{tables}/x.csv') SELECT * FROM x",
    "with\nx AS (COPY runs TO '{tables}/runs/_delta_log/00000000000000000001.json') FROM x",
    "WITH y AS (SELECT 1), x AS (COPY (SELECT 1) TO '{tables}/x.parquet') SELECT * FROM y",
    "WITH x AS (INSERT INTO completed (run_id) VALUES ('forged') RETURNING *) SELECT * FROM x",
    "WITH x AS (DELETE FROM completed RETURNING *) SELECT * FROM x",
    "WITH x AS (UPDATE completed SET suite = 'forged' RETURNING *) SELECT * FROM x",
    "WITH x AS (TRUNCATE completed) SELECT 1",
    "SELECT * FROM query('WITH x AS (COPY (SELECT 1) TO ''{tables}/x.csv'') SELECT * FROM x')",
    "SELECT (WITH x AS (COPY (SELECT 1) TO '{tables}/x.csv') SELECT count(*) FROM x)",
    "SELECT * FROM enable_logging('QueryLog', storage='file', storage_path='{tables}/x')",
    "SELECT * FROM enable_profiling(format='json', save_location='{tables}/x.json')",
    "COPY (SELECT 1) TO '{tables}/x.csv'",
    "EXPORT DATABASE '{tables}/x'",
    "ATTACH '{tables}/x.db'",
    "CREATE TABLE x AS SELECT 1",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{tables}/x.csv'",
    "SET enable_external_access = true",
    "SET lock_configuration = false",
    "PRAGMA enable_logging",
    "CALL enable_logging()",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SELECT 1; DROP TABLE completed",
)
READING = (
    "read_csv('/etc/passwd')",
    "read_text('{tables}/../secret')",
    "read_text('{tables}/runs/../../secret')",
    "read_text('{tables}-of-others/secret')",
    "read_text('{tables}/link')",
    "read_blob('http://127.0.0.1:1/x')",
    "read_blob('s3://bucket/x')",
    "sniff_csv('/etc/passwd')",
    "parquet_metadata('/etc/passwd')",
    "read_duckdb('{tables}/../secret')",
    "glob('{tables}/../*')",
    "'/etc/passwd'",
)


@pytest.fixture
def tables(settings: Settings, store: Store) -> Path:
    """A night's tables, with a secret beside them that a link in them leads to."""
    nights.put(store, nights.rows())
    folder = settings.home / "store/tables"
    (folder.parent / "secret").write_text("x")
    (folder / "link").symlink_to(folder.parent / "secret")
    (folder.parent / "tables-of-others").mkdir()
    (folder.parent / "tables-of-others/secret").write_text("x")
    return folder


@pytest.fixture
def reader(store: Store, tables: Path) -> Iterator[Reader]:
    with open_reader(store) as opened:
        yield opened


def _everything(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("statement", WRITING)
def test_no_statement_writes_a_file_or_changes_what_the_next_answer_is_made_of(
    reader: Reader, tables: Path, statement: str
) -> None:
    before, rows = _everything(tables.parent), reader.query("FROM completed").rows
    with pytest.raises(BadQuery):
        reader.query(statement.format(tables=tables))
    with pytest.raises(BadQuery):
        reader.arrow(statement.format(tables=tables))
    assert reader.query("FROM completed").rows == rows
    assert _everything(tables.parent) == before


def test_a_select_with_a_with_is_answered(reader: Reader) -> None:
    select = "WITH copy_of AS MATERIALIZED (SELECT 'INSERT COPY' AS text FROM runs) SELECT DISTINCT text FROM copy_of"
    assert reader.query(select).rows == (("INSERT COPY",),)


@pytest.mark.parametrize("source", READING)
def test_no_file_but_those_of_the_tables_is_read(reader: Reader, tables: Path, source: str) -> None:
    with pytest.raises(BadQuery):
        reader.query(f"SELECT * FROM {source.format(tables=tables)}")


@pytest.mark.parametrize("text", ["x' OR 1=1 --", "'; DROP TABLE completed; --", "\\' OR ''='", "x'' OR 1=1"])
def test_what_is_asked_for_by_name_is_a_name_whatever_it_says(reader: Reader, text: str) -> None:
    for field in ("run", "node", "benchmark", "case", "metric"):
        with pytest.raises(Unknown):
            results(reader, **{field: text})


@pytest.mark.parametrize("source", ["/etc/passwd", "'/etc/passwd'", "read_text('/etc/passwd')", "duckdb_settings()"])
def test_an_export_is_of_a_table_or_a_select_and_leaves_nothing_else(
    reader: Reader, tmp_path: Path, source: str
) -> None:
    target = tmp_path / "out/x.csv"
    target.parent.mkdir()
    with pytest.raises((BadQuery, Unknown)):
        export(reader, source, target)
    with pytest.raises((BadQuery, Unknown)):
        export(reader, f"SELECT * FROM {source}" if source != "duckdb_settings()" else "FROM  nothing", target)
    assert list(target.parent.iterdir()) == []
