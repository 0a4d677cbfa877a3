"""Validation: what is believed lands, what is not is quarantined with the reason, and nothing is lost between them."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import keys
from pipelines.records import RawOutput, Validation
from pipelines.storage import Store
from pipelines.tables import expectations, quarantine, schema, subjects, validate
from tests import make
from tests.tables import batches
from tests.tables.batches import BATCH, batch, killed

LANDED = ("environments", "histograms", "measurements", "quarantine", "runs", "telemetry")


def landed(store: Store, table: str) -> pa.Table:
    return pq.read_table(io.BytesIO(store.read(keys.landing_key(BATCH, table))))


def reasons(store: Store) -> list[str]:
    return list(landed(store, "quarantine")["reason"].to_pylist())


def test_an_honest_batch_lands_whole(store: Store) -> None:
    tables = batch(profiles=("rand_read", "mixed", "checkpoint")).put(store).tables()
    validation = validate.validate_batch(store, BATCH)
    rows = tables["measurements"].num_rows
    assert validation == Validation(run_id=make.RUN_ID, success=True, rows=rows, quarantined=0, failed=())
    assert landed(store, "quarantine").num_rows == 0
    assert {name: landed(store, name) for name in tables} == tables


def test_landing_files_have_the_schemas_of_their_tables(store: Store) -> None:
    batch().with_row(0, unit="kB/s").put(store)
    validate.validate_batch(store, BATCH)
    assert {name: landed(store, name).schema for name in LANDED} == {
        name: schema.TABLES[name].schema for name in LANDED
    }


NOT_BELIEVED: tuple[tuple[dict[str, Any], str], ...] = (
    ({"value": 9.1e12}, "read_bandwidth 9.1e+12 B/s is outside the honest range 1000 .. 1e+12 B/s"),
    ({"value": math.inf}, "read_bandwidth inf B/s is outside the honest range 1000 .. 1e+12 B/s"),
    ({"value": math.nan}, "read_bandwidth has no value that is a number"),
    ({"unit": "KiB/s"}, "read_bandwidth is in 'KiB/s', expected 'B/s'"),
    ({"metric": "read_speed"}, "benchmark fio describes no metric 'read_speed'"),
    ({"raw_key": None}, "read_bandwidth does not say its raw_key"),
    ({"environment_id": None}, "read_bandwidth does not say its environment_id"),
    ({"metric": "read_iops", "unit": "1/s"}, "read_iops of job gpu-01-rand_read-8 has several values with the labels"),
)


@pytest.fixture(scope="module")
def judged() -> validate.Judged:
    """A batch in which the first value of each job is wrong, each in its own way."""
    made = batch(repeats=len(NOT_BELIEVED))
    per_job = len(made.measurements) // len(NOT_BELIEVED)
    for position, (fields, _) in enumerate(NOT_BELIEVED):
        made = made.with_row(position * per_job, **fields)
    tables = made.tables()
    return validate.judge(made.plan, tables["runs"], tables["measurements"])


@pytest.mark.parametrize("position", range(len(NOT_BELIEVED)))
def test_a_row_that_is_not_believed_has_a_reason_and_fails_the_batch(judged: validate.Judged, position: int) -> None:
    _, reason = NOT_BELIEVED[position]
    assert any(each.startswith(reason) for each in judged.reasons.values())
    assert any(reason in example for finding in judged.findings for example in finding.examples)


def test_no_other_row_is_quarantined(judged: validate.Judged) -> None:
    twice = 1  # of two rows that contradict each other neither is believed
    assert len(judged.reasons) == len(NOT_BELIEVED) + twice


def test_a_value_of_an_unplanned_job_is_quarantined(store: Store) -> None:
    made = batch()
    stranger = {**made.runs[0], "job_id": "stranger"}
    replace(made, runs=(*made.runs, stranger)).with_row(0, job_id="stranger").put(store)
    validation = validate.validate_batch(store, BATCH)
    assert reasons(store) == ["job stranger is not in the plan"]
    assert any("Every row in runs belongs to a planned job: 1 of 3" in sentence for sentence in validation.failed)


def test_every_reason_of_a_row_is_kept(store: Store) -> None:
    batch().with_row(0, value=-1.0, unit="KiB/s").put(store)
    validate.validate_batch(store, BATCH)
    assert len(reasons(store)) == 1
    assert "'KiB/s'" in reasons(store)[0]
    assert "honest range" in reasons(store)[0]


def test_values_of_a_job_that_did_not_end_ok_are_quarantined_without_failing_the_batch(store: Store) -> None:
    def second_is_killed(raw: RawOutput) -> RawOutput:
        return killed(raw) if raw.job.repeat == 2 else raw

    batch(instead=second_is_killed).put(store)
    validation = validate.validate_batch(store, BATCH)
    assert validation.success
    assert 0 < validation.quarantined < validation.rows
    assert set(reasons(store)) == {"its job ended truncated: fio ended early, on a signal (exit status 128)"}
    assert set(landed(store, "measurements")["job_id"].to_pylist()) == {"gpu-01-rand_read-1"}


def test_a_planned_job_without_a_row_fails_the_batch_which_lands_all_the_same(store: Store) -> None:
    made = batch()
    rest = [row for row in made.measurements if row["job_id"] == "gpu-01-rand_read-1"]
    replace(made, runs=made.runs[:1], measurements=tuple(rest)).put(store)
    validation = validate.validate_batch(store, BATCH)
    assert validation.failed == (
        "Every planned job has a row in runs: 1 of 2 do not hold "
        f"(fio {made.plan.jobs[1].case}, repeat 2, on gpu-01 (job gpu-01-rand_read-2) has none)",
    )
    assert landed(store, "measurements").num_rows == len(rest)


def test_a_job_that_ended_ok_without_a_required_metric_fails_the_batch(store: Store) -> None:
    made = batch(repeats=1)
    fewer = tuple(row for row in made.measurements if row["metric"] != "read_latency_p99")
    replace(made, measurements=fewer).put(store)
    validation = validate.validate_batch(store, BATCH)
    assert len(validation.failed) == 1
    assert validation.failed[0].endswith("(job gpu-01-rand_read-1) lacks read_latency_p99)")
    assert landed(store, "measurements").num_rows == len(fewer)


def test_a_batch_without_a_single_value_is_judged_too(store: Store) -> None:
    made = batch(repeats=1)
    refused = {**made.runs[0], "outcome": "not_measured", "reason": "fio is not installed", "attempt": None}
    replace(made, runs=(refused,), measurements=(), histograms=()).put(store)
    assert validate.validate_batch(store, BATCH) == Validation(
        run_id=make.RUN_ID, success=True, rows=0, quarantined=0, failed=()
    )


def test_a_retry_writes_what_is_missing_and_nothing_else(store: Store) -> None:
    batch().with_row(0, value=-1.0).put(store)
    first = validate.validate_batch(store, BATCH)
    written = {name: store.read(keys.landing_key(BATCH, name)) for name in LANDED}
    store.delete(keys.landing_key(BATCH, "quarantine"))
    store.delete(keys.landing_key(BATCH, "runs"))
    assert validate.validate_batch(store, BATCH) == first
    assert {name: store.read(keys.landing_key(BATCH, name)) for name in LANDED} == written


def test_the_decision_that_was_published_first_is_the_one_that_lands(store: Store) -> None:
    rows = batch().put(store).tables()["measurements"].num_rows
    first = validate.Decision(
        validation=Validation(run_id=make.RUN_ID, success=False, rows=rows, quarantined=1, failed=("odd",)),
        reasons={3: "another validator said so"},
    )
    store.create(keys.decision_key(BATCH), first.model_dump_json().encode())
    assert validate.validate_batch(store, BATCH) == first.validation
    assert reasons(store) == ["another validator said so"]


def test_the_pages_and_data_docs_of_a_validation_are_published(store: Store) -> None:
    batch().with_row(0, value=math.inf).put(store)
    validate.validate_batch(store, BATCH)
    body = json.loads(store.read(keys.report_key(make.RUN_ID, "validation.json")), parse_constant=pytest.fail)
    assert set(body["results"]) == {"plan", "runs", "measurements"}
    assert body["results"]["measurements"]["success"] is False
    page = store.read(keys.report_key(make.RUN_ID, "validation.html")).decode()
    assert "read_bandwidth inf B/s is outside the honest range" in page
    docs = store.keys_under(keys.docs_prefix(make.RUN_ID))
    assert f"{keys.docs_prefix(make.RUN_ID)}/index.html" in docs
    assert {"plan", "runs", "measurements"} <= {part for key in docs for part in key.split("/")}


def test_validation_leaves_nothing_in_the_working_directory(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    batch().put(store)
    validate.validate_batch(store, BATCH)
    assert list(elsewhere.iterdir()) == []


@given(st.data())
def test_accepted_and_quarantined_rows_together_are_the_parsed_rows(data: st.DataObject) -> None:
    rows = MEASUREMENTS.num_rows
    chosen = data.draw(st.dictionaries(st.integers(0, rows - 1), st.text(max_size=20)))
    accepted, refused = quarantine.split(MEASUREMENTS, chosen)
    assert dict(zip(sorted(chosen), refused["reason"].to_pylist(), strict=True)) == chosen
    both = pa.concat_tables([accepted, refused.drop_columns(["reason"])])
    assert both.sort_by(ORDER) == MEASUREMENTS.sort_by(ORDER)


MEASUREMENTS = batch(profiles=("mixed",)).tables()["measurements"]
ORDER = [("job_id", "ascending"), ("metric", "ascending")]


def test_every_metric_of_every_planned_benchmark_has_an_expectation() -> None:
    held = expectations.of_batch(subjects.benchmarks_of(batch().plan))
    ranges = {each.column for each in held if isinstance(each, expectations.Within)}
    described = {f"{known.name} {m.name}" for known in subjects.benchmarks_of(batch().plan) for m in known.described}
    assert ranges == described


def test_no_two_expectations_say_the_same() -> None:
    says = [each.says for each in expectations.of_batch(subjects.benchmarks_of(batch().plan))]
    assert len(says) == len(set(says))


def test_rows_of_an_attempt_that_runs_does_not_know_are_quarantined() -> None:
    tables = batches.batch(repeats=1).tables()
    found = quarantine.of_failed_jobs(tables["runs"].slice(0, 0), tables["measurements"])
    assert set(found.values()) == {"runs has no row that says how its job ended"}
    assert len(found) == tables["measurements"].num_rows
