"""What a run's page says beside its results: how it went, what is missing and why, where it all comes from. Pure."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from pipelines import keys
from pipelines.records import Labels, Outcome, Plan, Record, Validation
from pipelines.report import html
from pipelines.tables.landed import Landed
from pipelines.tables.render import format_value

_NAMED = 8  # nodes that a line names before it only counts them
_NOTES = 20


class Failure(Record):
    """Jobs that ended the same way for the same reason."""

    benchmark: str
    case: str
    outcome: str
    reason: str
    jobs: int
    nodes: str


class VerdictLine(Record):
    """A verdict on a case on a node."""

    node: str
    benchmark: str
    case: str
    metric: str
    verdict: str
    observed: float | None
    expected: float
    unit: str
    reason: str
    source: str


class Fact(Record):
    """A fact of an environment: a plain value, or a list of things, one line each."""

    name: str
    lines: tuple[str, ...]


class Surroundings(Record):
    """An environment, and the nodes of this run that have it."""

    environment_id: str
    nodes: str
    facts: tuple[Fact, ...]


class Evidence(Record):
    """The raw output behind a job's rows."""

    node: str
    case: str
    repeat: int
    raw_key: str
    raw_sha256: str


class Summary(Record):
    jobs: int
    jobs_ok: int
    floors: tuple[VerdictLine, ...]  # failed first, then what was not measured
    partners: tuple[VerdictLine, ...]  # on each node that was measured with others, in the same order
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]
    tools: tuple[str, ...]
    simulated: bool
    started_at: datetime | None
    ended_at: datetime | None
    landed_at: datetime
    surroundings: tuple[Surroundings, ...]
    evidence: tuple[Evidence, ...]
    versions: Labels

    @property
    def floors_failed(self) -> int:
        return sum(floor.verdict == "fail" for floor in self.floors)

    @property
    def bad_in_pairs(self) -> tuple[str, ...]:
        """The nodes that did badly with others."""
        return tuple(dict.fromkeys(line.node for line in self.partners if line.verdict == "fail"))

    @property
    def floors_reached(self) -> int:
        return sum(floor.verdict == "pass" for floor in self.floors)


def of_run(plan: Plan, landed: Landed) -> Summary:
    """Jobs count by their last attempt; times are of the first job's start and the last one's end."""
    rows = _last_attempts(landed)
    failures = tuple(_failures(plan, rows))
    started = [row["started_at"] for row in rows.values() if row["started_at"]]
    ended = [
        row["started_at"] + timedelta(seconds=row["duration_s"])
        for row in rows.values()
        if row["started_at"] and row["duration_s"] is not None
    ]
    return Summary(
        jobs=len(plan.jobs),
        jobs_ok=sum(rows[job.job_id]["outcome"] == Outcome.OK for job in plan.jobs if job.job_id in rows),
        floors=_verdicts(landed, "floor"),
        partners=_verdicts(landed, "partners"),
        failures=failures,
        notes=tuple(_notes(rows.values())),
        tools=tuple(sorted({f"{row['tool']} {row['tool_version']}" for row in rows.values() if row["tool_version"]})),
        simulated=any(row["simulated"] for row in rows.values()),
        started_at=min(started, default=None),
        ended_at=max(ended, default=None),
        landed_at=max(landed.runs["landed_at"].to_pylist()),
        surroundings=tuple(_surroundings(landed, rows)),
        evidence=tuple(_evidence(rows.values())),
        versions={name: str(version) for name, version in sorted(landed.versions.items())},
    )


def headline(summary: Summary, validation: Validation) -> str:
    """The run in a sentence, the worst first."""
    failed, lost = summary.floors_failed, summary.jobs - summary.jobs_ok
    parts = []
    if failed:
        parts.append(f"{html.plural(failed, 'floor')} not reached")
    if bad := len(summary.bad_in_pairs):
        parts.append(f"{html.plural(bad, 'node')} bad in pairs")
    if lost:
        parts.append(f"{lost:,} of {html.plural(summary.jobs, 'job')} not measured")
    if validation.failed:
        parts.append(f"{html.plural(len(validation.failed), 'expectation')} of the batch not met")
    if not parts and validation.quarantined:
        parts.append(f"{html.plural(validation.quarantined, 'value')} quarantined")
    if not parts:
        reached = ", every floor reached" if summary.floors_reached else ""
        return f"All {html.plural(summary.jobs, 'job')} measured{reached}"
    return "; ".join(parts)


