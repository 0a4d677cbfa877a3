"""Landing: each batch in every table exactly once, `runs` last, a later batch in place of an earlier one."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote, urlparse

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import keys, stages, storage
from pipelines.errors import CorruptObject, KeyNotFound, LandingConflict
from pipelines.settings import Settings
from pipelines.storage import Store
from pipelines.tables import delta, files, land, query
from pipelines.tables.schema import MEASUREMENTS, QUARANTINE, TABLES
from tests import make, processes
from tests.tables import landings
from tests.tables.landings import RUN_A, RUN_B, expected, ready, standing, versions


def run_ready(store: Store, run_id: str = make.RUN_ID, samples: Sequence[str] = ("rand_read", "seq_write")) -> str:
    landings.hand_in(store, landings.raws(run_id, samples), run_id)
    return ready(store, run_id)


def next_batch(store: Store, run_id: str = make.RUN_ID) -> str:
    """Another attempt at the run's first job comes in, and the run is parsed again."""
    first = landings.raws(run_id, ["rand_read"])[0]
    landings.put(store, first.model_copy(update={"attempt": 2}))
    return ready(store, run_id)


def test_a_batch_lands_in_every_table_and_again_and_again_changes_nothing(store: Store) -> None:
    batch = run_ready(store)
    first = land.land_batch(store, batch)
    before = versions(store)
    for _ in range(3):
        assert land.land_batch(store, batch) == first
    assert standing(store) == expected(store, batch)
    assert versions(store) == before


def test_a_table_without_news_has_no_commit(store: Store) -> None:
    landed = land.land_batch(store, run_ready(store))
    landing = {"environments": 1, "histograms": 1, "measurements": 1, "quarantine": 0, "runs": 1, "telemetry": 0}
    assert landed == landing


def test_landed_rows_read_back_as_they_were_parsed(any_store: Store) -> None:
    batch = run_ready(any_store)
    land.land_batch(any_store, batch)
    for name in landings.LANDED:
        order = [(column, "ascending") for column in TABLES[name].sort]
        landed = files.read(any_store, keys.landing_key(batch, name)).sort_by(order)
        assert landings.rows_of(any_store, name).select(landed.schema.names).to_pylist() == landed.to_pylist()


def test_files_are_one_sorted_compressed_file_per_run_in_the_partition_of_its_month(store: Store) -> None:
    land.land_batch(store, run_ready(store))
    (uri,) = delta.open_table(store, "measurements").file_uris()
    path = Path(unquote(urlparse(uri).path))
    assert path.parent.name == "month=2026-11"
    file = pq.ParquetFile(path)
    order = file.read(columns=["metric", "node"]).to_pylist()
    assert order == sorted(order, key=lambda row: (row["metric"], row["node"]))
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"


def test_row_groups_have_the_size_that_queries_are_fastest_with(store: Store) -> None:
    size = TABLES["measurements"].row_group
    one = files.read(store, keys.parsed_key(run_ready(store), "measurements"))
    many = one.take(pa.array([0] * (size + 1)))
    land.land_table(store, "measurements", many, keys.batch_id(make.RUN_ID, "many"), make.RUN_ID)
    (uri,) = delta.open_table(store, "measurements").file_uris()
    groups = pq.ParquetFile(unquote(urlparse(uri).path)).metadata
    assert [groups.row_group(number).num_rows for number in range(groups.num_row_groups)] == [size, 1]


def test_a_batch_that_was_not_validated_is_not_landed(store: Store) -> None:
    with pytest.raises(KeyNotFound, match=r"landing/20261121T020000Z-1a2b3c\.001-\w+/environments\.parquet"):
        land.land_batch(store, keys.batch_id(make.RUN_ID, "nothing"))


def test_a_later_batch_of_a_run_takes_the_place_of_its_rows_and_of_no_other_runs(store: Store) -> None:
    other, first = run_ready(store, RUN_B), run_ready(store)
    for batch in (other, first):
        land.land_batch(store, batch)
    second = next_batch(store)
    land.land_batch(store, second)
    assert standing(store) == expected(store, other, second)


def test_an_earlier_batch_that_comes_late_does_not_undo_a_later_one(store: Store) -> None:
    first = run_ready(store)
    second = next_batch(store)
    land.land_batch(store, second)
    land.land_batch(store, first)
    assert standing(store) == expected(store, second)


