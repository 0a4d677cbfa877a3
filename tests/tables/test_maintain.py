"""Maintenance: the same rows in fewer, sorted files, whatever lands meanwhile."""

import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, date, datetime, timedelta
from multiprocessing import get_context

import pyarrow.parquet as pq
import pytest

from pipelines import storage
from pipelines.errors import BadParameter
from pipelines.settings import Settings
from pipelines.storage import Store
from pipelines.tables import latest, maintain, snapshot
from pipelines.tables.query import open_reader
from pipelines.tables.schema import TABLES
from tests.tables import nights
from tests.tables.nights import NIGHT

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
MEASUREMENTS = TABLES["measurements"]
ALL = "SELECT run_id, job_id, value FROM {} ORDER BY ALL"


@pytest.fixture
def landed(store: Store) -> Store:
    """Five nights of November, landed in the wrong order, and one of October."""
    for back in (0, 3, 1, 2, 4, 30):
        nights.put(store, nights.rows(NIGHT - timedelta(days=back), values=(3.0, 1.0, 2.0 + back)))
    return store


def _files(store: Store, table: str = "measurements") -> dict[str, int]:
    opened = snapshot.open_newest(store, table)
    assert opened is not None
    return dict(maintain.files_by_month(opened))


def test_a_month_becomes_one_file_sorted_as_the_table_says(landed: Store) -> None:
    assert _files(landed) == {"2026-10": 1, "2026-11": 5}
    report = maintain.maintain(landed, NOW)
    assert {done.table: done.rewritten for done in report.tables} == {
        "measurements": ("2026-11",),
        "runs": ("2026-11",),
    }
    assert _files(landed) == {"2026-10": 1, "2026-11": 1}
    for name in ("measurements", "runs"):
        table = snapshot.open_newest(landed, name)
        assert table is not None
        (file,) = snapshot.files(landed, table, "2026-11")
        found = pq.ParquetFile(file).read().select(TABLES[name].sort).to_pylist()
        assert found == sorted(found, key=lambda row: tuple(row.values()))
        assert pq.ParquetFile(file).metadata.row_group(0).column(0).compression == "ZSTD"


def test_maintenance_keeps_every_row_and_a_second_one_changes_no_row_file(landed: Store) -> None:
    with open_reader(landed) as reader:
        before = [reader.query(ALL.format(name)).rows for name in ("measurements", "results")]
    versions = maintain.maintain(landed, NOW).tables
    again = maintain.maintain(landed, NOW).tables
    with open_reader(landed) as reader:
        assert [reader.query(ALL.format(name)).rows for name in ("measurements", "results")] == before
    assert [done.version for done in again] == [done.version for done in versions]
    assert all(done.rewritten == () for done in again)


def test_a_reader_opened_before_maintenance_still_answers_after_it(landed: Store) -> None:
    with open_reader(landed) as reader:
        before = reader.query(ALL.format("results")).rows
        maintain.maintain(landed, NOW)
        assert reader.query(ALL.format("results")).rows == before


def test_time_travel_reaches_behind_maintenance(landed: Store) -> None:
    with open_reader(landed) as reader:
        then, rows = reader.versions["runs"], reader.query(ALL.format("results")).rows
    maintain.maintain(landed, NOW)
    nights.put(landed, nights.rows(NIGHT + timedelta(days=1)))
    with open_reader(landed, as_of=then) as reader:
        assert reader.query(ALL.format("results")).rows == rows


def test_landing_again_after_maintenance_adds_nothing(landed: Store) -> None:
    maintain.maintain(landed, NOW)
    nights.put(landed, nights.rows(NIGHT))
    with open_reader(landed) as reader:
        assert reader.query("SELECT count(*) FROM results").rows == ((18,),)


@pytest.mark.integration
def test_rewrites_that_race_landings_and_each_other_lose_and_double_nothing(store: Store, settings: Settings) -> None:
    dates = [date(2026, 11, 1) + timedelta(days=number) for number in range(16)]
    nights.put(store, nights.rows(dates[0]))
    rewrites = 0
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        shares = [pool.submit(nights.land_nights, str(settings.home), dates[start::2]) for start in range(2)]
        other = pool.submit(_rewrite_for, str(settings.home), 3.0)
        while not all(share.done() for share in shares) or not other.done():
            maintain.rewrite_month(store, MEASUREMENTS, "2026-11")
            rewrites += 1
        for done in (*shares, other):
            done.result()
    maintain.rewrite_month(store, MEASUREMENTS, "2026-11")
    table = snapshot.open_newest(store, "measurements")
    assert table is not None
    operations = [commit["operationParameters"].get("predicate") is not None for commit in table.history()]
    assert sum(operations) > 2, "no rewrite came between the landings, so nothing was proven"
    with open_reader(store) as reader:
        found = reader.query("SELECT night, count(*), count(DISTINCT job_id) FROM measurements GROUP BY 1 ORDER BY 1")
        assert found.rows == tuple((night, 3, 3) for night in dates)
        assert reader.query("SELECT night, value FROM latest").rows == ((dates[-1], 2.0),)