Row = Mapping[str, Any]


def _last_attempts(landed: Landed) -> Mapping[str, Row]:
    rows = landed.runs.sort_by([("attempt", "ascending")]).to_pylist()
    return {row["job_id"]: row for row in rows}


def _failures(plan: Plan, rows: Mapping[str, Row]) -> Iterator[Failure]:
    groups: dict[tuple[str, str, str, str], list[str]] = {}
    for job in plan.jobs:
        row = rows.get(job.job_id, {"outcome": "no row", "reason": "the job has no row in runs"})
        if row["outcome"] != Outcome.OK:
            groups.setdefault((job.benchmark, job.case, row["outcome"], row["reason"]), []).append(job.node)
    for (benchmark, case, outcome, reason), nodes in groups.items():
        yield Failure(
            benchmark=benchmark, case=case, outcome=outcome, reason=reason, jobs=len(nodes), nodes=_named(nodes)
        )


def _named(nodes: Sequence[str]) -> str:
    names = list(dict.fromkeys(nodes))
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _verdicts(landed: Landed, rule: str) -> tuple[VerdictLine, ...]:
    names = ("node", "benchmark", "case", "metric", "verdict", "observed", "expected", "unit", "reason")
    rows = [row for row in landed.verdicts.to_pylist() if row["rule"] == rule]
    lines = [
        VerdictLine(**{name: row[name] for name in names}, source=json.loads(row["evidence"])["source"]) for row in rows
    ]
    order = {"fail": 0, "not_measured": 1, "pass": 2}
    return tuple(sorted(lines, key=lambda line: (order[line.verdict], line.node, line.case)))


def _notes(rows: Iterable[Row]) -> Iterator[str]:
    """What the tools said, and who had to wait for the node; each thing once."""
    said: dict[str, int] = {}
    for row in rows:
        waited = [f"{row['node']} waited {row['lease_wait_s']:.0f} s for its lease"] if _waited(row) else []
        for note in (*row["notes"], *waited):
            said[note] = said.get(note, 0) + 1
    for note, times in list(said.items())[:_NOTES]:
        yield f"{note} ({times} times)" if times > 1 else note
    if len(said) > _NOTES:
        yield f"and {len(said) - _NOTES} more, in the column notes of the table runs"


def _waited(row: Row) -> bool:
    return row["lease_wait_s"] is not None and row["lease_wait_s"] >= 1


def _surroundings(landed: Landed, rows: Mapping[str, Row]) -> Iterator[Surroundings]:
    for row in landed.environments.select(["environment_id", "facts"]).to_pylist():
        nodes = [each["node"] for each in rows.values() if each["environment_id"] == row["environment_id"]]
        facts = tuple(_fact(name, value) for name, value in json.loads(row["facts"]).items())
        yield Surroundings(environment_id=row["environment_id"], nodes=_named(nodes), facts=facts)


def _fact(name: str, value: Any) -> Fact:
    said = format_value(value, "B") if name.endswith("_bytes") and isinstance(value, int) else None
    return Fact(name=name.removesuffix("_bytes"), lines=(said,) if said else _lines(value))


def _lines(value: Any) -> tuple[str, ...]:
    """A list's things one by one; a thing by its name, where it has one, and what is known of it."""
    if isinstance(value, list):
        return tuple(line for each in value for line in _lines(each))
    if isinstance(value, dict):
        said = [_said(name, each) for name, each in value.items() if name != "name" and each is not None]
        return (": ".join([*([str(value["name"])] if "name" in value else []), ", ".join(said)]),)
    return () if value is None else (str(value),)


def _said(name: str, value: Any) -> str:
    fact = _fact(name, value)
    return " ".join([fact.name, *fact.lines])


def _evidence(rows: Iterable[Row]) -> Iterator[Evidence]:
    for row in rows:
        if row["raw_key"]:
            yield Evidence(
                node=row["node"],
                case=f"{row['benchmark']} {row['case']}",
                repeat=row["repeat"],
                raw_key=row["raw_key"],
                raw_sha256=row["raw_sha256"],
            )


def prefixes(plan: Plan) -> Mapping[str, str]:
    """Where the run's objects lie in the store."""
    return {"plan": keys.plan_key(plan.run_id), "raw outputs": keys.raw_prefix(plan.run_id)}