def test_a_later_batch_without_rows_for_a_table_empties_it(store: Store) -> None:
    refused = MEASUREMENTS.empty_table()
    rows = files.read(store, keys.parsed_key(run_ready(store), "measurements"))
    refused = rows.append_column(QUARANTINE.field("reason"), pa.array(["out of range"] * rows.num_rows))
    batches = [keys.batch_id(make.RUN_ID, "x", generation) for generation in (1, 2)]
    land.land_table(store, "quarantine", refused, batches[0], make.RUN_ID)
    assert landings.rows_of(store, "quarantine").num_rows == rows.num_rows
    land.land_table(store, "quarantine", QUARANTINE.empty_table(), batches[1], make.RUN_ID)
    assert landings.rows_of(store, "quarantine").num_rows == 0


# --- races --------------------------------------------------------------------------------------------------


def test_a_batch_raced_by_eight_processes_lands_once(any_settings: Settings) -> None:
    store = storage.open_store(any_settings)
    batch = run_ready(store)
    landed = processes.at_once(_land, [(any_settings, batch)] * 8)
    assert standing(store) == expected(store, batch)
    assert {name: version for name, version in versions(store).items() if name in landings.LANDED} == landed[0]


def test_different_runs_landed_at_once_are_all_there_once(any_settings: Settings) -> None:
    store = storage.open_store(any_settings)
    runs = [f"202611{day:02d}T020000Z-cccccc" for day in range(1, 9)]
    batches = [run_ready(store, run, ["rand_read"]) for run in runs]
    processes.at_once(_land, [(any_settings, batch) for batch in batches])
    assert standing(store) == expected(store, *batches)


def test_two_batches_of_a_run_raced_by_eight_processes_leave_the_later_one(settings: Settings, store: Store) -> None:
    first = run_ready(store)
    second = next_batch(store)
    processes.at_once(_land, [(settings, batch) for batch in (first, second)] * 4)
    assert standing(store) == expected(store, second)


def _land(settings: Settings, batch: str) -> dict[str, int]:
    return dict(land.land_batch(storage.open_store(settings), batch))


def test_a_landing_that_loses_every_race_says_so_and_can_be_tried_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(land, "_ATTEMPTS", 1)
    rows = files.read(store, keys.parsed_key(run_ready(store), "measurements"))
    batches = [keys.batch_id(make.RUN_ID, number) for number in range(200)]

    def attempt(batch: str) -> bool:
        try:
            land.land_table(store, "measurements", rows, batch, make.RUN_ID)
        except LandingConflict:
            return False
        return True

    delta.open_table(store, "measurements")
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(attempt, batches[:40]))
    assert not all(won)
    assert landings.rows_of(store, "measurements").num_rows == rows.num_rows


@pytest.fixture(scope="module")
def landable(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, tuple[str, ...]]:
    """A store with three batches ready: two of one run, one of another."""
    where = Settings(home=tmp_path_factory.mktemp("landable"))
    store = storage.open_store(where)
    return where, (run_ready(store, RUN_A), next_batch(store, RUN_A), run_ready(store, RUN_B))


TRIES = st.lists(st.tuples(st.integers(0, 2), st.integers(0, len(landings.LANDED))), max_size=6)
"""Which batch, and after how many tables the landing ended."""


@settings(max_examples=12, deadline=None, derandomize=True)
@given(TRIES)
def test_whatever_landings_were_tried_and_cut_short_in_whatever_order_the_newest_batches_stand_once(
    landable: tuple[Settings, tuple[str, ...]], tmp_path_factory: pytest.TempPathFactory, tries: list[tuple[int, int]]
) -> None:
    source = storage.open_store(landable[0])
    store = storage.open_store(Settings(home=tmp_path_factory.mktemp("tries")))
    for number, tables in [*tries, (1, 5), (0, 5), (2, 5)]:
        batch = landable[1][number]
        for name in landings.LANDED[:tables]:
            rows = files.read(source, keys.landing_key(batch, name))
            land.land_table(store, name, rows, batch, keys.run_of(batch))
    assert standing(store) == expected(source, landable[1][1], landable[1][2])


# --- schema evolution ---------------------------------------------------------------------------------------


def wider(rows: pa.Table) -> pa.Table:
    """The rows as a newer release would land them: with a column more, at the end."""
    return rows.append_column(pa.field("firmware", pa.string()), pa.array(["1.2"] * rows.num_rows))


