"""A store and a cache that earlier commits wrote are read by this one, and go on: see `make_fixture`."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipelines import backup, bulk, keys, stages, storage
from pipelines.datasets import catalog, download, stage, verify
from pipelines.datasets import publish as publisher
from pipelines.datasets.manifest import Manifest, Packing
from pipelines.datasets.meter import Meter
from pipelines.records import Environment, RawOutput
from pipelines.settings import Settings
from pipelines.spool import Spool
from pipelines.storage import Store
from pipelines.tables import delta, maintain, render, snapshot
from pipelines.tables.query import open_reader
from pipelines.tables.schema import TABLES
from tests.datasets import trees
from tests.tables import landings
from tests.upgrade.fixtures import FIXTURES, Old, unpacked
from tests.upgrade.make_fixture import QUERIES, source

AT = datetime(2027, 1, 1, 2, tzinfo=UTC)
NEW_RUN = "20270101T020000Z-aaaaaa"
pytestmark = pytest.mark.integration  # seconds each: Great Expectations, some hundred small files


def quiet(_: str) -> None:
    """For what says what it does."""


@pytest.fixture(params=FIXTURES, ids=lambda path: path.name.partition(".")[0])
def old(request: pytest.FixtureRequest, settings: Settings) -> Old:
    return unpacked(request.param, settings)


def answers(store: Store, as_of: datetime | None = None, names: tuple[str, ...] = tuple(QUERIES)) -> dict[str, object]:
    """Of the queries that the fixture's commit answered."""
    with open_reader(store, as_of) as reader:
        return {name: json.loads(render.as_json(reader.query(QUERIES[name]))) for name in names}


def of_runs(told: dict[str, object], runs: list[str]) -> dict[str, object]:
    """The rows of these runs, without what is made anew for every batch."""
    return {name: [row for row in rows if row["run_id"] in runs] for name, rows in told.items()}  # type: ignore[attr-defined]


def land(store: Store, run_id: str, at: datetime = AT) -> str:
    batch = stages.parse(store, run_id, at)
    assert not stages.validate(store, batch).failed
    stages.land(store, batch)
    stages.judge(store, run_id, at)
    stages.report(store, run_id)
    return batch


def test_there_are_fixtures_and_each_has_runs_and_rows() -> None:
    assert len(FIXTURES) >= 3


def test_tables_answer_as_they_did(old: Old) -> None:
    assert old.said["answers"]["results"]
    assert answers(old.store) == old.said["answers"]


def test_every_plan_and_piece_of_evidence_is_read(old: Old) -> None:
    outcomes = {row["raw_key"]: row["raw_sha256"] for row in old.said["answers"]["runs"]}
    found = {key: old.store.read(key) for key in old.store.keys_under("raw")}
    assert {key: keys.sha256(data) for key, data in found.items()} == outcomes
    for data in found.values():
        raw = RawOutput.model_validate_json(data)
        assert raw.job in stages.load_plan(old.store, raw.run_id).jobs
        environment = old.store.read(keys.environment_key(raw.environment_id))
        assert Environment.model_validate_json(environment).facts["kernel"]


def test_parsed_again_a_run_lands_as_its_next_batch_with_the_same_numbers(old: Old) -> None:
    before = {key for run in old.runs for key in old.store.keys_under(keys.batches_prefix(run))}
    landed = datetime.now(UTC)
    batches = [land(old.store, run, landed) for run in old.runs]
    assert [keys.generation_of(batch) for batch in batches] == [2] * len(batches)
    assert before < {key for run in old.runs for key in old.store.keys_under(keys.batches_prefix(run))}
    assert answers(old.store) == old.said["answers"]


