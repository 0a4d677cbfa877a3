"""The object store, and the database beside it."""

from dataclasses import dataclass
from typing import ClassVar

from pipelines.errors.error import FleetmarkError


@dataclass(eq=False)
class BadKey(FleetmarkError):
    key: str
    problem: str

    def __str__(self) -> str:
        return f"object key {self.key!r}: {self.problem}"


@dataclass(eq=False)
class KeyNotFound(FleetmarkError):
    url: str

    def __str__(self) -> str:
        return f"there is no object {self.url}"


@dataclass(eq=False)
class StoreUnreachable(FleetmarkError):
    retryable: ClassVar[bool] = True
    url: str
    attempts: int
    problem: str

    def __str__(self) -> str:
        return f"object store gave up on {self.url} after {self.attempts} attempts: {self.problem}"


@dataclass(eq=False)
class StoreRefused(FleetmarkError):
    """The store answered, and the answer is no: credentials, permissions or a bucket that is not there."""

    url: str
    problem: str

    def __str__(self) -> str:
        return f"object store refused {self.url}: {self.problem}"


@dataclass(eq=False)
class UnsafeStore(FleetmarkError):
    url: str
    winners: int
    writers: int

    def __str__(self) -> str:
        return (
            f"object store {self.url} is not safe to publish to: {self.winners} of {self.writers} racing create-only "
            "writes of one key won, expected exactly 1; use a store that honours If-None-Match"
        )


@dataclass(eq=False)
class CorruptObject(FleetmarkError):
    """An object of ours does not read back as what was written."""

    url: str
    problem: str

    def __str__(self) -> str:
        return f"object {self.url} is damaged: {self.problem}"


@dataclass(eq=False)
class OtherVersion(FleetmarkError):
    """An object of ours was written by a program whose records have other fields."""

    url: str
    problem: str

    def __str__(self) -> str:
        return (
            f"{self.url} was written by another version of fleetmark than the one here ({self.problem}); nodes and "
            "control plane need the same"
        )


@dataclass(eq=False)
class StoreNotEmpty(FleetmarkError):
    """A backup is restored into an empty store, or nothing could say which object is whose."""

    url: str
    found: tuple[str, ...]

    def __str__(self) -> str:
        return f"object store {self.url} is not empty ({', '.join(self.found)}); a backup is restored into an empty one"


@dataclass(eq=False)
class StoreChanging(FleetmarkError):
    retryable: ClassVar[bool] = True
    url: str
    attempts: int

    def __str__(self) -> str:
        return (
            f"objects of {self.url} were deleted while they were copied, {self.attempts} times in a row; no backup was "
            "made. Try again when no upkeep is at work: what was copied is not copied again"
        )


@dataclass(eq=False)
class DatabaseRefused(FleetmarkError):
    """PostgreSQL's own tool says no."""

    tool: str
    problem: str

    def __str__(self) -> str:
        return f"{self.tool}: {self.problem}"