def measured(store: Store, run_id: str) -> tuple[pa.Table, str]:
    batch = run_ready(store, run_id)
    return files.read(store, keys.parsed_key(batch, "measurements")), batch


def test_rows_with_a_new_column_land_beside_old_rows_and_old_writers_go_on(store: Store) -> None:
    old, old_batch = measured(store, RUN_A)
    new, new_batch = measured(store, RUN_B)
    land.land_table(store, "measurements", old, old_batch, RUN_A)
    land.land_table(store, "measurements", wider(new), new_batch, RUN_B)
    again = keys.batch_id(RUN_A, "parsed again by the older release", 2)
    land.land_table(store, "measurements", old, again, RUN_A)
    table = delta.open_table(store, "measurements")
    assert delta.columns(table).names == [*MEASUREMENTS.names, "firmware"]
    seen = table.to_pyarrow_table(columns=["run_id", "firmware"]).group_by(["run_id", "firmware"]).aggregate([])
    assert sorted(seen.to_pylist(), key=str) == [
        {"run_id": RUN_A, "firmware": None},
        {"run_id": RUN_B, "firmware": "1.2"},
    ]


def test_a_new_column_changes_nothing_for_a_reader_of_an_earlier_version(store: Store) -> None:
    old, old_batch = measured(store, RUN_A)
    version = land.land_table(store, "measurements", old, old_batch, RUN_A)
    reader = delta.open_table(store, "measurements")
    before = reader.to_pyarrow_table()
    new, new_batch = measured(store, RUN_B)
    land.land_table(store, "measurements", wider(new), new_batch, RUN_B)
    assert reader.to_pyarrow_table().equals(before)
    later = delta.open_table(store, "measurements")
    later.load_as_version(version)
    assert later.to_pyarrow_table().equals(before)


def test_rows_without_a_nullable_column_land_with_nulls(store: Store) -> None:
    rows, batch = measured(store, RUN_A)
    land.land_table(store, "measurements", rows.drop_columns(["tool_version"]), batch, RUN_A)
    assert set(landings.rows_of(store, "measurements")["tool_version"].to_pylist()) == {None}


def test_rows_without_a_column_that_must_be_there_are_refused_whole(store: Store) -> None:
    rows, batch = measured(store, RUN_A)
    with pytest.raises(CorruptObject, match=rf"{batch}.*'value'"):
        land.land_table(store, "measurements", rows.drop_columns(["value"]), batch, RUN_A)
    assert landings.rows_of(store, "measurements").num_rows == 0


def test_a_new_column_brought_by_many_at_once_is_added_once_and_no_row_is_lost(
    settings: Settings, store: Store
) -> None:
    runs = [f"202611{day:02d}T020000Z-dddddd" for day in range(1, 9)]
    batches = [measured(store, run)[1] for run in runs]
    tasks = [(settings, batch, number % 2 == 0) for number, batch in enumerate(batches)]
    processes.at_once(_land_measurements, tasks)
    table = delta.open_table(store, "measurements")
    assert delta.columns(table).names == [*MEASUREMENTS.names, "firmware"]
    assert standing(store)["measurements"] == expected(store, *batches)["measurements"]


def _land_measurements(settings: Settings, batch: str, with_news: bool) -> None:
    store = storage.open_store(settings)
    rows = files.read(store, keys.parsed_key(batch, "measurements"))
    land.land_table(store, "measurements", wider(rows) if with_news else rows, batch, keys.run_of(batch))


# --- the whole way ------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_a_run_goes_from_plan_to_query_on_any_store_by_settings_alone(any_settings: Settings) -> None:
    store = storage.open_store(any_settings)
    raws = landings.raws(samples=["rand_read", "seq_write", "sigterm"])
    landings.hand_in(store, raws)
    batch = stages.parse(store, make.RUN_ID, make.AT)
    validation = stages.validate(store, batch)
    landed = stages.land(store, batch)
    assert landed["runs"] == 1
    with query.open_reader(store) as reader:
        outcomes = reader.query("SELECT outcome, count(*) FROM runs GROUP BY ALL ORDER BY ALL").rows
        values = reader.query("SELECT count(*) FROM results").rows
    assert [tuple(row) for row in outcomes] == [("ok", 2), ("truncated", 1)]
    assert values[0][0] == validation.rows - validation.quarantined > 0
    assert stages.parse(store, make.RUN_ID, make.AT) == batch
    assert stages.land(store, batch) == landed
