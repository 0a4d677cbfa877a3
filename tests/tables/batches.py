"""A batch as the parser leaves it, made of real outputs of fio: a run of nodes x profiles x repeats."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import keys, stages
from pipelines.records import Plan, RawOutput
from pipelines.storage import Store
from pipelines.tables import schema
from tests import make
from tests.benchmarks import fio_samples

BATCH = f"{make.RUN_ID}.0123456789ab"
ENVIRONMENT = {"kernel": "6.1.0-30-amd64", "numa": [{"node": 0, "cpus": "0-63"}, {"node": 1, "cpus": "64-127"}]}
Row = dict[str, Any]


@dataclass(frozen=True)
class Batch:
    plan: Plan
    runs: tuple[Row, ...]
    measurements: tuple[Row, ...]
    histograms: tuple[Row, ...]

    def with_row(self, position: int, **fields: Any) -> "Batch":
        """The batch with some fields of one measurement changed."""
        changed = [{**row, **fields} if at == position else row for at, row in enumerate(self.measurements)]
        return replace(self, measurements=tuple(changed))

    def tables(self) -> Mapping[str, pa.Table]:
        at = self.runs[0]["landed_at"] if self.runs else make.AT
        night = {"run_id": make.RUN_ID, "month": "2026-11", "night": make.AT.date()}
        environment = {**night, "environment_id": "env-1", "batch_id": BATCH, "landed_at": at}
        rows = {
            "runs": self.runs,
            "measurements": self.measurements,
            "histograms": self.histograms,
            "environments": ({**environment, "facts": json.dumps(ENVIRONMENT)},),
        }
        return {name: pa.Table.from_pylist(list(rows[name]), schema=schema.TABLES[name].schema) for name in rows}

    def put(self, store: Store) -> "Batch":
        """Write the plan and the parsed files."""
        stages.publish_plan(store, self.plan)
        for name, table in self.tables().items():
            stream = io.BytesIO()
            pq.write_table(table, stream)
            store.create(keys.parsed_key(BATCH, name), stream.getvalue())
        return self


def batch(
    profiles: Sequence[str] = ("rand_read",),
    nodes: Sequence[str] = ("gpu-01",),
    repeats: int = 2,
    instead: Callable[[RawOutput], RawOutput] = lambda raw: raw,
    note: str = "",
) -> Batch:
    """Each job's raw output is the real sample of its profile, or what `instead` makes of it."""
    raws = []
    for node in nodes:
        for profile in profiles:
            for repeat in range(1, repeats + 1):
                raw = fio_samples.raw(profile)
                job = raw.job.model_copy(
                    update={"job_id": f"{node}-{profile}-{repeat}", "node": node, "repeat": repeat}
                )
                raws.append(instead(raw.model_copy(update={"job": job})))
    found = Batch(make.plan(*(raw.job for raw in raws), note=note), (), (), ())
    for raw in raws:
        found = _with(found, raw)
    return found


def killed(raw: RawOutput) -> RawOutput:
    """The same job, ended by SIGTERM as fio really ends then: a whole document and status 128."""
    stopped = fio_samples.raw("sigterm")
    return raw.model_copy(update={"output": stopped.output, "exit_status": stopped.exit_status})


def _with(found: Batch, raw: RawOutput) -> Batch:
    job, parsed = raw.job, fio_samples.FIO.parse(raw)
    row = {
        "run_id": make.RUN_ID,
        "month": "2026-11",
        "night": make.AT.date(),
        "node": job.node,
        "cohort": found.plan.node(job.node).cohort,
        "benchmark": job.benchmark,
        "case": job.case,
        "repeat": job.repeat,
        "job_id": job.job_id,
        "attempt": raw.attempt,
        "environment_id": raw.environment_id,
        "tool": raw.tool,
        "tool_version": raw.tool_version,
        "simulated": raw.simulated,
        "raw_key": keys.raw_key(make.RUN_ID, job.node, job.job_id, raw.attempt),
        "raw_sha256": keys.sha256(raw.model_dump_json().encode()),
        "started_at": raw.started_at + timedelta(seconds=len(found.runs)),
        "batch_id": BATCH,
        "landed_at": make.AT + timedelta(minutes=5),
    }
    ended = {
        **{name: getattr(found.plan, name) for name in ("suite", "trigger", "note")},
        **{name: getattr(raw, name) for name in ("exit_status", "signal", "timed_out", "duration_s", "lease_wait_s")},
        "outcome": str(parsed.outcome),
        "reason": parsed.reason,
        "params": [(name, str(value)) for name, value in job.params.items()],
        "facts": list(raw.facts.items()),
        "notes": list(parsed.notes),
    }
    values = [
        {**row, "metric": m.metric, "value": m.value, "unit": m.unit, "labels": list(m.labels.items())}
        for m in parsed.measurements
    ]
    counts = [
        {**row, "metric": h.metric, "unit": h.unit, "labels": list(h.labels.items()), "bins": _bins(h.bins)}
        for h in parsed.histograms
    ]
    return replace(
        found,
        runs=(*found.runs, {**row, **ended}),
        measurements=(*found.measurements, *values),
        histograms=(*found.histograms, *counts),
    )


def _bins(bins: Sequence[tuple[float, int]]) -> list[Row]:
    return [{"value": value, "count": count} for value, count in bins]
