"""Runs handed in, parsed and accepted as validation would, and what of them stands in the tables."""

from collections import Counter
from collections.abc import Iterable, Mapping

import pyarrow as pa

from pipelines import keys, stages
from pipelines.records import Environment, Plan, RawOutput
from pipelines.storage import Store
from pipelines.tables import delta, files, parse
from pipelines.tables.schema import QUARANTINE, TABLES
from tests import make
from tests.benchmarks import fio_samples

LANDED = ("environments", "histograms", "measurements", "quarantine", "runs", "telemetry")
ENVIRONMENT = Environment(environment_id="env-1", facts={"kernel": "6.1.0-30-amd64", "cpus": 64})
RUN_A, RUN_B = "20261121T020000Z-aaaaaa", "20261122T020000Z-bbbbbb"


def raws(run_id: str = make.RUN_ID, samples: Iterable[str] = ("rand_read", "seq_write", "mixed")) -> list[RawOutput]:
    """Real outputs of fio, as the jobs of one run on one node."""
    given = [fio_samples.raw(sample) for sample in samples]
    return [
        raw.model_copy(update={"run_id": run_id, "job": raw.job.model_copy(update={"job_id": f"job-{number}"})})
        for number, raw in enumerate(given, start=1)
    ]


def hand_in(store: Store, given: Iterable[RawOutput], run_id: str = make.RUN_ID) -> Plan:
    """Publish a plan of these jobs, their environment and their raw outputs."""
    given = list(given)
    plan = stages.publish_plan(store, make.plan(*(raw.job for raw in given), run_id=run_id))
    store.create(keys.environment_key("env-1"), ENVIRONMENT.model_dump_json().encode())
    for raw in given:
        put(store, raw)
    return plan


def put(store: Store, raw: RawOutput) -> str:
    key = keys.raw_key(raw.run_id, raw.job.node, raw.job.job_id, raw.attempt)
    store.create(key, raw.model_dump_json().encode())
    return key


def ready(store: Store, run_id: str = make.RUN_ID) -> str:
    """The run parsed and all of its rows accepted. Returns the batch."""
    batch = parse.prepare(store, stages.load_plan(store, run_id), make.AT)
    for name in ("environments", "histograms", "telemetry", "measurements", "runs"):
        store.create(keys.landing_key(batch, name), store.read(keys.parsed_key(batch, name)))
    files.create(store, keys.landing_key(batch, "quarantine"), QUARANTINE.empty_table())
    return batch


def rows_of(store: Store, name: str) -> pa.Table:
    return delta.open_table(store, name).to_pyarrow_table()


def standing(store: Store) -> Mapping[str, Counter[str]]:
    """How many rows of which batch each table has."""
    return {name: Counter(rows_of(store, name)["batch_id"].to_pylist()) for name in LANDED}


def expected(store: Store, *batches: str) -> Mapping[str, Counter[str]]:
    """What must stand in the tables when exactly these batches have landed, once each."""
    return {
        name: Counter({batch: rows for batch in batches if (rows := _landing(store, batch, name).num_rows)})
        for name in LANDED
    }


def _landing(store: Store, batch: str, name: str) -> pa.Table:
    return files.read(store, keys.landing_key(batch, name))


def versions(store: Store) -> Mapping[str, int]:
    return {name: delta.open_table(store, name).version() for name in TABLES}
