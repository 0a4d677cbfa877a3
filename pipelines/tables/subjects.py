"""The frames that expectations are held against: a batch's rows beside what the plan and the descriptors say of them.

A row keeps its position in the parsed file as its index, so that a failing row can be found again.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipelines import benchmark
from pipelines.records import Outcome, Plan
from pipelines.tables.expectations import EVIDENCE, Subject, quantity

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

Attempt = tuple[str, int | None]
"""A job's id and the number of the attempt; None: it was never attempted."""


def of_batch(plan: Plan, runs: "pa.Table", measurements: "pa.Table") -> Mapping[Subject, "pd.DataFrame"]:
    """Each subject's frame. Rows of `runs` and `measurements` stand in the order of the tables."""
    return {
        "plan": _planned_jobs(plan, runs, measurements),
        "runs": _attempts(plan, runs),
        "measurements": _values(plan, measurements),
    }


def benchmarks_of(plan: Plan) -> tuple[benchmark.Benchmark, ...]:
    """Raises: Unknown: a benchmark that this installation does not have."""
    return tuple(benchmark.get(name) for name in sorted({job.benchmark for job in plan.jobs}))


def outcomes(runs: "pa.Table") -> Mapping[Attempt, tuple[str, str]]:
    """Outcome and reason of each attempt, earlier attempts first."""
    rows = runs.select(["job_id", "attempt", "outcome", "reason"]).sort_by([("attempt", "ascending")]).to_pylist()
    return {(row["job_id"], row["attempt"]): (row["outcome"], row["reason"]) for row in rows}


def _planned_jobs(plan: Plan, runs: "pa.Table", measurements: "pa.Table") -> "pd.DataFrame":
    """One row per planned job: the outcome of its last attempt, and which required metrics that attempt lacks."""
    import pandas as pd

    last = {job_id: (attempt, outcome) for (job_id, attempt), (outcome, _) in outcomes(runs).items()}
    given: dict[Attempt, set[str]] = {}
    columns = [measurements[name].to_pylist() for name in ("job_id", "attempt", "metric")]
    for job_id, attempt, metric in zip(*columns, strict=True):
        given.setdefault((job_id, attempt), set()).add(metric)
    required: dict[tuple[Any, ...], frozenset[str]] = {}
    rows = []
    for job in plan.jobs:
        attempt, outcome = last.get(job.job_id, (None, None))
        missing: set[str] | frozenset[str] = set()
        if outcome == Outcome.OK:
            same = (job.benchmark, *sorted(job.params.items()))
            if same not in required:
                descriptor = benchmark.get(job.benchmark)
                required[same] = descriptor.required(descriptor.params_of(job))
            missing = required[same] - given.get((job.job_id, attempt), set())
        row = {name: getattr(job, name) for name in ("job_id", "node", "benchmark", "case", "repeat")}
        rows.append({**row, "outcome": outcome, "missing": ", ".join(sorted(missing)) or None})
    columns_of_plan = ["job_id", "node", "benchmark", "case", "repeat", "outcome", "missing"]
    return pd.DataFrame(rows, columns=columns_of_plan, dtype=object)


def _attempts(plan: Plan, runs: "pa.Table") -> "pd.DataFrame":
    frame = runs.select(["job_id", "node", "attempt", "outcome", "reason"]).to_pandas()
    failed = frame["outcome"] != Outcome.OK
    frame["reason_unless_ok"] = frame["reason"].where((frame["reason"] != "") & failed, None).where(failed, "ok")
    return _with_plan(frame, plan)


def _values(plan: Plan, measurements: "pa.Table") -> "pd.DataFrame":
    """The rows, and beside them a column for each described metric that holds its values and nothing else.

    With a column of its own each metric is one cheap expectation: 60,000 rows of 50 metrics are validated in half the
    time that 50 row conditions over one column take.
    """
    import pandas as pd

    names = ["job_id", "benchmark", "metric", "value", "unit", *EVIDENCE]
    frame = measurements.select(names).to_pandas()
    frame["quantity"] = frame["benchmark"] + " " + frame["metric"]
    frame["label_text"] = [str(dict(sorted(labels or ()))) for labels in measurements["labels"].to_pylist()]
    units = {quantity(known.name, m.name): m.unit for known in benchmarks_of(plan) for m in known.described}
    frame["expected_unit"] = frame["quantity"].map(units).where(frame["quantity"].isin(units), frame["unit"])
    frame = _with_plan(frame, plan)
    own = {name: frame["value"].where(frame["quantity"] == name) for name in units}
    return pd.concat([frame, pd.DataFrame(own, index=frame.index)], axis=1)


def _with_plan(frame: "pd.DataFrame", plan: Plan) -> "pd.DataFrame":
    """`planned_job` is missing where the plan has no such job; `attempt_number` is 0 for a job never attempted."""
    planned = {job.job_id for job in plan.jobs}
    frame["planned_job"] = frame["job_id"].where(frame["job_id"].isin(planned))
    frame["attempt_number"] = frame["attempt"].fillna(0).astype(int)
    return frame
