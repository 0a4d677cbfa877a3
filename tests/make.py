"""Records for tests: each function gives a valid one and takes what the test cares about."""

from datetime import UTC, datetime
from typing import Any

from pipelines.records import Job, Node, Plan, RawOutput

RUN_ID = "20261121T020000Z-1a2b3c"
AT = datetime(2026, 11, 21, 2, 0, tzinfo=UTC)


def node(name: str = "gpu-01", **fields: Any) -> Node:
    return Node(**{"name": name, "queue": name, "scratch": "scratch", "labels": {"sku": "h200"}, **fields})


def job(job_id: str = "job-1", **fields: Any) -> Job:
    """A job of the fio benchmark with its default parameters."""
    defaults: dict[str, Any] = {
        "job_id": job_id,
        "node": "gpu-01",
        "benchmark": "fio",
        "case": "rand_read",
        "params": {},
        "repeat": 1,
        "timeout_s": 60.0,
        "seconds": 1.0,
        "written_bytes": 2**20,
    }
    return Job(**{**defaults, **fields})


def plan(*jobs: Job, run_id: str = RUN_ID, **fields: Any) -> Plan:
    jobs = jobs or (job(),)
    nodes = tuple(node(name) for name in dict.fromkeys(each.node for each in jobs))
    defaults: dict[str, Any] = {"suite": "quick", "created_at": AT, "trigger": "cli", "nodes": nodes, "jobs": jobs}
    return Plan(**{"run_id": run_id, **defaults, **fields})


def raw(of: Job | None = None, **fields: Any) -> RawOutput:
    """A raw output of a job that printed nothing and ended with status 0."""
    defaults: dict[str, Any] = {
        "run_id": RUN_ID,
        "job": of or job(),
        "attempt": 1,
        "hostname": "gpu-01",
        "tool": "fio",
        "tool_version": "3.33",
        "environment_id": "env-1",
        "argv": ("fio",),
        "exit_status": 0,
        "started_at": AT,
        "duration_s": 1.0,
    }
    return RawOutput(**{**defaults, **fields})
