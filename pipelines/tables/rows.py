"""A run's rows from its plan and raw outputs: one for every planned job, and with each number its evidence. Pure."""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from functools import partial
from itertools import chain
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from pipelines import benchmark, energy, keys
from pipelines.arrivals import Failure
from pipelines.errors import CorruptObject, Unknown, UnknownOutput
from pipelines.records import (
    Environment,
    Histogram,
    Job,
    Labels,
    Measurement,
    Outcome,
    Parsed,
    Plan,
    RawOutput,
    Scalar,
    Series,
)
from pipelines.tables.schema import ENVIRONMENTS, HISTOGRAMS, LABELS, MEASUREMENTS, RUNS, TELEMETRY

_OF_JOB = ("node", "benchmark", "case", "repeat", "job_id", "dataset", "peer", "round")
_ENDED_EARLY = "there is no raw output: a task of its node began, and ended before this job"
_FAILED = "there is no raw output: the task {} of its node failed, attempt {}: {}"
_NOT_HEARD_OF = "there is no raw output, nor word that a task of its node began"
_UNPARSED = Parsed(outcome=Outcome.TOOL_FAILED, reason="-")
_UNREACHABLE = "node unreachable: no task was heard to begin there within {:g} s"


@dataclass(frozen=True)
class Attempt:
    """One raw output and what was made of it. `raw` is without the tool's output, and absent where it is damaged."""

    key: str
    sha256: str
    job_id: str
    number: int
    raw: RawOutput | None
    parsed: Parsed


@dataclass(frozen=True)
class Rows:
    """Tables of `schema.py`; measurements are as parsed, not judged."""

    environments: pa.Table
    histograms: pa.Table
    telemetry: pa.Table
    measurements: pa.Table
    runs: pa.Table


def read(key: str, data: bytes, url: str) -> Attempt:
    """A raw output as it lies in the store. What cannot be read or parsed is an outcome with its reason, no error.

    Raises:
        BadKey: not the key of a raw output.
    """
    run, node, job_id, number = keys.raw_parts(key)
    attempt = Attempt(key, keys.sha256(data), job_id, number, None, _UNPARSED)
    try:
        raw = RawOutput.model_validate_json(data)
    except ValidationError as e:
        first = e.errors()[0]
        return _damaged(attempt, url, f"{'.'.join(map(str, first['loc'])) or 'document'}: {first['msg']}")
    if (raw.run_id, raw.job.node, raw.job.job_id, raw.attempt) != (run, node, job_id, number):
        return _damaged(attempt, url, f"it is of attempt {raw.attempt} at job {raw.job.job_id} of run {raw.run_id}")
    without = {"output": None, "stdout": "", "stderr": "", "telemetry": None}
    return replace(attempt, raw=raw.model_copy(update=without), parsed=energy.beside(raw, _parse(raw)))


def unread(key: str, sha256: str, url: str, size_bytes: int) -> Attempt:
    """A raw output that is larger than any that a node writes. Raises: BadKey."""
    _, _, job_id, number = keys.raw_parts(key)
    return _damaged(
        Attempt(key, sha256, job_id, number, None, _UNPARSED), url, f"it has {size_bytes} B; it was not read"
    )


def _damaged(attempt: Attempt, url: str, problem: str) -> Attempt:
    return replace(attempt, parsed=Parsed(outcome=Outcome.TOOL_FAILED, reason=str(CorruptObject(url, problem))))


def _parse(raw: RawOutput) -> Parsed:
    if raw.refusal is not None:
        return Parsed(outcome=raw.refusal.outcome, reason=raw.refusal.reason)
    if "busy_after" in raw.facts:  # real work came while it ran, and its numbers are of both
        return Parsed(outcome=Outcome.CONTENDED, reason=f"when it ended: {raw.facts['busy_after']}")
    try:
        parsed = benchmark.get(raw.job.benchmark).parse(raw)
    except (UnknownOutput, Unknown) as e:  # Unknown: no planned job of this run, whose benchmarks are all known
        return Parsed(outcome=Outcome.TOOL_FAILED, reason=str(e))
    given = {name: value for name, value in (("dataset", raw.job.dataset), ("peer", raw.job.peer)) if value}
    return _with_labels(parsed, given) if given else parsed


