"""Reading the tables: the same rows for every reader, one version at a time, and nothing but reading."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from perf.fleet import Fleet
from perf.generate import generate
from pipelines import storage
from pipelines.errors import BadQuery, HistoryGone, Unknown
from pipelines.settings import Settings
from pipelines.storage import Store
from pipelines.tables import delta, maintain, query, snapshot
from pipelines.tables.query import Reader, open_reader
from pipelines.tables.results import as_result, results
from pipelines.tables.schema import TABLES
from tests import servers
from tests.tables import nights
from tests.tables.nights import NIGHT

COUNT = "SELECT count(*), sum(value) FROM measurements"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A generated fleet of 3 nodes and 40 nights."""
    home = tmp_path_factory.mktemp("fleet")
    store = storage.open_store(Settings(home=home))
    generate(store, Fleet(nodes=3, nights=40, nightly=2))
    return store


@pytest.fixture(scope="module")
def reader(fleet: Store) -> Iterator[Reader]:
    with open_reader(fleet, threads=2) as opened:
        yield opened


def _uri(store: Store) -> str:
    return delta.uri(store, "measurements")


def test_polars_pandas_and_pyarrow_read_the_same_rows(fleet: Store, reader: Reader) -> None:
    table = DeltaTable(_uri(fleet))
    ours = reader.arrow("FROM measurements ORDER BY job_id, metric").select(["job_id", "metric", "value"]).to_pylist()
    arrow = table.to_pyarrow_dataset().to_table(columns=["job_id", "metric", "value"])
    frame: pd.DataFrame = table.to_pandas(columns=["job_id", "metric", "value"])
    lazy = pl.scan_delta(_uri(fleet)).select("job_id", "metric", "value").collect()
    for theirs in (arrow.to_pylist(), frame.to_dict("records"), lazy.to_dicts()):
        assert sorted(theirs, key=lambda row: (row["job_id"], row["metric"])) == ours


def test_a_store_whose_path_has_a_space_and_a_quote_is_read(tmp_path: Path) -> None:
    store = storage.open_store(Settings(home=tmp_path / "the fleet's"))
    nights.put(store, nights.rows())
    with open_reader(store) as opened:
        assert opened.query("SELECT count(*) FROM results").rows == ((3,),)


def test_a_store_without_tables_answers_with_no_rows_and_every_column(store: Store) -> None:
    with open_reader(store) as opened:
        for name, schema in query.SCHEMAS.items():
            answer = opened.query(f"FROM {name}")
            assert (answer.names, answer.rows) == (tuple(schema.names), ())
        assert opened.query("SELECT node, labels, value FROM results WHERE \"case\" = 'x'").rows == ()
        assert results(opened) == ()


def test_a_run_is_complete_only_when_its_rows_are_in_runs(store: Store) -> None:
    landing = nights.rows()
    nights.put(store, {"measurements": landing["measurements"]})
    with open_reader(store) as opened:
        assert opened.query("SELECT count(*) FROM measurements").rows == ((3,),)
        assert opened.query("SELECT count(*) FROM results").rows == ((0,),)
    nights.put(store, landing)
    with open_reader(store) as opened:
        assert opened.query("SELECT count(*) FROM results").rows == ((3,),)


def test_a_reader_keeps_to_what_stood_when_it_was_opened(store: Store) -> None:
    nights.put(store, nights.rows())
    with open_reader(store) as opened:
        nights.put(store, nights.rows(NIGHT + timedelta(days=1), values=(10.0,)))
        assert opened.query(COUNT).rows == ((3, 9.0),)
    with open_reader(store) as opened:
        assert opened.query(COUNT).rows == ((4, 19.0),)
        assert opened.query("SELECT last_night()").rows == ((NIGHT + timedelta(days=1),),)


