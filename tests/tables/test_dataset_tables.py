"""The tables of datasets: a row for each version, transfer and check, landed once however often and by how many."""

from collections import Counter
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from pipelines import keys, storage
from pipelines.datasets import catalog, names
from pipelines.datasets.events import Arrival, Check, Finding, Scrub, Staging, Transfer
from pipelines.datasets.manifest import Manifest, Packing
from pipelines.errors import CorruptObject
from pipelines.settings import Settings
from pipelines.storage import Store
from pipelines.tables import datasets, delta, files, land, landed, maintain, quarantine, repeats, results
from pipelines.tables.query import open_reader
from pipelines.tables.schema import QUARANTINE, TABLES
from tests import make, processes
from tests.datasets import trees
from tests.tables import landings, nights
from tests.tables.batches import batch

AT = datetime(2026, 11, 21, 3, tzinfo=UTC)
STAGING_ID, SCRUB_ID = "20261121T020000Z-5ca1ab", "20261122T060000Z-0ddba1"
VERSION = "0" * 32


def publish(settings: Settings, folder: Path, files: int = 20, at: datetime = AT, **more: Any) -> Manifest:
    source = trees.write(folder, trees.tree(files))
    return trees.published(settings, trees.request(source, **more), at)


def rows_of(store: Store, name: str, order: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = landings.rows_of(store, name).sort_by(order).to_pylist()
    return rows


def transfer(number: int, arrival: Arrival = Arrival.FETCHED, **fields: Any) -> Transfer:
    defaults: dict[str, Any] = {
        "dataset": "photos",
        "version": VERSION,
        "shard": f"{number:064x}",
        "size_bytes": 2**20,
        "arrival": arrival,
        "fetched_bytes": 2**20,
        "duration_s": 0.5,
        "started_at": AT + timedelta(seconds=number),
    }
    return Transfer(**{**defaults, **fields})


def staged(store: Store, node: str, *transfers: Transfer, staging_id: str = STAGING_ID) -> str:
    """Put a node's record of a staging into the store. Returns its key."""
    record = Staging(
        staging_id=staging_id,
        node=node,
        store="file:///srv/store",
        cache="/mnt/nvme/cache",
        environment_id="env-1",
        transfers=transfers,
    )
    key = names.staging_key(staging_id, node)
    store.create(key, record.model_dump_json().encode())
    return key


def checked(number: int, dataset: str = "photos", finding: Finding = Finding.INTACT, reason: str = "") -> Check:
    return Check(
        dataset=dataset,
        shard=f"{number:064x}",
        size_bytes=2**20,
        finding=finding,
        reason=reason,
        duration_s=0.25,
        checked_at=AT + timedelta(seconds=number),
    )


def scrubbed(store: Store, place: str, name: str, *checks: Check) -> str:
    record = Scrub(scrub_id=SCRUB_ID, place=place, checks=checks)
    key = names.scrub_key(SCRUB_ID, name)
    store.create(key, record.model_dump_json().encode())
    return key


# --- versions -----------------------------------------------------------------------------------------------


def test_a_row_says_of_a_version_what_its_manifest_says(any_settings: Settings, tmp_path: Path) -> None:
    store = storage.open_store(any_settings)
    made = publish(any_settings, tmp_path / "photos", note="first")
    assert datasets.land_versions(store, AT) == 1
    (row,) = rows_of(store, "datasets", "version")
    assert row == {
        "dataset": "photos",
        "version": made.version,
        "month": "2026-11",
        "published_at": AT,
        "parent": None,
        "source": str(tmp_path / "photos"),
        "format": "tar",
        "shard_bytes": trees.SHARD_BYTES,
        "zstd_level": None,
        "shards": len(made.body.shards),
        "files": 20,
        "samples": 10,
        "content_bytes": made.content_bytes,
        "stored_bytes": made.stored_bytes,
        "new_bytes": made.stored_bytes,
        "environment_id": made.provenance.environment_id,
        "code_version": made.provenance.code_version,
        "hostname": made.provenance.hostname,
        "note": "first",
        "manifest_key": f"datasets/photos/versions/{made.version}.json",
        "landed_at": AT,
    }


def test_new_bytes_are_those_that_the_parent_does_not_have(settings: Settings, store: Store, tmp_path: Path) -> None:
    first = publish(settings, tmp_path / "photos")
    trees.write(tmp_path / "photos", {"later/99999.jpg": b"x" * 100_000})
    second = publish(settings, tmp_path / "photos")
    datasets.land_versions(store, AT)
    rows = {row["version"]: row for row in rows_of(store, "datasets", "version")}
    assert rows[second.version]["parent"] == first.version
    assert rows[second.version]["new_bytes"] == catalog.difference(store, first, second).new_bytes
    assert 100_000 < rows[second.version]["new_bytes"] < second.stored_bytes


@pytest.mark.parametrize("collected", [False, True])
def test_new_bytes_are_absent_only_when_the_parent_is_gone_for_good(
    settings: Settings, store: Store, tmp_path: Path, collected: bool
) -> None:
    first = publish(settings, tmp_path / "photos")
    trees.write(tmp_path / "photos", {"later/99999.jpg": b"x" * 100_000})
    second = publish(settings, tmp_path / "photos")
    new_bytes = catalog.difference(store, first, second).new_bytes
    catalog.remove(store, "photos", first.version)
    if collected:
        store.delete(names.removed_key("photos", first.version))
    assert datasets.land_versions(store, AT) == 1
    (row,) = rows_of(store, "datasets", "version")
    assert (row["version"], row["new_bytes"]) == (second.version, None if collected else new_bytes)


def test_a_version_lands_once_even_when_it_is_removed_and_published_again(
    settings: Settings, store: Store, tmp_path: Path
) -> None:
    made = publish(settings, tmp_path / "photos")
    assert [datasets.land_versions(store, AT) for _ in range(3)] == [1, 0, 0]
    before = delta.open_table(store, "datasets").version()
    catalog.move_tag(store, catalog.tag_of(store, "photos", "latest"), None, AT, by="test")
    catalog.remove(store, "photos", made.version)
    assert datasets.land_versions(store, AT) == 0
    assert publish(settings, tmp_path / "photos", at=AT + timedelta(days=1)).version == made.version
    assert datasets.land_versions(store, AT) == 0
    assert [row["published_at"] for row in rows_of(store, "datasets", "version")] == [AT]
    assert delta.open_table(store, "datasets").version() == before


def test_versions_of_all_datasets_land_in_one_commit(settings: Settings, store: Store, tmp_path: Path) -> None:
    made = {publish(settings, tmp_path / name, dataset=name).reference for name in ("cats", "dogs", "owls")}
    assert datasets.land_versions(store, AT) == 3
    assert {f"{row['dataset']}@{row['version']}" for row in rows_of(store, "datasets", "version")} == made
    assert delta.open_table(store, "datasets").version() == 1


def test_versions_raced_by_eight_processes_land_once(any_settings: Settings, tmp_path: Path) -> None:
    store = storage.open_store(any_settings)
    made = [publish(any_settings, tmp_path / name, dataset=name).version for name in ("cats", "dogs", "owls")]
    landed = processes.at_once(_land_versions, [(any_settings,)] * 8)
    assert sum(landed) == 3
    assert Counter(row["version"] for row in rows_of(store, "datasets", "version")) == Counter(made)


def test_versions_published_and_landed_at_once_are_all_there_once(settings: Settings, tmp_path: Path) -> None:
    store = storage.open_store(settings)
    landed = processes.at_once(_publish_and_land, [(settings, tmp_path, f"set-{number}") for number in range(6)])
    assert sum(landed) == 6
    found = Counter(row["dataset"] for row in rows_of(store, "datasets", "dataset"))
    assert found == Counter(f"set-{number}" for number in range(6))


@pytest.mark.integration
def test_a_landing_of_versions_killed_at_any_point_is_made_whole_by_a_retry(
    settings: Settings, store: Store, tmp_path: Path
) -> None:
    made = [publish(settings, tmp_path / "first", dataset="first").version]
    span_s = processes.duration_s(_land_versions, settings)
    for number, moment_s in enumerate(processes.moments(seed=3, count=12, span_s=span_s)):
        made.append(publish(settings, tmp_path / f"{number}", files=2, dataset=f"set-{number}").version)
        processes.kill_after(moment_s, _land_versions, settings)
        datasets.land_versions(store, AT)
        assert Counter(row["version"] for row in rows_of(store, "datasets", "version")) == Counter(made)


def _land_versions(settings: Settings) -> int:
    return datasets.land_versions(storage.open_store(settings), AT)


def _publish_and_land(settings: Settings, folder: Path, dataset: str) -> int:
    publish(settings, folder / dataset, files=4, dataset=dataset)
    return _land_versions(settings)


def test_a_damaged_manifest_is_left_out_and_the_other_versions_land(
    settings: Settings, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = (publish(settings, tmp_path / name, dataset=name) for name in ("good", "bad"))
    key = names.version_key("bad", bad.version)
    store.replace(key, store.read(key)[:-10])
    assert datasets.land_versions(store, AT) == 1
    assert [row["version"] for row in rows_of(store, "datasets", "version")] == [good.version]
    assert f"version left out: key={key}" in caplog.text


# --- stagings and scrubs ------------------------------------------------------------------------------------


def test_every_transfer_of_every_node_is_a_row_as_it_was_recorded(any_store: Store) -> None:
    fetched = [transfer(1), transfer(2, Arrival.RESUMED, fetched_bytes=2**19)]
    others = [transfer(3, Arrival.PRESENT, fetched_bytes=0), transfer(4, Arrival.FAILED, reason="the disk is full")]
    given = {staged(any_store, "gpu-01", *fetched): fetched, staged(any_store, "gpu-02", *others): others}
    assert datasets.land_staging(any_store, STAGING_ID) == 4
    rates = {Arrival.FETCHED: 2**21, Arrival.RESUMED: 2**20, Arrival.PRESENT: None, Arrival.FAILED: None}
    assert rows_of(any_store, "staging", "shard") == [
        {
            "staging_id": STAGING_ID,
            "month": "2026-11",
            "node": key[-11:-5],
            **{name: value for name, value in each.model_dump().items() if name not in {"arrival"}},
            "arrival": each.arrival.value,
            "bytes_per_s": rates[each.arrival],
            "environment_id": "env-1",
            "store": "file:///srv/store",
            "cache": "/mnt/nvme/cache",
            "evidence_key": key,
            "evidence_sha256": keys.sha256(any_store.read(key)),
        }
        for key, transfers in given.items()
        for each in transfers
    ]


def test_a_staging_that_lands_again_adds_only_the_nodes_that_came_since(store: Store) -> None:
    staged(store, "gpu-01", transfer(1))
    assert datasets.land_staging(store, STAGING_ID) == 1
    staged(store, "gpu-02", transfer(1), transfer(2))
    assert [datasets.land_staging(store, STAGING_ID) for _ in range(3)] == [2, 0, 0]
    assert Counter(row["node"] for row in rows_of(store, "staging", "node")) == {"gpu-01": 1, "gpu-02": 2}


def test_a_staging_raced_by_eight_processes_lands_once(any_settings: Settings) -> None:
    store = storage.open_store(any_settings)
    nodes = [f"gpu-{number:02d}" for number in range(10)]
    for node in nodes:
        staged(store, node, transfer(1), transfer(2))
    landed = processes.at_once(_land_staging, [(any_settings,)] * 8)
    assert sum(landed) == 20
    assert Counter(row["node"] for row in rows_of(store, "staging", "node")) == dict.fromkeys(nodes, 2)


def _land_staging(settings: Settings) -> int:
    return datasets.land_staging(storage.open_store(settings), STAGING_ID)


def test_more_nodes_than_one_commit_takes_are_all_landed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "_AT_ONCE", 3)
    for number in range(8):
        staged(store, f"gpu-{number:02d}", transfer(number))
    assert datasets.land_staging(store, STAGING_ID) == 8
    assert landings.rows_of(store, "staging").num_rows == 8
    assert delta.open_table(store, "staging").version() == 3


def test_a_damaged_record_is_named_when_the_other_nodes_have_landed(store: Store) -> None:
    staged(store, "gpu-01", transfer(1))
    store.create(names.staging_key(STAGING_ID, "gpu-02"), b'{"staging_id": ')
    staged(store, "gpu-03", transfer(1))
    with pytest.raises(CorruptObject, match=r"gpu-02\.json is damaged"):
        datasets.land_staging(store, STAGING_ID)
    assert [row["node"] for row in rows_of(store, "staging", "node")] == ["gpu-01", "gpu-03"]


def test_the_stagings_of_a_run_land_from_every_attempt_and_no_others_and_a_damaged_one_is_left_out(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    for node, attempt in (("gpu-01", 1), ("gpu-01", 2), ("gpu-02", 1)):
        staged(store, node, transfer(attempt), staging_id=names.staging_of_run(make.RUN_ID, attempt))
    staged(store, "gpu-03", transfer(1), staging_id=f"{make.RUN_ID}0.1")
    damaged = names.staging_key(names.staging_of_run(make.RUN_ID, 1), "gpu-04")
    store.create(damaged, b"{}")
    for _ in range(2):
        datasets.land_stagings_of(store, make.RUN_ID)
    assert Counter(row["node"] for row in rows_of(store, "staging", "node")) == {"gpu-01": 2, "gpu-02": 1}
    assert damaged in caplog.text


def test_a_record_that_lies_where_another_nodes_belongs_is_refused(store: Store) -> None:
    body = store.read(staged(store, "gpu-01", transfer(1)))
    store.create(names.staging_key(STAGING_ID, "gpu-010"), body)
    with pytest.raises(CorruptObject, match=r"gpu-010\.json is damaged: it is the record of staged/.*/gpu-01$"):
        datasets.land_staging(store, STAGING_ID)
    assert landings.rows_of(store, "staging").num_rows == 1


def test_every_check_of_every_place_is_a_row_as_it_was_recorded(any_store: Store) -> None:
    broken = checked(3, "owls", Finding.DAMAGED, "expected 1, got 2")
    given = {
        scrubbed(any_store, "gpu-01", "gpu-01", checked(1)): ("gpu-01", [checked(1)]),
        scrubbed(any_store, "store", "store.photos", checked(2)): ("store", [checked(2)]),
        scrubbed(any_store, "store", "store.owls", broken): ("store", [broken]),
    }
    assert [datasets.land_scrub(any_store, SCRUB_ID) for _ in range(2)] == [3, 0]
    assert rows_of(any_store, "scrubs", "shard") == [
        {
            "scrub_id": SCRUB_ID,
            "month": "2026-11",
            "place": place,
            **{name: value for name, value in each.model_dump().items() if name not in {"finding"}},
            "finding": each.finding.value,
            "evidence_key": key,
            "evidence_sha256": keys.sha256(any_store.read(key)),
        }
        for key, (place, checks) in given.items()
        for each in checks
    ]


def test_where_there_is_nothing_to_land_no_table_is_made(store: Store) -> None:
    staged(store, "gpu-01")
    landed = (
        datasets.land_versions(store, AT),
        datasets.land_staging(store, STAGING_ID),
        datasets.land_scrub(store, SCRUB_ID),
    )
    assert landed == (0, 0, 0)
    assert store.folders_under("tables") == []


# --- beside the tables of runs ------------------------------------------------------------------------------


def test_queries_see_the_tables_of_datasets_beside_a_run(settings: Settings, store: Store, tmp_path: Path) -> None:
    made = publish(settings, tmp_path / "photos")
    datasets.land_versions(store, AT)
    staged(store, "gpu-01", transfer(1, version=made.version), transfer(2, Arrival.FAILED, reason="it is gone"))
    datasets.land_staging(store, STAGING_ID)
    scrubbed(store, "store", "store.photos", checked(1), checked(2, finding=Finding.MISSING, reason="it is gone"))
    nights.put(store, nights.rows())
    datasets.land_scrub(store, SCRUB_ID)
    with open_reader(store) as reader:
        joined = "SELECT source, bytes_per_s FROM staging JOIN datasets USING (dataset, version)"
        assert reader.query(joined).rows == ((str(tmp_path / "photos"), 2.0**21),)
        assert reader.query("SELECT finding, reason FROM scrubs ORDER BY shard").rows == (
            ("intact", ""),
            ("missing", "it is gone"),
        )
        assert reader.query("SELECT count(*) FROM results").rows == ((3,),)


def test_maintenance_keeps_every_row_in_fewer_files_and_nothing_lands_again(store: Store) -> None:
    days = [date(2026, 11, day) for day in range(1, 6)]
    ids = [f"{day:%Y%m%d}T020000Z-5ca1ab" for day in days]
    for number, staging_id in enumerate(ids):
        staged(store, "gpu-01", transfer(number), transfer(9 - number), staging_id=staging_id)
        datasets.land_staging(store, staging_id)
    before = rows_of(store, "staging", "evidence_key")
    (done,) = maintain.maintain(store, AT).tables
    assert (done.table, done.rewritten, done.files_before, done.files_after) == ("staging", ("2026-11",), 5, 1)
    assert [datasets.land_staging(store, staging_id) for staging_id in ids] == [0] * 5
    after = rows_of(store, "staging", "evidence_key")
    assert sorted(map(str, after)) == sorted(map(str, before))
    sort = TABLES["staging"].sort
    stored = landings.rows_of(store, "staging").select(sort).to_pylist()
    assert stored == sorted(stored, key=lambda row: tuple(row[name] for name in sort))


def test_what_retention_has_dropped_does_not_land_again(settings: Settings, store: Store, tmp_path: Path) -> None:
    publish(settings, tmp_path / "old", dataset="old", at=AT - timedelta(days=90))
    publish(settings, tmp_path / "new", dataset="new")
    datasets.land_versions(store, AT)
    maintain.maintain(store, AT, keep_months={"datasets": 1})
    assert datasets.land_versions(store, AT) == 0
    assert [row["dataset"] for row in rows_of(store, "datasets", "dataset")] == ["new"]


# --- the column `dataset` of runs, measurements and quarantine ----------------------------------------------


def given_dataset(settings: Settings, folder: Path) -> str:
    packing = Packing(format="blob", shard_bytes=trees.SHARD_BYTES)
    source = trees.write(folder, {"weights.bin": b"w" * 1000})
    return trees.published(settings, trees.request(source, packing, dataset="weights")).reference


def test_rows_name_the_version_their_job_was_given_and_others_name_none(
    settings: Settings, store: Store, tmp_path: Path
) -> None:
    version = given_dataset(settings, tmp_path / "weights")
    with_it, without = landings.raws(samples=["rand_read", "seq_write"])
    with_it = with_it.model_copy(update={"job": with_it.job.model_copy(update={"dataset": version})})
    landings.hand_in(store, [with_it, without])
    land.land_batch(store, landings.ready(store))
    for name in ("runs", "measurements"):
        found = {(row["job_id"], row["dataset"]) for row in landings.rows_of(store, name).to_pylist()}
        assert found == {("job-1", version), ("job-2", None)}


def test_numbers_with_different_datasets_are_never_taken_together(store: Store) -> None:
    versions = [f"weights@{digit * 32}" for digit in "ab"]
    given = [
        raw.model_copy(update={"job": raw.job.model_copy(update={"dataset": version, "job_id": version[-2:]})})
        for raw, version in zip(landings.raws(samples=["rand_read"]) * 2, versions, strict=True)
    ]
    todo = landings.hand_in(store, given)
    land.land_batch(store, landings.ready(store))
    with open_reader(store) as reader:
        found = results.results(reader, metric="read_iops")
        newest = reader.query("SELECT labels['dataset'] FROM latest WHERE metric = 'read_iops' ORDER BY 1").rows
    assert [(each.labels["dataset"], each.repeats) for each in found] == [(version, 1) for version in versions]
    assert newest == tuple((version,) for version in versions)
    of_run = list(repeats.of_run(todo, landed.read(store, make.RUN_ID), ["read_iops"]))
    assert [(each.labels["dataset"], len(each.measured), each.absent) for each in of_run] == [
        (version, 1, ()) for version in versions
    ]


@pytest.mark.parametrize("name", ["measurements", "quarantine", "runs"])
def test_a_table_made_before_the_column_gets_it_at_its_end_and_keeps_its_rows(store: Store, name: str) -> None:
    landings.hand_in(store, landings.raws(landings.RUN_A), landings.RUN_A)
    parsed = files.read(store, keys.parsed_key(landings.ready(store, landings.RUN_A), "measurements"))
    rows = {
        "measurements": parsed,
        "quarantine": quarantine.split(parsed, dict.fromkeys(range(parsed.num_rows), "out of range"))[1],
        "runs": files.read(store, keys.parsed_key(landings.ready(store, landings.RUN_A), "runs")),
    }[name]
    later = rows.schema.names[rows.schema.get_field_index("dataset") :]
    older = rows.drop_columns(later)
    write_deltalake(delta.uri(store, name), older, partition_by=["month"])
    newer = rows.set_column(
        rows.schema.get_field_index("dataset"), "dataset", pa.array([f"weights@{VERSION}"] * rows.num_rows)
    )
    land.land_table(store, name, newer, keys.batch_id(landings.RUN_B, "new"), landings.RUN_B)
    table = DeltaTable(delta.uri(store, name))
    assert delta.columns(table).names == [*older.schema.names, *later] == TABLES[name].schema.names
    found = Counter(table.to_pyarrow_table()["dataset"].to_pylist())
    assert found == {None: rows.num_rows, f"weights@{VERSION}": rows.num_rows}


def test_rows_that_an_earlier_release_has_parsed_are_still_split_and_landed(store: Store) -> None:
    older = batch(repeats=1).tables()["measurements"].drop_columns(["dataset"])
    accepted, refused = quarantine.split(older, {0: "out of range"})
    assert accepted.num_rows == older.num_rows - 1
    assert refused.schema.names == [name for name in QUARANTINE.names if name != "dataset"]
    for name, rows in (("measurements", accepted), ("quarantine", refused)):
        land.land_table(store, name, rows, keys.batch_id(make.RUN_ID, "old"), make.RUN_ID)
        assert set(landings.rows_of(store, name)["dataset"].to_pylist()) == {None}