def _with_labels(parsed: Parsed, given: Labels) -> Parsed:
    """Dataset and peer are labels of each number, so that numbers of different ones are never taken together."""
    measurements, histograms = (
        tuple(each.model_copy(update={"labels": {**each.labels, **given}}) for each in group)
        for group in (parsed.measurements, parsed.histograms)
    )
    return parsed.model_copy(update={"measurements": measurements, "histograms": histograms})


def rows_of(
    plan: Plan,
    attempts: Iterable[Attempt],
    environments: Sequence[Environment],
    batch: str,
    at: datetime,
    reached: Collection[str] = (),
    failed: Collection[Failure] = (),
) -> Rows:
    """Every row of the run, as batch `batch` landed at `at`: one in `runs` per planned job and attempt.

    A job without a raw output is `not_measured` and has no attempt; `reached` are the nodes on which a task began, and
    `failed` what tasks of nodes failed with. A readable raw output of a job that the plan does not have keeps its row
    as well, so that validation can name it.
    """
    night = date.fromisoformat(keys.run_date(plan.run_id))
    shared = {"run_id": plan.run_id, "month": f"{night:%Y-%m}", "night": night, "batch_id": batch, "landed_at": at}
    given = list(attempts)
    judged = list(_by_job(plan, given))
    heard_of = {*reached, *(keys.raw_parts(attempt.key)[1] for attempt in given)}
    absent = partial(_absent, plan, heard_of, {(each.node, each.task): each for each in failed})
    cohorts = {node.name: node.cohort for node in plan.nodes}
    runs = pa.Table.from_pylist([{**shared, **_run(plan, cohorts, absent, *each)} for each in judged], schema=RUNS)
    parsed = [attempt.parsed for _, attempt in judged if attempt]
    of = [row for row, (_, attempt) in enumerate(judged) if attempt]
    facts = [
        {**shared, "environment_id": each.environment_id, "facts": _json(each.model_dump(mode="json")["facts"])}
        for each in environments
    ]
    return Rows(
        environments=pa.Table.from_pylist(facts, schema=ENVIRONMENTS),
        histograms=_histograms(runs, of, [each.histograms for each in parsed]),
        telemetry=_telemetry(runs, of, [each.series for each in parsed]),
        measurements=_measurements(runs, of, [each.measurements for each in parsed]),
        runs=runs,
    )


def _by_job(plan: Plan, attempts: Iterable[Attempt]) -> Iterator[tuple[Job, Attempt | None]]:
    """Jobs in the plan's order, then those it does not have; a job's attempts in their order."""
    found: dict[str, list[Attempt | None]] = {}
    for attempt in sorted(attempts, key=lambda each: each.number):
        found.setdefault(attempt.job_id, []).append(attempt)
    for job in plan.jobs:
        yield from ((job, attempt) for attempt in found.pop(job.job_id, [None]))
    unplanned = chain.from_iterable(found[job_id] for job_id in sorted(found))
    yield from ((attempt.raw.job, attempt) for attempt in unplanned if attempt and attempt.raw)


def _absent(plan: Plan, heard_of: Collection[str], failed: Mapping[tuple[str, str], Failure], job: Job) -> Parsed:
    """Why there is no raw output of a job."""
    if failure := failed.get((job.node, job.task)):
        reason = _FAILED.format(failure.task, failure.attempt, failure.problem)
    elif job.node in heard_of:
        reason = _ENDED_EARLY
    elif plan.unreachable_after_s is None:
        reason = _NOT_HEARD_OF
    else:
        reason = _UNREACHABLE.format(plan.unreachable_after_s)
    return Parsed(outcome=Outcome.NOT_MEASURED, reason=reason)


