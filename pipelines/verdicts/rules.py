"""The rules that judge landed numbers: repeats of a case on a node, and what is expected, to a verdict. Pure."""

from statistics import median
from typing import Literal

from pipelines.benchmark import Floor
from pipelines.records import Labels, Record, Unit
from pipelines.tables.render import format_value
from pipelines.tables.repeats import Absence, Repeat, Repeats


class Evidence(Record):
    """What a rule looked at; stored with the verdict."""

    measured: tuple[Repeat, ...]
    absent: tuple[Absence, ...]
    labels: Labels
    source: str  # where the expectation comes from


class Verdict(Record):
    node: str
    cohort: str
    benchmark: str
    case: str
    metric: str
    rule: Literal["floor"]
    verdict: Literal["pass", "fail", "not_measured"]
    observed: float | None  # median of the repeats; absent when nothing was measured
    expected: float
    unit: Unit
    reason: str
    evidence: Evidence


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
        short = f"is {(1 - observed / expected.minimum) * 100:.2g} % below" if not passes else "reaches"
        reason = f"{seen} {short} the floor of {wanted}"
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