def test_a_new_run_lands_beside_the_old_ones_and_they_stay_as_they_were(old: Old) -> None:
    landings.hand_in(old.store, landings.raws(NEW_RUN), NEW_RUN)
    land(old.store, NEW_RUN)
    with open_reader(old.store) as reader:
        complete = [run for (run,) in reader.query("SELECT run_id FROM completed ORDER BY ALL").rows]
        lacking = [
            (name, column)
            for name in TABLES.keys() & reader.versions
            for column in TABLES[name].schema.names
            if column not in reader.query(f"FROM {name} LIMIT 0").names
        ]
    assert complete == [*old.runs, NEW_RUN]
    assert lacking == []
    told = ("results", "runs", "histograms", "environments")
    assert of_runs(answers(old.store, names=told), old.runs) == {name: old.said["answers"][name] for name in told}


def test_a_late_result_of_an_old_run_is_taken(old: Old) -> None:
    run = old.runs[0]
    (job,) = (job for job in stages.load_plan(old.store, run).jobs if job.params["profile"] == "rand_read")
    first = RawOutput.model_validate_json(old.store.read(keys.raw_key(run, job.node, job.job_id, 1)))
    here = Spool.of(old.settings, old.store)
    again = first.model_copy(update={"attempt": 2}).model_dump_json()
    here.put(keys.raw_key(run, job.node, job.job_id, 2), again.encode())
    here.send(old.store, quiet)
    assert stages.land_late(old.store, AT, quiet) == (run,)
    assert outcomes(landings.rows_of(old.store, "runs").to_pylist(), run) == {
        **outcomes(old.said["answers"]["runs"], run),
        (job.case, 2): "ok",
    }


def outcomes(rows: list[dict[str, Any]], run: str) -> dict[tuple[str, int], str]:
    return {(row["case"], row["attempt"]): row["outcome"] for row in rows if row["run_id"] == run}


def test_datasets_are_intact_staged_already_and_published_on(old: Old, tmp_path: Path) -> None:
    assert set(catalog.datasets(old.store)) == set(old.said["datasets"])
    for name, was in old.said["datasets"].items():
        of = catalog.load(old.store, name)
        assert (of.version, of.stored_bytes) == (was["version"], was["stored_bytes"])
        assert verify.damaged(old.store, bulk.of(old.store), of, meter(of)) == []
        download.download(old.store, of, tmp_path / name, "files", quiet)
        assert files(tmp_path / name) == source()
        staged = stage.stage(old.settings, old.store, of, of.body.shards, staging_id=keys.run_id(AT, name), say=quiet)
        assert [(each.reason, each.fetched_bytes) for each in staged.transfers] == [("", 0)] * len(of.body.shards)
        grown = published(old, of, tmp_path / f"{name}-source", {**source(), "zz.txt": b"new"})
        assert grown.provenance.parent == of.version
        assert {shard.sha256 for shard in grown.body.shards} & {shard.sha256 for shard in of.body.shards}


def meter(of: Manifest) -> Meter:
    return Meter(quiet, of.stored_bytes, len(of.body.shards), "shards")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def published(old: Old, parent: Manifest, folder: Path, content: dict[str, bytes]) -> Manifest:
    packing: Packing = parent.body.packing
    wanted = trees.request(trees.write(folder, content), packing, dataset=parent.dataset)
    return publisher.publish(old.settings, old.store, wanted, AT, quiet)


def test_maintenance_and_a_backup_of_it_change_no_answer(old: Old) -> None:
    maintain.maintain(old.store, datetime.now(UTC))
    assert answers(old.store) == old.said["answers"]
    to, restored = (
        storage.open_store(old.settings.model_copy(update={"store": f"file://{old.settings.home}/{name}"}))
        for name in ("backup", "restored")
    )
    backup.restore(to, backup.make(old.store, to, AT, quiet), restored, quiet)
    assert answers(restored) == old.said["answers"]


def test_no_table_has_lost_or_changed_a_column(old: Old) -> None:
    """What `schema.py` promises: a column is only ever added, at the end and nullable."""
    for name, description in TABLES.items():
        table = snapshot.open_newest(old.store, name)
        if table is None:
            continue  # a table that came later
        was, now = delta.columns(table), description.schema
        assert [(field.name, field.type) for field in was] == [
            (field.name, field.type) for field in list(now)[: len(was)]
        ]
        assert all(field.nullable for field in list(now)[len(was) :])