def _run(
    plan: Plan, cohorts: Mapping[str, str], absent: Callable[[Job], Parsed], job: Job, attempt: Attempt | None
) -> dict[str, Any]:
    parsed = attempt.parsed if attempt else absent(job)
    raw = attempt.raw if attempt else None
    of_tool = (
        "environment_id",
        "tool",
        "tool_version",
        "started_at",
        "exit_status",
        "signal",
        "timed_out",
        "duration_s",
    )
    return {
        **{name: getattr(plan, name) for name in ("suite", "trigger", "note")},
        **{name: getattr(job, name) for name in _OF_JOB},
        "cohort": cohorts.get(job.node, "unlabelled"),
        "attempt": attempt.number if attempt else None,
        "outcome": parsed.outcome.value,
        "reason": parsed.reason,
        "params": sorted((name, _text(value)) for name, value in job.params.items()),
        "facts": sorted(raw.facts.items()) if raw else [],
        "notes": list(parsed.notes),
        **{name: getattr(raw, name, None) for name in (*of_tool, "lease_wait_s")},
        "simulated": raw.simulated if raw else False,
        "raw_key": attempt.key if attempt else None,
        "raw_sha256": attempt.sha256 if attempt else None,
    }


def _measurements(runs: pa.Table, of: Sequence[int], given: Sequence[Sequence[Measurement]]) -> pa.Table:
    flat = list(chain.from_iterable(given))
    own = {
        "metric": pa.array([each.metric for each in flat], pa.string()),
        "value": pa.array([each.value for each in flat], pa.float64()),
        "unit": pa.array([each.unit for each in flat], pa.string()),
        "labels": _labels(flat),
    }
    return _beside(runs, of, [len(each) for each in given], own, MEASUREMENTS)


def _histograms(runs: pa.Table, of: Sequence[int], given: Sequence[Sequence[Histogram]]) -> pa.Table:
    flat = list(chain.from_iterable(given))
    bins = [pair for each in flat for pair in each.bins]
    ends = [0]
    for each in flat:
        ends.append(ends[-1] + len(each.bins))
    kind = HISTOGRAMS.field("bins").type
    pairs = pa.StructArray.from_arrays(
        [pa.array([value for value, _ in bins], pa.float64()), pa.array([count for _, count in bins], pa.int64())],
        fields=list(kind.value_type),
    )
    own = {
        "metric": pa.array([each.metric for each in flat], pa.string()),
        "unit": pa.array([each.unit for each in flat], pa.string()),
        "labels": _labels(flat),
        "bins": pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pairs, type=kind),
    }
    return _beside(runs, of, [len(each) for each in given], own, HISTOGRAMS)


def _telemetry(runs: pa.Table, of: Sequence[int], given: Sequence[Sequence[Series]]) -> pa.Table:
    flat = list(chain.from_iterable(given))
    plain = ("metric", "unit", "source", "count", "minimum", "mean", "maximum", "seconds", "samples")
    own = {name: pa.array([getattr(each, name) for each in flat], TELEMETRY.field(name).type) for name in plain}
    return _beside(runs, of, [len(each) for each in given], {**own, "labels": _labels(flat)}, TELEMETRY)


def _beside(
    runs: pa.Table, of: Sequence[int], counts: Sequence[int], own: Mapping[str, pa.Array], schema: pa.Schema
) -> pa.Table:
    """Columns of numbers beside what the row of `runs` that they come from says of them."""
    index = [row for row, count in zip(of, counts, strict=True) for _ in range(count)]
    shared = runs.select([name for name in schema.names if name not in own]).take(pa.array(index, pa.int64()))
    return pa.table([own.get(name) if name in own else shared[name] for name in schema.names], schema=schema)


def _labels(flat: Sequence[Measurement] | Sequence[Histogram] | Sequence[Series]) -> pa.Array:
    """Sorted by name, so that equal labels are equal values. A tool has few sets of labels: each is sorted once."""
    kept: dict[tuple[tuple[str, str], ...], list[tuple[str, str]]] = {}
    return pa.array([_sorted_once(kept, each.labels) for each in flat], LABELS)


def _sorted_once(kept: dict[tuple[tuple[str, str], ...], list[tuple[str, str]]], labels: Labels) -> Any:
    items = tuple(labels.items())
    if items not in kept:
        kept[items] = sorted(items)
    return kept[items]


def _text(value: Scalar) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _json(body: Any) -> str:
    return json.dumps(body, sort_keys=True, ensure_ascii=False)
