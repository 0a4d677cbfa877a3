"""The rules that judge landed numbers: repeats of a case on a node, and what is expected, to a verdict. Pure."""

from statistics import median
from typing import Literal

from pipelines.benchmark import Floor, Metric
from pipelines.isolation import Judgement
from pipelines.records import Labels, Record, Unit
from pipelines.tables.render import format_value
from pipelines.tables.repeats import Absence, Repeat, Repeats
from pipelines.tournament import Met

_PARTS = ("gpu", "entity", "test", "system")  # labels that say of which part of the node a number is


class Evidence(Record):
    """What a rule looked at; stored with the verdict."""

    measured: tuple[Repeat, ...]
    absent: tuple[Absence, ...]
    labels: Labels
    source: str  # where the expectation comes from


class Meetings(Record):
    """What the rule `partners` looked at: every pair of the case in which the node stood."""

    meetings: tuple[Met, ...]
    source: str


class Verdict(Record):
    node: str
    cohort: str
    benchmark: str
    case: str
    metric: str
    rule: Literal["floor", "partners"]
    verdict: Literal["pass", "fail", "not_measured"]
    observed: float | None  # median of the repeats, or of the pairs; absent when nothing was measured
    expected: float
    unit: Unit
    reason: str
    evidence: Evidence | Meetings


def floor(repeats: Repeats, expected: Floor) -> Verdict:
    """Whether the median of the repeats reaches the floor. What was not measured neither passes nor fails."""
    values = [each.value for each in repeats.measured]
    observed = median(values) if values else None
    planned = len(repeats.measured) + len(repeats.absent)
    wanted = format_value(expected.minimum, expected.unit)
    verdict: Literal["pass", "fail", "not_measured"]
    if observed is None:
        why = "; ".join(dict.fromkeys(absence.reason for absence in repeats.absent)) or "nothing was planned"
        verdict, reason = "not_measured", f"none of {planned} planned repeats gave a value: {why}"
    else:
        passes = observed >= expected.minimum
        verdict = "pass" if passes else "fail"
        seen = f"median {format_value(observed, expected.unit)} of {len(values)} of {planned} repeats"
        below = (1 - observed / expected.minimum) * 100
        short = f"is {below:.0f} % below" if below >= 10 else f"is {below:.2g} % below"
        reason = f"{_part(repeats.labels)}{seen} {'reaches' if passes else short} the floor of {wanted}"
    return Verdict(
        **repeats.model_dump(include={"node", "cohort", "benchmark", "case", "metric"}),
        rule="floor",
        verdict=verdict,
        observed=observed,
        expected=expected.minimum,
        unit=expected.unit,
        reason=reason,
        evidence=Evidence(
            measured=repeats.measured, absent=repeats.absent, labels=repeats.labels, source=expected.source
        ),
    )


def _part(labels: Labels) -> str:
    """`gpu 3, test memory: `, where the repeats are those of a part of the node."""
    named = ", ".join(f"{name} {labels[name]}" for name in _PARTS if name in labels)
    return f"{named}: " if named else ""


def partners(judgement: Judgement, metric: Metric, cohort: str) -> Verdict:
    """Whether a node carries with good partners what the fleet's pairs carry; with which it does not, it says as well.

    A node of which its pairs do not tell, and one that never met another, neither passes nor fails.
    """
    values = [met.value for met in judgement.meetings if met.value is not None]
    observed = median(values) if values else None
    verdict, why = _among_partners(judgement)
    seen = [] if observed is None else [f"median {format_value(observed, metric.unit)}"]
    if judgement.meetings:
        seen.append(f"{len(values)} of {len(judgement.meetings)} pairs gave a value")
    return Verdict(
        **judgement.model_dump(include={"node", "benchmark", "case"}),
        cohort=cohort,
        metric=metric.name,
        rule="partners",
        verdict=verdict,
        observed=observed,
        expected=judgement.least,
        unit=metric.unit,
        reason="; ".join([*seen, why]),
        evidence=Meetings(meetings=judgement.meetings, source="half of the median of all pairs of the case"),
    )


def _among_partners(judgement: Judgement) -> tuple[Literal["pass", "fail", "not_measured"], str]:
    if not judgement.meetings:
        return "not_measured", "it has met no other node"
    if judgement.verdict == "undecided":
        return "not_measured", "no good partner tells whose fault it is"
    if judgement.verdict == "bad":
        return "fail", "it does badly with partners that are good"
    if judgement.bad_links:
        return "fail", f"bad link with {', '.join(judgement.bad_links)}: both do well otherwise"
    return "pass", "it does well with its partners"
