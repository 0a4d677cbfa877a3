"""What an operator wrote or asked for."""

from dataclasses import dataclass

from pipelines.errors.error import FleetmarkError


@dataclass(eq=False)
class BadSettings(FleetmarkError):
    variable: str
    problem: str

    def __str__(self) -> str:
        return f"setting {self.variable}: {self.problem}"


@dataclass(eq=False)
class BadFile(FleetmarkError):
    """A file an operator edits (inventory, suite) does not say what it must."""

    path: str
    where: str  # "line 7, field nodes[0].scratch", as near as the file's format allows
    problem: str

    def __str__(self) -> str:
        return f"{self.path}, {self.where}: {self.problem}"


@dataclass(eq=False)
class Unknown(FleetmarkError):
    """A name that is not one of the known ones: a node, suite, benchmark, parameter, run or table."""

    kind: str
    name: str
    known: tuple[str, ...]

    def __str__(self) -> str:
        return f"unknown {self.kind} {self.name!r}; known: {', '.join(self.known) or 'none'}"


@dataclass(eq=False)
class BadParameter(FleetmarkError):
    benchmark: str
    parameter: str
    problem: str

    def __str__(self) -> str:
        return f"benchmark {self.benchmark}, parameter {self.parameter!r}: {self.problem}"


@dataclass(eq=False)
class BadSelection(FleetmarkError):
    selection: str
    problem: str

    def __str__(self) -> str:
        return f"node selection {self.selection!r}: {self.problem}"


@dataclass(eq=False)
class QuotaExceeded(FleetmarkError):
    """An ad hoc run would take its tenant above what the inventory allows it a day. All in node-minutes."""

    tenant: str
    needed: float
    quota: float
    used: float
    planned: float

    def __str__(self) -> str:
        left = max(0.0, self.quota - self.used - self.planned)
        return (
            f"tenant {self.tenant}: this run needs {self.needed:.1f} node-minutes and {left:.1f} are left: of "
            f"{self.quota:.1f} a day {self.used:.1f} were used in the last 24 hours and {self.planned:.1f} are "
            "planned; take fewer nodes, cases or repeats, or wait"
        )


@dataclass(eq=False)
class RunTooLong(FleetmarkError):
    """An ad hoc run would keep the nightly one from a node for longer than the inventory allows."""

    node: str
    needed_s: float
    longest_s: float

    def __str__(self) -> str:
        return (
            f"node {self.node}: this run would hold it for {self.needed_s:.0f} s, an ad hoc run may for "
            f"{self.longest_s:.0f} s (longest_s of [adhoc] in the inventory); take fewer cases or repeats"
        )


@dataclass(eq=False)
class BadQuery(FleetmarkError):
    sql: str
    problem: str

    def __str__(self) -> str:
        return f"the query could not be answered: {self.problem}"


@dataclass(eq=False)
class HistoryGone(FleetmarkError):
    """Time travel further back than a table's log and files are kept."""

    table: str
    as_of: str
    oldest: str

    def __str__(self) -> str:
        return (
            f"table {self.table}: what it held as of {self.as_of} is no longer kept; the oldest there is: {self.oldest}"
        )


@dataclass(eq=False)
class NotInstalled(FleetmarkError):
    """An optional part of fleetmark is needed and is not in this environment."""

    package: str
    extra: str

    def __str__(self) -> str:
        return f"this needs {self.package}; install it with: pip install 'fleetmark[{self.extra}]'"
