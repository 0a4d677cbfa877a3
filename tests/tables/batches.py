"""A batch as the parser leaves it, made of real outputs of fio: a run of nodes x profiles x repeats."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pyarrow as pa

from pipelines import keys, stages
from pipelines.records import Environment, Plan, RawOutput
from pipelines.storage import Store
from pipelines.tables import files, rows
from pipelines.tables.schema import TABLES
from tests import make
from tests.benchmarks import fio_samples

BATCH = keys.batch_id(make.RUN_ID, "inputs")
PARSED = ("runs", "measurements", "histograms", "telemetry", "environments")
ENVIRONMENT = Environment(
    environment_id="env-1",
    facts={
        "kernel": "6.1.0-30-amd64",
        "memory_bytes": 1_080_000_000_000,
        "numa": ({"node": 0, "cpus": "0-63"}, {"node": 1, "cpus": "64-127"}),
    },
)
Row = dict[str, Any]


@dataclass(frozen=True)
class Batch:
    plan: Plan
    runs: tuple[Row, ...]
    measurements: tuple[Row, ...]
    histograms: tuple[Row, ...]
    telemetry: tuple[Row, ...]
    environments: tuple[Row, ...]

    def with_row(self, position: int, **fields: Any) -> "Batch":
        """The batch with some fields of one measurement changed."""
        changed = [{**row, **fields} if at == position else row for at, row in enumerate(self.measurements)]
        return replace(self, measurements=tuple(changed))

    def tables(self) -> Mapping[str, pa.Table]:
        """The rows as tables of `schema.py`."""
        return {name: pa.Table.from_pylist(list(getattr(self, name)), schema=TABLES[name].schema) for name in PARSED}

    def put(self, store: Store) -> "Batch":
        """Write the plan and the parsed files."""
        stages.publish_plan(store, self.plan)
        for name, table in self.tables().items():
            files.create(store, keys.parsed_key(BATCH, name), table)
        return self


def raws(profiles: Sequence[str], nodes: Sequence[str] = ("gpu-01",), repeats: int = 2) -> list[RawOutput]:
    """The raw output of each job: the real sample of its profile."""
    found = []
    for node in nodes:
        for profile in profiles:
            for repeat in range(1, repeats + 1):
                raw = fio_samples.raw(profile)
                job_id = f"{node}-{profile}-{repeat}"
                job = raw.job.model_copy(update={"job_id": job_id, "node": node, "repeat": repeat})
                found.append(raw.model_copy(update={"job": job}))
    return found


def batch(
    profiles: Sequence[str] = ("rand_read",),
    nodes: Sequence[str] = ("gpu-01",),
    repeats: int = 2,
    instead: Callable[[RawOutput], RawOutput] = lambda raw: raw,
    note: str = "",
) -> Batch:
    """The rows of these jobs; each raw output is the real sample of its profile, or what `instead` makes of it."""
    outputs = [instead(raw) for raw in raws(profiles, nodes, repeats)]
    plan = make.plan(*(raw.job for raw in outputs), note=note)
    attempts = [_attempt(raw) for raw in outputs]
    made = rows.rows_of(plan, attempts, [ENVIRONMENT], BATCH, make.AT + timedelta(minutes=5))
    return Batch(plan, *(tuple(getattr(made, name).to_pylist()) for name in PARSED))


def _attempt(raw: RawOutput) -> rows.Attempt:
    key = keys.raw_key(make.RUN_ID, raw.job.node, raw.job.job_id, raw.attempt)
    return rows.read(key, raw.model_dump_json().encode(), key)


def killed(raw: RawOutput) -> RawOutput:
    """The same job, ended by SIGTERM as fio really ends then: a whole document and status 128."""
    stopped = fio_samples.raw("sigterm")
    return raw.model_copy(update={"output": stopped.output, "exit_status": stopped.exit_status})
