"""The tables' schemas: names, types and units. A column is only ever added, at the end and nullable."""

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

LABELS = pa.map_(pa.string(), pa.string())
INSTANT = pa.timestamp("us", tz="UTC")

_RUN = [
    pa.field("run_id", pa.string(), nullable=False),
    pa.field("month", pa.string(), nullable=False),  # of the night, "2026-11"; the partition
    pa.field("night", pa.date32(), nullable=False),  # UTC
]
_WHERE = [
    pa.field("node", pa.string(), nullable=False),
    pa.field("cohort", pa.string(), nullable=False),
    pa.field("benchmark", pa.string(), nullable=False),
    pa.field("case", pa.string(), nullable=False),
]
_JOB = [
    pa.field("repeat", pa.int32(), nullable=False),
    pa.field("job_id", pa.string(), nullable=False),
    pa.field("attempt", pa.int32()),  # null: the job was never attempted
]
_EVIDENCE = [
    pa.field("environment_id", pa.string()),
    pa.field("tool", pa.string()),
    pa.field("tool_version", pa.string()),
    pa.field("simulated", pa.bool_(), nullable=False),
    pa.field("raw_key", pa.string()),
    pa.field("raw_sha256", pa.string()),
    pa.field("started_at", INSTANT),
]
_LANDED = [
    pa.field("batch_id", pa.string(), nullable=False),
    pa.field("landed_at", INSTANT, nullable=False),
]
_VALUE = [
    pa.field("metric", pa.string(), nullable=False),
    pa.field("value", pa.float64(), nullable=False),
    pa.field("unit", pa.string(), nullable=False),
]

_MEASURED = [*_RUN, *_WHERE, *_VALUE, *_JOB, pa.field("labels", LABELS), *_EVIDENCE, *_LANDED]
_ADDED = [pa.field("dataset", pa.string())]  # NAME@<version id> that the job was given
"""Columns that came later to `measurements`, so to `quarantine`, and to `runs`."""

MEASUREMENTS = pa.schema([*_MEASURED, *_ADDED])
"""One row per metric of one repeat of one case on one node."""

QUARANTINE = pa.schema([*_MEASURED, pa.field("reason", pa.string(), nullable=False), *_ADDED])
"""Rows that were not believed, as they would have landed, and why."""

HISTOGRAMS = pa.schema(
    [
        *_RUN,
        *_WHERE,
        pa.field("metric", pa.string(), nullable=False),
        pa.field("unit", pa.string(), nullable=False),
        *_JOB,
        pa.field("labels", LABELS),
        pa.field("bins", pa.list_(pa.struct([("value", pa.float64()), ("count", pa.int64())])), nullable=False),
        *_EVIDENCE,
        *_LANDED,
    ]
)
"""One row per histogram; counts of equal bin values add up across repeats, nodes and nights."""

TELEMETRY = pa.schema(
    [
        *_RUN,
        *_WHERE,
        pa.field("metric", pa.string(), nullable=False),
        pa.field("unit", pa.string(), nullable=False),
        *_JOB,
        pa.field("labels", LABELS),
        pa.field("source", pa.string(), nullable=False),
        pa.field("count", pa.int64(), nullable=False),
        pa.field("minimum", pa.float64(), nullable=False),
        pa.field("mean", pa.float64(), nullable=False),
        pa.field("maximum", pa.float64(), nullable=False),
        pa.field("seconds", pa.list_(pa.float64()), nullable=False),
        pa.field("samples", pa.list_(pa.float64()), nullable=False),
        *_EVIDENCE,
        *_LANDED,
    ]
)
"""One row per quantity that was sampled while a job ran, with its samples."""

RUNS = pa.schema(
    [
        *_RUN,
        pa.field("suite", pa.string(), nullable=False),
        pa.field("trigger", pa.string(), nullable=False),
        pa.field("note", pa.string(), nullable=False),
        *_WHERE,
        *_JOB,
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("params", LABELS, nullable=False),
        pa.field("facts", LABELS, nullable=False),
        pa.field("notes", pa.list_(pa.string()), nullable=False),
        pa.field("exit_status", pa.int32()),
        pa.field("signal", pa.int32()),
        pa.field("timed_out", pa.bool_()),
        pa.field("duration_s", pa.float64()),
        pa.field("lease_wait_s", pa.float64()),
        *_EVIDENCE,
        *_LANDED,
        *_ADDED,
        pa.field("peer", pa.string()),  # the server of a test between two nodes; `node` is the client
        pa.field("round", pa.int32()),  # in which they met
    ]
)
"""One row per planned job, whatever happened to it. Landed last: a run is complete when its rows are here."""

ENVIRONMENTS = pa.schema(
    [
        *_RUN,
        pa.field("environment_id", pa.string(), nullable=False),
        pa.field("facts", pa.string(), nullable=False),  # JSON, see pipelines.environment
        *_LANDED,
    ]
)
"""The configurations seen in a run, once each; nodes of equal configuration share one."""