def test_a_run_that_lands_while_its_tables_are_opened_is_seen_whole_or_not_at_all(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    nights.put(store, nights.rows())
    landing = iter(NIGHT + timedelta(days=number) for number in range(1, 100))
    asked = snapshot.open_newest

    def and_then_a_run_lands(*args: Any) -> Any:
        answer = asked(*args)
        nights.put(store, nights.rows(next(landing)))
        return answer

    with monkeypatch.context() as patched:
        patched.setattr(snapshot, "open_newest", and_then_a_run_lands)
        reader = open_reader(store)
    with reader:
        torn = "SELECT run_id FROM completed ANTI JOIN measurements USING (run_id)"
        assert reader.query(torn).rows == ()
        assert reader.query("SELECT count(*) FROM completed").rows[0][0] > 1


def test_rows_of_superseded_files_are_not_counted(store: Store) -> None:
    nights.put(store, nights.rows())
    nights.put(store, nights.rows(values=(5.0,), generation=2))
    assert len(list(Path(store.path("tables/measurements")).glob("month=*/*.parquet"))) == 2
    with open_reader(store) as opened:
        assert opened.query(COUNT).rows == ((1, 5.0),)


def test_time_travel_by_version_of_runs_sees_whole_runs(store: Store) -> None:
    seen = {}
    for number in range(3):
        nights.put(store, nights.rows(NIGHT + timedelta(days=number), values=(1.0,) * (number + 1)))
        with open_reader(store) as opened:
            seen[opened.versions["runs"]] = opened.query(COUNT).rows
    for version, rows in seen.items():
        with open_reader(store, as_of=version) as opened:
            assert opened.query(COUNT).rows == rows
            assert opened.query("SELECT count(DISTINCT run_id) FROM results").rows == ((version,),)
            assert opened.query("SELECT run_id FROM latest").rows == opened.query("SELECT max(run_id) FROM runs").rows


def test_time_travel_by_time_sees_what_was_there_then(store: Store) -> None:
    nights.put(store, nights.rows())
    between = datetime.now(UTC)
    time.sleep(0.01)  # commits carry milliseconds
    nights.put(store, nights.rows(NIGHT + timedelta(days=1)))
    with open_reader(store, as_of=between) as opened:
        assert opened.query("SELECT count(*) FROM results").rows == ((3,),)
    with open_reader(store, as_of=datetime(2020, 1, 1, tzinfo=UTC)) as opened:
        assert opened.query("SELECT count(*) FROM results").rows == ((0,),)


def test_a_version_that_never_was_is_named_with_those_that_are(store: Store) -> None:
    nights.put(store, nights.rows())
    with pytest.raises(Unknown, match=r"version of table runs '99'; known: 0 to 1"):
        open_reader(store, as_of=99)


def test_a_version_whose_files_are_vacuumed_is_said_to_be_gone(store: Store) -> None:
    nights.put(store, nights.rows())
    nights.put(store, nights.rows(generation=2))
    DeltaTable(_uri(store)).vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    with pytest.raises(HistoryGone, match="table measurements"):
        open_reader(store, as_of=1)


def test_a_column_added_later_is_null_in_old_rows_and_does_not_disturb_old_readers(store: Store) -> None:
    nights.put(store, nights.rows())
    with open_reader(store) as opened:
        evolved = nights.rows(NIGHT + timedelta(days=1))["measurements"]
        evolved = evolved.append_column("firmware", pa.array(["1.2"] * evolved.num_rows))
        write_deltalake(DeltaTable(_uri(store)), evolved, mode="append", schema_mode="merge")
        assert opened.query("SELECT count(*) FROM measurements").rows == ((3,),)
    with open_reader(store) as opened:
        answer = opened.query("SELECT firmware, count(*) FROM measurements GROUP BY 1 ORDER BY 1 NULLS FIRST")
        assert answer.rows == ((None, 3), ("1.2", 3))
        assert opened.query("FROM measurements").names[:-1] == tuple(TABLES["measurements"].schema.names)


def test_columns_this_program_added_read_as_null_from_an_older_table(store: Store) -> None:
    older = nights.rows()["measurements"].drop_columns(["environment_id"])
    write_deltalake(delta.uri(store, "measurements"), older, partition_by=["month"])
    with open_reader(store) as opened:
        assert opened.query("SELECT DISTINCT environment_id FROM measurements").rows == ((None,),)
        assert opened.query("FROM measurements").names == tuple(TABLES["measurements"].schema.names)


@pytest.mark.parametrize(
    "statement",
    [
        "COPY (SELECT 1) TO '{home}/stolen.csv'",
        "CREATE TABLE mine AS SELECT 1",
        "DROP VIEW results",
        "INSERT INTO completed SELECT * FROM completed",
        "SET threads = 64",
        "INSTALL httpfs",
        "ATTACH '{home}/other.db'",
        "SELECT 1; SELECT 2",
        "",
    ],
)
def test_nothing_but_one_select_is_answered(reader: Reader, tmp_path: Path, statement: str) -> None:
    with pytest.raises(BadQuery, match="only a single SELECT is answered"):
        reader.query(statement.format(home=tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("source", ["read_csv('/etc/passwd')", "read_text('/etc/hostname')", "glob('/etc/*')"])
def test_no_file_outside_the_tables_is_opened(reader: Reader, source: str) -> None:
    with pytest.raises(BadQuery, match=r"Permission Error|disabled"):
        reader.query(f"FROM {source}")


def test_local_python_variables_are_not_tables(reader: Reader) -> None:
    secret = pa.table({"x": [1]})
    assert secret.num_rows == 1
    with pytest.raises(BadQuery, match="secret does not exist"):
        reader.query("SELECT * FROM secret")


def test_a_wrong_query_is_refused_with_duckdbs_sentence(reader: Reader) -> None:
    with pytest.raises(BadQuery, match=r'Referenced column "nod" not found.*Candidate bindings: "node"'):
        reader.query("SELECT nod FROM results")
    with pytest.raises(BadQuery, match="Could not convert string 'x'"):
        reader.query("SELECT CAST(node AS INTEGER) FROM (SELECT 'x' AS node)")


def test_results_are_the_median_and_the_spread_of_the_repeats(store: Store) -> None:
    nights.put(store, nights.rows(values=(1.0, 2.0, 6.0)))
    with open_reader(store) as opened:
        (found,) = results(opened)
    assert (found.median, found.low, found.high, found.repeats, found.unit) == (2.0, 1.0, 6.0, 3, "1/s")
    assert found.labels == {"direct_io": "true"}
    assert as_result((found,)).rows[0][:5] == (nights.run_of(), "gpu-01", "fio", "rand_read", "read_iops")


def test_results_default_to_the_newest_run_that_has_any(store: Store) -> None:
    nights.put(store, nights.rows(node="gpu-01"))
    nights.put(store, nights.rows(NIGHT + timedelta(days=1), node="gpu-02"))
    with open_reader(store) as opened:
        assert [found.node for found in results(opened)] == ["gpu-02"]
        assert [found.run_id for found in results(opened, node="gpu-01")] == [nights.run_of()]
        assert results(opened, run=nights.run_of(), node="gpu-02") == ()


@pytest.mark.parametrize(("column", "kind"), [("run", "complete run"), ("node", "node"), ("metric", "metric")])
def test_results_of_an_unknown_name_list_the_known_ones(store: Store, column: str, kind: str) -> None:
    nights.put(store, nights.rows())
    known = {"run": nights.run_of(), "node": "gpu-01", "metric": "read_iops"}[column]
    with open_reader(store) as opened, pytest.raises(Unknown, match=f"unknown {kind} 'x\\?'; known: {known}"):
        results(opened, **{column: "x?"})


@pytest.mark.integration
def test_the_same_rows_on_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with servers.moto(tmp_path) as s3:
        for name, value in s3.environ.items():
            monkeypatch.setenv(name, value)
        store = storage.open_store(
            Settings(home=tmp_path, store=f"s3://{s3.new_bucket()}/fleet", s3_endpoint=s3.endpoint)
        )
        nights.put(store, nights.rows())
        with open_reader(store) as opened:
            nights.put(store, nights.rows(NIGHT + timedelta(days=1), values=(10.0,)))
            assert opened.query(COUNT).rows == ((3, 9.0),)
        with open_reader(store) as opened:
            assert opened.query("SELECT count(*), sum(value) FROM results").rows == ((4, 19.0),)
            assert opened.query("SELECT value FROM latest").rows == ((10.0,),)
            with pytest.raises(BadQuery):
                opened.query("SELECT * FROM read_csv('/etc/passwd')")
        with open_reader(store, as_of=1) as opened:
            assert opened.query(COUNT).rows == ((3, 9.0),)
        assert maintain.maintain(store, datetime(2026, 11, 22, tzinfo=UTC)).tables[0].rewritten == ("2026-11",)
        with open_reader(store) as opened:
            assert opened.query("SELECT count(*), sum(value) FROM results").rows == ((4, 19.0),)
