"""Rows from raw output: nothing planned is missing, nothing handed in is lost, and parsing again gives the same."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipelines
from pipelines import arrivals, keys, stages, storage
from pipelines.errors import OtherVersion, Unknown, WrongNode
from pipelines.records import Outcome, Refusal
from pipelines.settings import Settings
from pipelines.storage import Store
from pipelines.tables import files, parse, rows
from pipelines.tables.schema import TABLES
from tests import make, processes
from tests.benchmarks import fio_samples
from tests.tables import landings

PARSED = ("environments", "histograms", "measurements", "runs", "telemetry")


def prepared(store: Store, run_id: str = make.RUN_ID) -> dict[str, list[dict[str, Any]]]:
    return {name: table.to_pylist() for name, table in tables(store, run_id).items()}


def tables(store: Store, run_id: str = make.RUN_ID) -> dict[str, pa.Table]:
    batch = parse.prepare(store, stages.load_plan(store, run_id), make.AT)
    return {name: files.read(store, keys.parsed_key(batch, name)) for name in PARSED}


def test_every_number_stands_in_a_row_beside_the_evidence_for_it(store: Store) -> None:
    raw = landings.raws(samples=["rand_read"])[0]
    landings.hand_in(store, [raw])
    made = prepared(store)
    key = keys.raw_key(raw.run_id, raw.job.node, raw.job.job_id, 1)
    told = fio_samples.FIO.parse(raw)
    assert [(row["metric"], row["value"], row["unit"]) for row in made["measurements"]] == [
        (each.metric, each.value, each.unit) for each in told.measurements
    ]
    assert {(row["raw_key"], row["raw_sha256"]) for row in made["measurements"]} == {
        (key, keys.sha256(store.read(key)))
    }
    assert made["runs"][0].items() >= {"outcome": "ok", "reason": "", "attempt": 1, "exit_status": 0}.items()
    assert made["histograms"][0]["bins"] == [
        {"value": value, "count": count} for value, count in told.histograms[0].bins
    ]


def test_parsed_files_have_the_schemas_of_the_tables(store: Store) -> None:
    landings.hand_in(store, landings.raws())
    for name, table in tables(store).items():
        assert table.schema.equals(TABLES[name].schema)


def test_a_job_without_raw_output_is_not_measured_and_says_so(store: Store) -> None:
    there, missing = landings.raws(samples=["rand_read", "seq_write"])
    stages.publish_plan(store, make.plan(there.job, missing.job))
    landings.put(store, there)
    row = prepared(store)["runs"][1]
    assert (row["job_id"], row["outcome"], row["attempt"]) == ("job-2", "not_measured", None)
    assert row["reason"].startswith("there is no raw output")


def reasons(store: Store, run_id: str = make.RUN_ID) -> list[str]:
    return [row["reason"] for row in prepared(store, run_id)["runs"]]


@pytest.mark.parametrize(
    ("waits_s", "reason"),
    [
        (900.0, "node unreachable: no task was heard to begin there within 900 s"),
        (None, "there is no raw output, nor word that a task of its node began"),
    ],
)
def test_a_node_that_nothing_was_heard_of_is_unreachable_where_its_task_waited_for_it(
    store: Store, waits_s: float | None, reason: str
) -> None:
    there, gone = landings.raws(samples=["rand_read", "seq_write"])
    job = gone.job.model_copy(update={"node": "gpu-02"})
    stages.publish_plan(store, make.plan(there.job, job, unreachable_after_s=waits_s))
    landings.put(store, there)
    assert reasons(store) == ["", reason]


@pytest.mark.parametrize("heard_by", ["its arrival", "another raw output", "a damaged raw output"])
def test_a_node_whose_task_began_is_not_called_unreachable(settings: Settings, store: Store, heard_by: str) -> None:
    there, missing = landings.raws(samples=["rand_read", "seq_write"])
    stages.publish_plan(store, make.plan(there.job, missing.job, unreachable_after_s=900.0))
    if heard_by == "its arrival":
        arrivals.record(settings, store, make.RUN_ID, "gpu-01", 1)
    elif heard_by == "another raw output":
        landings.put(store, there)
    else:
        store.create(keys.raw_key(make.RUN_ID, "gpu-01", there.job.job_id, 1), b"cut")
    assert reasons(store)[1] == "there is no raw output: a task of its node began, and ended before this job"


def test_a_job_whose_task_failed_says_with_what_it_did_the_last_time(settings: Settings, store: Store) -> None:
    jobs = (make.job(), make.job(job_id="job-2", peer="gpu-02"))
    made = stages.publish_plan(store, make.plan(*jobs, unreachable_after_s=9.0))
    key = keys.plan_key(made.run_id)
    store.replace(key, made.model_dump_json().replace('"note":', '"what_a_later_version_adds":').encode())
    for attempt in (1, 2):
        with pytest.raises(OtherVersion):
            stages.measure(settings, store, made.run_id, "gpu-01", attempt, lambda _: None)
    store.replace(key, made.model_dump_json().encode())
    first, other = reasons(store)
    assert first.startswith("there is no raw output: the task measure of its node failed, attempt 2: file://")
    assert "was written by another version of fleetmark than the one here (what_a_later_version_adds: Extra" in first
    assert other == "node unreachable: no task was heard to begin there within 9 s", "another task runs it"

    arrivals.heard(store, made.run_id, ["gpu-01"], make.AT)
    assert reasons(store) == [first, "there is no raw output: a task of its node began, and ended before this job"]
    assert arrivals.nodes(store, made.run_id) == {"gpu-01"}


@pytest.mark.parametrize("data", [b"cut", b"{}", b" " * 2**20], ids=["no JSON", "no failure", "too large"])
def test_what_is_no_failure_says_nothing(store: Store, data: bytes) -> None:
    made = stages.publish_plan(store, make.plan())
    store.create(keys.failure_key(made.run_id, "gpu-01", "measure", 1), data)
    others = arrivals.Failure(node="gpu-02", task="measure", attempt=1, problem="-").model_dump_json().encode()
    store.create(keys.failure_key(made.run_id, "gpu-01", "measure", 2), others)
    assert reasons(store) == ["there is no raw output, nor word that a task of its node began"]


def test_nothing_is_said_of_a_run_that_there_is_not_nor_by_another_node(settings: Settings, store: Store) -> None:
    with pytest.raises(Unknown):
        stages.measure(settings, store, make.RUN_ID, "gpu-01", 1, lambda _: None)
    stages.publish_plan(store, make.plan())
    elsewhere = settings.model_copy(update={"node": "gpu-02"})
    for task in (stages.measure, stages.exchange):
        with pytest.raises(WrongNode):
            task(elsewhere, store, make.RUN_ID, "gpu-01", 1, lambda _: None)
    assert store.keys_under(keys.arrivals_prefix(make.RUN_ID)) == []


def test_an_arrival_that_was_heard_of_since_makes_the_runs_next_batch(settings: Settings, store: Store) -> None:
    plan = stages.publish_plan(store, make.plan(unreachable_after_s=900.0))
    first = parse.prepare(store, plan, make.AT)
    assert parse.prepare(store, plan, make.AT) == first
    arrivals.record(settings, store, make.RUN_ID, "gpu-01", 2)
    second = parse.prepare(store, plan, make.AT)
    assert [keys.generation_of(batch) for batch in (first, second)] == [1, 2]
    assert parse.prepare(store, plan, make.AT) == second


def test_a_machine_leaves_no_word_of_another_nodes_arrival(settings: Settings, store: Store) -> None:
    with pytest.raises(WrongNode):
        arrivals.record(settings.model_copy(update={"node": "gpu-02"}), store, make.RUN_ID, "gpu-01", 1)
    assert arrivals.nodes(store, make.RUN_ID) == frozenset()


def test_output_that_its_parser_does_not_know_is_a_failed_tool_with_the_parsers_sentence(store: Store) -> None:
    raw = landings.raws(samples=["rand_read"])[0].model_copy(update={"output": "hello"})
    landings.hand_in(store, [raw])
    made = prepared(store)
    assert made["runs"][0]["outcome"] == "tool_failed"
    assert made["runs"][0]["reason"].startswith("fio: expected")
    assert made["measurements"] == []


@pytest.mark.parametrize("damage", [b"", b"{", b'{"run_id": 1}', b"\xff\xfe"], ids=["empty", "cut", "fields", "bytes"])
def test_a_damaged_raw_output_is_a_row_that_names_the_object_and_the_others_are_parsed(
    store: Store, damage: bytes
) -> None:
    first, second = landings.raws(samples=["rand_read", "seq_write"])
    stages.publish_plan(store, make.plan(first.job, second.job))
    key = keys.raw_key(first.run_id, first.job.node, first.job.job_id, 1)
    store.create(key, damage)
    landings.put(store, second)
    broken, whole = prepared(store)["runs"]
    assert broken["outcome"] == "tool_failed"
    assert broken["reason"].startswith(f"object {store.url(key)} is damaged: ")
    assert (broken["raw_key"], broken["attempt"]) == (key, 1)
    assert whole["outcome"] == "ok"


def test_a_raw_output_under_another_jobs_key_is_not_taken_for_that_jobs(store: Store) -> None:
    first, second = landings.raws(samples=["rand_read", "seq_write"])
    stages.publish_plan(store, make.plan(first.job, second.job))
    store.create(keys.raw_key(first.run_id, first.job.node, "job-1", 1), second.model_dump_json().encode())
    made = prepared(store)
    assert made["runs"][0]["reason"].endswith(f"it is of attempt 1 at job job-2 of run {make.RUN_ID}")
    assert made["measurements"] == []


def test_a_refused_job_has_the_refusals_outcome_and_reason(store: Store) -> None:
    refusal = Refusal(outcome=Outcome.CONFIG, reason="scratch directory /x: missing")
    landings.hand_in(store, [make.raw(refusal=refusal, exit_status=None)])
    row = prepared(store)["runs"][0]
    assert (row["outcome"], row["reason"]) == ("config", "scratch directory /x: missing")


def test_each_attempt_at_a_job_has_a_row_and_its_own_numbers(store: Store) -> None:
    first = landings.raws(samples=["rand_read"])[0]
    landings.hand_in(store, [first.model_copy(update={"output": ""})])
    landings.put(store, first.model_copy(update={"attempt": 2}))
    made = prepared(store)
    assert [(row["attempt"], row["outcome"]) for row in made["runs"]] == [(1, "tool_failed"), (2, "ok")]
    assert {row["attempt"] for row in made["measurements"]} == {2}


def test_a_raw_output_that_nobody_planned_keeps_its_rows(store: Store) -> None:
    planned, other = landings.raws(samples=["rand_read", "seq_write"])
    landings.hand_in(store, [planned])
    landings.put(store, other)
    assert [row["job_id"] for row in prepared(store)["runs"]] == ["job-1", "job-2"]


def test_a_strange_object_among_raw_outputs_is_passed_over(store: Store) -> None:
    landings.hand_in(store, landings.raws())
    store.create(f"{keys.raw_prefix(make.RUN_ID)}/notes.txt", b"looked at by hand")
    assert len(prepared(store)["runs"]) == 3


def test_an_environment_is_one_row_however_many_jobs_saw_it_and_a_missing_one_is_left_out(store: Store) -> None:
    raws = landings.raws()
    landings.hand_in(store, [*raws[:2], raws[2].model_copy(update={"environment_id": "env-2"})])
    environments = prepared(store)["environments"]
    assert [(row["environment_id"], row["facts"]) for row in environments] == [
        ("env-1", '{"cpus": 64, "kernel": "6.1.0-30-amd64"}')
    ]


def test_parsing_again_gives_the_same_batch_and_writes_nothing(store: Store) -> None:
    plan = landings.hand_in(store, landings.raws())
    first = parse.prepare(store, plan, make.AT)
    before = {key: store.read(key) for key in store.keys_under("parsed")}
    assert parse.prepare(store, plan, make.AT.replace(year=2027)) == first
    assert {key: store.read(key) for key in store.keys_under("parsed")} == before


def test_a_raw_output_that_came_late_makes_the_runs_next_batch(store: Store) -> None:
    raws = landings.raws()
    plan = stages.publish_plan(store, make.plan(*(raw.job for raw in raws)))
    landings.put(store, raws[0])
    first = parse.prepare(store, plan, make.AT)
    landings.put(store, raws[1])
    second = parse.prepare(store, plan, make.AT)
    assert (keys.generation_of(first), keys.generation_of(second)) == (1, 2)
    assert keys.run_of(first) == keys.run_of(second) == make.RUN_ID


def with_another_parser(settings: Settings, folder: Path, run_id: str = make.RUN_ID) -> str:
    """Parse the run with a copy of this package whose fio parser takes a nanosecond for two. Returns the batch."""
    package = folder / "pipelines"
    if not package.exists():
        shutil.copytree(pipelines.__path__[0], package, ignore=shutil.ignore_patterns("__pycache__"))
        parser = package / "families/fio_results.py"
        parser.write_text(parser.read_text().replace("_NS_PER_S = 10**9", "_NS_PER_S = 5 * 10**8"))
    program = (
        "import sys; from datetime import datetime; from pathlib import Path; from pipelines import settings, stages\n"
        "from pipelines.storage import open_store\n"
        "store = open_store(settings.Settings(home=Path(sys.argv[1])))\n"
        "print(stages.parse(store, sys.argv[2], datetime.fromisoformat(sys.argv[3])))\n"
    )
    argv = [sys.executable, "-c", program, str(settings.home), run_id, make.AT.isoformat()]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_changed_parser_makes_the_runs_next_batch_and_so_does_going_back(
    settings: Settings, store: Store, tmp_path: Path
) -> None:
    plan = landings.hand_in(store, landings.raws(samples=["rand_read"]))
    first = parse.prepare(store, plan, make.AT)
    second = with_another_parser(settings, tmp_path / "other")
    third = parse.prepare(store, plan, make.AT)
    assert [keys.generation_of(batch) for batch in (first, second, third)] == [1, 2, 3]
    latency = [
        next(row["value"] for row in read.to_pylist() if row["metric"] == "read_latency_p99")
        for read in (files.read(store, keys.parsed_key(batch, "measurements")) for batch in (first, second, third))
    ]
    assert latency == [latency[0], latency[0] * 2, latency[0]]


@pytest.mark.integration
def test_parsing_killed_at_any_point_and_tried_again_gives_the_rows_it_would_have_given(
    settings: Settings, tmp_path: Path
) -> None:
    store = storage.open_store(settings)
    plan = landings.hand_in(store, landings.raws())
    template = tmp_path / "template"
    shutil.copytree(settings.home / "store", template)
    span_s = processes.duration_s(_prepare, settings)
    batch = parse.prepare(store, plan, make.AT)
    whole = {key: files.read(store, key) for key in store.keys_under("parsed")}
    ended_early = 0
    for moment_s in processes.moments(seed=3, count=40, span_s=span_s):
        shutil.rmtree(settings.home / "store")
        shutil.copytree(template, settings.home / "store")
        ended_early += processes.kill_after(moment_s, _prepare, settings)
        for key in store.keys_under("parsed"):
            assert files.read(store, key).equals(whole[key])
        assert parse.prepare(store, plan, make.AT) == batch
        assert {key: files.read(store, key) for key in store.keys_under("parsed")} == whole
    assert ended_early >= 10


def _prepare(settings: Settings) -> None:
    parse.prepare(storage.open_store(settings), stages.load_plan(storage.open_store(settings), make.RUN_ID), make.AT)


SAMPLES = landings.raws(samples=["rand_read", "seq_read", "seq_write", "mixed"])
HANDED_IN = st.lists(st.tuples(st.integers(0, len(SAMPLES) - 1), st.integers(1, 3), st.booleans()), max_size=8)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(HANDED_IN)
def test_whatever_was_handed_in_each_planned_job_has_a_row_and_each_attempt_exactly_one(
    handed_in: list[tuple[int, int, bool]],
) -> None:
    plan = make.plan(*(raw.job for raw in SAMPLES))
    chosen = {(position, number): damaged for position, number, damaged in handed_in}
    attempts = []
    for (position, number), damaged in chosen.items():
        raw = SAMPLES[position].model_copy(update={"attempt": number})
        key = keys.raw_key(raw.run_id, raw.job.node, raw.job.job_id, number)
        attempts.append(rows.read(key, b"cut" if damaged else raw.model_dump_json().encode(), key))
    made = rows.rows_of(plan, attempts, [], keys.batch_id(plan.run_id, "x"), make.AT)
    reached = {attempt.job_id for attempt in attempts}
    expected: list[tuple[str, int | None]] = [(attempt.job_id, attempt.number) for attempt in attempts]
    expected += [(raw.job.job_id, None) for raw in SAMPLES if raw.job.job_id not in reached]
    got = [(row["job_id"], row["attempt"]) for row in made.runs.to_pylist()]
    assert sorted(got, key=str) == sorted(expected, key=str)
    assert made.measurements.num_rows == sum(len(attempt.parsed.measurements) for attempt in attempts)
    assert all(row["reason"] for row in made.runs.to_pylist() if row["outcome"] != "ok")
