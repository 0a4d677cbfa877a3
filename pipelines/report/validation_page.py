"""The page of a validation: each expectation with what was observed, completeness by node, the quarantine. Pure."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pipelines.records import Outcome, Plan, Record, Validation
from pipelines.report import html
from pipelines.tables.expectations import Finding

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS = 200  # more than anyone reads on a page; all of them are in the table `quarantine`
_SUBJECTS = (("plan", "Completeness"), ("runs", "Rows of runs"), ("measurements", "Rows of measurements"))


class Completeness(Record):
    """A node's planned jobs by how they ended."""

    node: str
    planned: int
    ok: int
    no_row: int
    others: str


def render(
    plan: Plan,
    batch: str,
    validation: Validation,
    findings: Sequence[Finding],
    runs: "pa.Table",
    refused: "pa.Table",
) -> str:
    """The page as HTML; `runs` are the batch's rows, `refused` its rows of `quarantine`."""
    columns = ["node", "benchmark", "case", "repeat", "metric", "value", "unit", "reason"]
    return html.render(
        "validation.html",
        title=f"Validation of {plan.run_id}",
        plan=plan,
        batch=batch,
        validation=validation,
        headline=_headline(validation),
        findings=findings,
        subjects=_SUBJECTS,
        nodes=tuple(completeness(plan, runs)),
        refused=refused.slice(0, _ROWS).select(columns).to_pylist(),
    )


def completeness(plan: Plan, runs: "pa.Table") -> Iterator[Completeness]:
    """By node, the nodes with something missing first."""
    last = runs.select(["job_id", "attempt", "outcome"]).sort_by([("attempt", "ascending")])
    ended = dict(zip(last["job_id"].to_pylist(), last["outcome"].to_pylist(), strict=True))
    found = []
    for node in plan.nodes:
        jobs = plan.jobs_of(node.name)
        outcomes = Counter(ended.get(job.job_id) for job in jobs)
        others = (
            f"{count} {name}" for name, count in sorted(outcomes.items(), key=str) if name not in {Outcome.OK, None}
        )
        found.append(
            Completeness(
                node=node.name,
                planned=len(jobs),
                ok=outcomes[Outcome.OK],
                no_row=outcomes[None],
                others=", ".join(others),
            )
        )
    yield from sorted(found, key=lambda each: (each.ok == each.planned, each.node))


def _headline(validation: Validation) -> str:
    broken = len(validation.failed)
    if broken:
        return f"{html.plural(broken, 'expectation')} of this batch {'does' if broken == 1 else 'do'} not hold"
    if validation.quarantined:
        return f"Every expectation holds; {html.plural(validation.quarantined, 'value')} of failed jobs set aside"
    return "Every expectation holds"
