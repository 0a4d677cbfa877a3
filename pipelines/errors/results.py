"""What a tool printed, what landed."""

from dataclasses import dataclass
from typing import ClassVar

from pipelines.errors.error import FleetmarkError


@dataclass(eq=False)
class UnknownOutput(FleetmarkError):
    """A parser's only error: the raw output is not what this tool prints."""

    tool: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{self.tool}: expected {self.expected}, got {self.got[:200]!r}"


@dataclass(eq=False)
class LandingConflict(FleetmarkError):
    retryable: ClassVar[bool] = True
    table: str
    batch: str
    attempts: int

    def __str__(self) -> str:
        return f"table {self.table}: batch {self.batch} lost {self.attempts} commit races in a row; safe to try again"


@dataclass(eq=False)
class ValidationBroken(FleetmarkError):
    """Great Expectations did not evaluate an expectation; nothing is believed and nothing lands."""

    expectation: str
    problem: str

    def __str__(self) -> str:
        return f"Great Expectations could not evaluate {self.expectation!r}: {self.problem}"