VERDICTS = pa.schema(
    [
        *_RUN,
        *_WHERE,
        pa.field("metric", pa.string(), nullable=False),
        pa.field("rule", pa.string(), nullable=False),  # "floor", "partners"
        pa.field("verdict", pa.string(), nullable=False),  # "pass", "fail", "not_measured"
        pa.field("observed", pa.float64()),
        pa.field("expected", pa.float64()),
        pa.field("unit", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("evidence", pa.string(), nullable=False),  # JSON: what the rule looked at
        *_LANDED,
    ]
)
"""One row per rule and metric of a case on a node: what was judged of it, and on which evidence."""

_MONTH = pa.field("month", pa.string(), nullable=False)

DATASETS = pa.schema(
    [
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        _MONTH,  # of the publication
        pa.field("published_at", INSTANT, nullable=False),
        pa.field("parent", pa.string()),
        pa.field("source", pa.string(), nullable=False),
        pa.field("format", pa.string(), nullable=False),
        pa.field("shard_bytes", pa.int64(), nullable=False),
        pa.field("zstd_level", pa.int32()),
        pa.field("shards", pa.int64(), nullable=False),
        pa.field("files", pa.int64(), nullable=False),
        pa.field("samples", pa.int64(), nullable=False),
        pa.field("content_bytes", pa.int64(), nullable=False),
        pa.field("stored_bytes", pa.int64(), nullable=False),
        pa.field("new_bytes", pa.int64()),  # null: the parent is no longer there to compare with
        pa.field("environment_id", pa.string(), nullable=False),
        pa.field("code_version", pa.string(), nullable=False),
        pa.field("hostname", pa.string(), nullable=False),
        pa.field("note", pa.string(), nullable=False),
        pa.field("manifest_key", pa.string(), nullable=False),
        pa.field("landed_at", INSTANT, nullable=False),
    ]
)
"""One row per published version of a dataset."""

_SHARD = [
    pa.field("shard", pa.string(), nullable=False),
    pa.field("size_bytes", pa.int64(), nullable=False),
]
_RECORD = [
    pa.field("evidence_key", pa.string(), nullable=False),
    pa.field("evidence_sha256", pa.string(), nullable=False),
]

STAGING = pa.schema(
    [
        pa.field("staging_id", pa.string(), nullable=False),
        _MONTH,  # of the staging
        pa.field("node", pa.string(), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        *_SHARD,
        pa.field("arrival", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("fetched_bytes", pa.int64(), nullable=False),
        pa.field("duration_s", pa.float64(), nullable=False),
        pa.field("bytes_per_s", pa.float64()),  # null: it failed, or nothing was fetched
        pa.field("started_at", INSTANT, nullable=False),
        pa.field("environment_id", pa.string(), nullable=False),
        pa.field("store", pa.string(), nullable=False),
        pa.field("cache", pa.string(), nullable=False),
        *_RECORD,
    ]
)
"""One row per shard that a node was to have, whatever became of it."""

SCRUBS = pa.schema(
    [
        pa.field("scrub_id", pa.string(), nullable=False),
        _MONTH,  # of the scrub
        pa.field("place", pa.string(), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        *_SHARD,
        pa.field("finding", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("duration_s", pa.float64(), nullable=False),
        pa.field("checked_at", INSTANT, nullable=False),
        *_RECORD,
    ]
)
"""One row per shard that was read again, in the store or in a node's cache."""


USAGE = pa.schema(
    [
        *_RUN,
        pa.field("tenant", pa.string(), nullable=False),
        pa.field("suite", pa.string(), nullable=False),
        pa.field("trigger", pa.string(), nullable=False),
        pa.field("node", pa.string(), nullable=False),
        pa.field("cohort", pa.string(), nullable=False),
        pa.field("attempts", pa.int64(), nullable=False),
        pa.field("node_seconds", pa.float64(), nullable=False),
        pa.field("written_bytes", pa.int64(), nullable=False),
        pa.field("staged_bytes", pa.int64(), nullable=False),
        pa.field("started_at", INSTANT),  # null: nothing was attempted there
        *_LANDED,
    ]
)
"""One row per run and node: what it took of the node, and whom it is charged to."""


@dataclass(frozen=True)
class Table:
    name: str
    schema: pa.Schema
    sort: tuple[str, ...]  # the order of rows within a file
    row_group: int = 122_880  # rows; DuckDB's own size, the best of four tried for point queries and scans together
    partitioned: bool = True  # by PARTITION
    of_runs: bool = True  # whether its rows are results of runs, which land and are read together


TABLES: Mapping[str, Table] = {
    table.name: table
    for table in (
        Table("datasets", DATASETS, ("dataset", "published_at"), of_runs=False),
        Table("staging", STAGING, ("dataset", "node", "started_at"), of_runs=False),
        Table("scrubs", SCRUBS, ("dataset", "place", "checked_at"), of_runs=False),
        Table("usage", USAGE, ("tenant", "node", "started_at"), of_runs=False),  # see `usage.land_batch`
        Table("environments", ENVIRONMENTS, ("environment_id", "run_id")),
        # a row has a hundred bins, and what is asked for is a night of the fleet: 35 ms, otherwise 130
        Table("histograms", HISTOGRAMS, ("metric", "night", "node", "started_at"), row_group=2_048),
        Table("telemetry", TELEMETRY, ("metric", "night", "node", "started_at"), row_group=2_048),
        Table("measurements", MEASUREMENTS, ("metric", "node", "night", "started_at")),
        Table("quarantine", QUARANTINE, ("metric", "node", "night", "started_at")),
        Table("verdicts", VERDICTS, ("metric", "node", "night")),
        Table("runs", RUNS, ("run_id", "node", "benchmark", "case", "repeat")),
    )
}
"""Every landed table. `runs` is last, here and in every landing of a run."""

SINCE = {"telemetry": TELEMETRY}
"""Tables that came later: batches of an earlier release have no file for them, which is a file without rows."""

RUN_TABLES = tuple(name for name, table in TABLES.items() if table.of_runs)
"""Those with the rows of runs."""

PARTITION = "month"