def _rewrite_for(home: str, seconds: float) -> None:
    store = storage.open_store(Settings(home=home))  # type: ignore[arg-type]
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        maintain.rewrite_month(store, MEASUREMENTS, "2026-11")


def test_retention_drops_old_months_of_the_tables_it_names_and_of_no_other(landed: Store) -> None:
    report = maintain.maintain(landed, NOW, keep_months={"measurements": 0})
    assert {done.table: done.dropped for done in report.tables} == {"measurements": ("2026-10",), "runs": ()}
    assert _files(landed) == {"2026-11": 1}
    assert _files(landed, "runs") == {"2026-10": 1, "2026-11": 1}


def test_retention_counts_months_across_the_turn_of_the_year() -> None:
    january = datetime(2027, 1, 5, tzinfo=UTC)
    assert maintain.expired_months(("2026-09", "2026-10", "2026-11", "2027-01"), january, 2) == ("2026-09", "2026-10")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"keep_months": {"results": 3}}, "no table 'results'"),
        ({"keep_months": {"runs": -1}}, "runs: -1 months"),
        ({"vacuum_after": timedelta(days=6)}, "6 days, 0:00:00, must be at least 7 days"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_is_touched(
    landed: Store, wrong: dict[str, object], said: str
) -> None:
    with pytest.raises(BadParameter, match=said):
        maintain.maintain(landed, NOW, **wrong)  # type: ignore[arg-type]
    assert _files(landed) == {"2026-10": 1, "2026-11": 5}


def test_maintenance_of_an_empty_store_does_nothing(store: Store) -> None:
    assert maintain.maintain(store, NOW).tables == ()


@pytest.fixture
def shown(landed: Store) -> Iterator[Store]:
    yield landed
    materialised = _latest(landed)
    latest.rebuild(landed)
    assert _latest(landed) == materialised, "what was kept up is not what a rebuild gives"


def _latest(store: Store) -> tuple[tuple[object, ...], ...]:
    with open_reader(store) as reader:
        return reader.query("FROM latest ORDER BY ALL").rows


def test_latest_is_the_newest_nights_median_whatever_order_the_runs_landed_in(shown: Store) -> None:
    with open_reader(shown) as reader:
        assert reader.query("SELECT night, value, low, high, repeats FROM latest").rows == ((NIGHT, 2.0, 1.0, 3.0, 3),)


def test_latest_follows_a_run_that_is_landed_anew_and_an_old_batch_changes_nothing(shown: Store) -> None:
    nights.put(shown, nights.rows(values=(7.0,), generation=2))
    nights.put(shown, nights.rows(values=(9.0,), generation=1))
    with open_reader(shown) as reader:
        assert reader.query("SELECT night, value, repeats FROM latest").rows == ((NIGHT, 7.0, 1),)


def test_latest_keeps_one_row_per_label(shown: Store) -> None:
    nights.put(shown, nights.rows(NIGHT + timedelta(days=1), labels=[("direct_io", "false")]))
    with open_reader(shown) as reader:
        found = reader.query("SELECT labels['direct_io'], night FROM latest ORDER BY 1").rows
        assert found == (("false", NIGHT + timedelta(days=1)), ("true", NIGHT))


@pytest.mark.integration
def test_latest_raced_from_nothing_holds_the_newest_run(store: Store, settings: Settings) -> None:
    dates = [NIGHT - timedelta(days=back) for back in range(8)]
    with ProcessPoolExecutor(4, mp_context=get_context("spawn")) as pool:
        for done in [pool.submit(nights.land_nights, str(settings.home), [night]) for night in dates]:
            done.result()
    with open_reader(store) as reader:
        assert reader.query("SELECT night, value FROM latest").rows == ((NIGHT, 2.0),)
    materialised = _latest(store)
    latest.rebuild(store)
    assert _latest(store) == materialised
