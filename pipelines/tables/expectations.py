"""What a batch must hold to be believed: from the benchmarks' descriptors and the plan to typed expectations. Pure.

Each expectation is held against one of three frames (see `tables.subjects`): `plan`, one row per planned job; `runs`,
one row per attempt; `measurements`, one row per value. Only rows of `measurements` are ever quarantined; what fails
in the other two fails the batch, which lands all the same and says what is missing.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from pipelines.benchmark import Benchmark
from pipelines.records import Outcome, Record
from pipelines.tables.render import format_value

Subject = Literal["plan", "runs", "measurements"]


class _Held(Record):
    """`says` is the expectation as a sentence; `fault` is what is said of a failing row, with its columns in braces."""

    subject: Subject
    says: str
    fault: str

    def explain(self, row: Mapping[str, Any]) -> str:
        """Why `row` fails, in a sentence."""
        return self.fault.format_map(row)


class Present(_Held):
    kind: Literal["present"] = "present"
    column: str


class Absent(_Held):
    kind: Literal["absent"] = "absent"
    column: str


class OneOf(_Held):
    kind: Literal["one_of"] = "one_of"
    column: str
    allowed: tuple[str, ...]


class Within(_Held):
    """The values of one metric lie in its honest range; `unit` is the metric's."""

    kind: Literal["within"] = "within"
    column: str
    low: float
    high: float
    unit: str


class Same(_Held):
    kind: Literal["same"] = "same"
    column: str
    expected: str  # the column that holds what it must be


class Unique(_Held):
    kind: Literal["unique"] = "unique"
    columns: tuple[str, ...]


Expectation = Present | Absent | OneOf | Within | Same | Unique


class Finding(Record):
    """How an expectation fared: rows looked at, rows that failed, and the first of them in words."""

    expectation: Expectation
    checked: int
    failed: int
    observed: str
    examples: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        return self.failed == 0

    @property
    def sentence(self) -> str:
        """The expectation and what is wrong with it."""
        shown = "; ".join(self.examples[:3])
        more = f"; and {self.failed - 3} more" if self.failed > 3 else ""
        return f"{self.expectation.says}: {self.failed} of {self.checked} do not hold ({shown}{more})"


EVIDENCE = ("attempt", "environment_id", "tool_version", "raw_key", "raw_sha256", "started_at")
"""Columns of `measurements` without which a number cannot be traced to what was run."""


def quantity(benchmark: str, metric: str) -> str:
    """A metric's name across benchmarks, and the frame's column of its values."""
    return f"{benchmark} {metric}"


def of_batch(benchmarks: Iterable[Benchmark]) -> tuple[Expectation, ...]:
    """Every expectation of a batch whose plan runs `benchmarks`, completeness first, honest ranges last."""
    known = tuple(benchmarks)
    return (*_of_plan(), *_of_runs(), *_of_rows(known), *_honest_ranges(known))


def _of_plan() -> Iterator[Expectation]:
    yield Present(
        subject="plan",
        column="outcome",
        says="Every planned job has a row in runs",
        fault="{benchmark} {case}, repeat {repeat}, on {node} (job {job_id}) has none",
    )
    yield Absent(
        subject="plan",
        column="missing",
        says="Every job that ended ok gave all the metrics its case requires",
        fault="{benchmark} {case}, repeat {repeat}, on {node} (job {job_id}) lacks {missing}",
    )


def _of_runs() -> Iterator[Expectation]:
    yield Present(
        subject="runs",
        column="planned_job",
        says="Every row in runs belongs to a planned job",
        fault="job {job_id} on {node} is not in the plan",
    )
    yield Unique(
        subject="runs",
        columns=("job_id", "attempt_number"),
        says="Every attempt at a job has one row in runs",
        fault="attempt {attempt_number} of job {job_id} on {node} has several",
    )
    yield OneOf(
        subject="runs",
        column="outcome",
        allowed=tuple(Outcome),
        says="Every outcome is a known one",
        fault="job {job_id} on {node} ended {outcome!r}",
    )
    yield Present(
        subject="runs",
        column="reason_unless_ok",
        says="Every job that did not end ok says why",
        fault="job {job_id} on {node} ended {outcome} and does not say why",
    )


def _of_rows(benchmarks: tuple[Benchmark, ...]) -> Iterator[Expectation]:
    yield Present(
        subject="measurements",
        column="value",
        says="Every value is a number",
        fault="{metric} has no value that is a number",
    )
    for column in EVIDENCE:
        yield Present(
            subject="measurements",
            column=column,
            says=f"Every value says its {column}",
            fault=f"{{metric}} does not say its {column}",
        )
    yield Present(
        subject="measurements",
        column="planned_job",
        says="Every value belongs to a planned job",
        fault="job {job_id} is not in the plan",
    )
    yield OneOf(
        subject="measurements",
        column="quantity",
        allowed=tuple(quantity(known.name, metric.name) for known in benchmarks for metric in known.described),
        says="Every metric is one its benchmark describes",
        fault="benchmark {benchmark} describes no metric {metric!r}",
    )
    yield Same(
        subject="measurements",
        column="unit",
        expected="expected_unit",
        says="Every value is in the unit its benchmark describes",
        fault="{metric} is in {unit!r}, expected {expected_unit!r}",
    )
    yield Unique(
        subject="measurements",
        columns=("job_id", "attempt_number", "quantity", "label_text"),
        says="Every metric of an attempt has one value for each set of labels",
        fault="{metric} of job {job_id} has several values with the labels {label_text}",
    )


def _honest_ranges(benchmarks: tuple[Benchmark, ...]) -> Iterator[Expectation]:
    for known in benchmarks:
        for metric in known.described:
            low, high = format_value(metric.low, metric.unit), format_value(metric.high, metric.unit)
            yield Within(
                subject="measurements",
                column=quantity(known.name, metric.name),
                low=max(metric.low, -sys.float_info.max),  # infinity is never honest
                high=min(metric.high, sys.float_info.max),
                unit=metric.unit,
                says=f"{known.name} {metric.name} lies between {low} and {high}",
                fault=f"{{metric}} {{value:.4g}} {metric.unit} is outside the honest range "
                f"{metric.low:g} .. {metric.high:g} {metric.unit}",
            )
