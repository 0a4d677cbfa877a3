"""The names of things in the object store and the ids that are hashes of content. Pure."""

import hashlib
import json
import re
from datetime import datetime
from typing import Any

from pipelines.errors import BadKey

_RAW = re.compile(r"^raw/[^/]+/([^/]+)/([^/]+)/([^/]+)/(\d{3,9})\.json\Z")
_SEGMENT = re.compile(r"^[A-Za-z0-9_=-][A-Za-z0-9._=+-]{0,200}\Z")

_GENERATION_DIGITS = 6

LATE = "late"
"""The folder of words of raw outputs that came from spools, see `late`."""


def checked(key: str) -> str:
    """`key` itself, if every segment is a plain name.

    Raises:
        BadKey: an empty or absolute key, `..`, or a character that some store or filesystem reads as more than a name.
    """
    for segment in key.split("/"):
        if not _SEGMENT.match(segment):
            raise BadKey(key, f"segment {segment!r} is not a plain name")
    return key


def content_id(body: Any, length: int = 16) -> str:
    """Hex digits of the sha256 of `body` as canonical JSON (sorted keys, no spaces)."""
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:length]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def run_id(at: datetime, origin: str) -> str:
    """`20261121T020000Z-1a2b3c`: sortable by time, and the same for the same origin however often it is asked."""
    return f"{at:%Y%m%dT%H%M%SZ}-{content_id(origin, 6)}"


def run_date(run: str) -> str:
    """The UTC night of a run, `2026-11-21`."""
    return f"{run[:4]}-{run[4:6]}-{run[6:8]}"


def plan_key(run: str) -> str:
    return checked(f"plans/{run}.json")


def table_key(table: str) -> str:
    """The folder of a Delta table."""
    return checked(f"tables/{table}")


def raw_prefix(run: str) -> str:
    return checked(f"raw/{run_date(run)}/{run}")


def raw_key(run: str, node: str, job: str, attempt: int) -> str:
    return checked(f"{raw_prefix(run)}/{node}/{job}/{attempt:03d}.json")


def is_raw(key: str) -> bool:
    return _RAW.match(key) is not None


def raw_parts(key: str) -> tuple[str, str, str, int]:
    """Run, node, job and attempt of a raw output's key.

    Raises:
        BadKey: not the key of a raw output.
    """
    if not (found := _RAW.match(key)):
        raise BadKey(key, "not the key of a raw output, raw/<date>/<run>/<node>/<job>/<attempt>.json")
    run, node, job, attempt = found.groups()
    return run, node, job, int(attempt)


def exchange_key(run: str, *, again: bool = False) -> str:
    """When the rounds of a run's pairs began, or those in which some are tested again."""
    return checked(f"exchange/{run}{'-again' if again else ''}.json")


def attendance_key(run: str, node: str, *, again: bool = False) -> str:
    """That a node has come to the rounds of a run's pairs."""
    return checked(f"exchange/{run}{'-again' if again else ''}/{node}.json")


def retest_key(run: str) -> str:
    """Which pairs of a run are tested again."""
    return checked(f"plans-again/{run}.json")


def approval_key(run: str) -> str:
    """What a second person decided about the raw devices that a run wants to write to."""
    return checked(f"approvals/{run}.json")


def arrivals_prefix(run: str) -> str:
    return checked(f"arrivals/{run}")


def arrival_key(run: str, node: str) -> str:
    """That a task of the run began on the node."""
    return checked(f"{arrivals_prefix(run)}/{node}.json")


def failure_key(run: str, node: str, task: str, attempt: int) -> str:
    """Why an attempt at a task of the node came to nothing; its last part says who may write it, as an arrival's."""
    return checked(f"{arrivals_prefix(run)}/{task}-{attempt:03d}/{node}.json")


def late_key(raw: str) -> str:
    """Word of a raw output that came from a spool."""
    run, node, job, attempt = raw_parts(raw)
    return checked(f"{LATE}/{run}/{node}/{job}/{attempt:03d}")


def late_run(late: str) -> str:
    """The run that a `late_key` is about."""
    return late.split("/")[1]


def environment_key(environment_id: str) -> str:
    return checked(f"environments/{environment_id}.json")


def batch_id(run: str, body: Any, generation: int = 1) -> str:
    """One set of rows of a run: the run's id, which set it is, and the hash of everything the rows are made from."""
    return f"{run}.{generation:03d}-{content_id(body, 12)}"


def run_of(batch: str) -> str:
    return batch.rpartition(".")[0]


def generation_of(batch: str) -> int:
    """Which set of rows of its run a batch is, from 1; a later one replaces an earlier one.

    Raises:
        BadKey: not a batch id.
    """
    number, dash, _ = batch.rpartition(".")[2].partition("-")
    if not dash or not number.isdecimal() or len(number) > _GENERATION_DIGITS:
        raise BadKey(batch, "not a batch id, <run>.<generation>-<hash>")
    return int(number)


def batches_prefix(run: str) -> str:
    return checked(f"batches/{run}")


def batch_key(run: str, generation: int) -> str:
    """What a batch was made from."""
    return f"{batches_prefix(run)}/{generation:06d}.json"


def parsed_key(batch: str, table: str) -> str:
    """Rows of a batch before anyone judged them."""
    return checked(f"parsed/{batch}/{table}.parquet")


def landing_key(batch: str, table: str) -> str:
    """The immutable Parquet file of one batch and one table."""
    return checked(f"landing/{batch}/{table}.parquet")


def decision_key(batch: str) -> str:
    """What validation decided about a batch, once and for all."""
    return checked(f"landing/{batch}/decision.json")


def report_key(run: str, name: str) -> str:
    return checked(f"reports/{run}/{name}")


def docs_prefix(run: str) -> str:
    """Great Expectations' own Data Docs of a run."""
    return checked(f"docs/{run}")
