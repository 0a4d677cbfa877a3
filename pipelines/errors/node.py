"""The node, and what runs on it."""

from dataclasses import dataclass
from typing import ClassVar

from pipelines.errors.error import FleetmarkError


@dataclass(eq=False)
class ScratchRefused(FleetmarkError):
    """The guard will not let a benchmark write there (missing, read-only, under /dev, not a directory, a link)."""

    path: str
    problem: str

    def __str__(self) -> str:
        return f"scratch directory {self.path}: {self.problem}"


@dataclass(eq=False)
class DeviceRefused(FleetmarkError):
    """A raw device that no benchmark may write to: not there, in use, signed, or not the one that was meant."""

    serial: str
    problem: str

    def __str__(self) -> str:
        return f"raw device {self.serial}: {self.problem}"


@dataclass(eq=False)
class NotApproved(FleetmarkError):
    """A job on a raw device that nobody has let run."""

    problem: str

    def __str__(self) -> str:
        return f"not approved: {self.problem}"


@dataclass(eq=False)
class AlreadyDecided(FleetmarkError):
    """A run's jobs on raw devices are approved or not approved once."""

    run: str
    at: str
    decision: str

    def __str__(self) -> str:
        return (
            f"run {self.run}: its raw devices were decided about on {self.at} UTC ({self.decision}); start another run"
        )


@dataclass(eq=False)
class NotEnoughSpace(FleetmarkError):
    path: str
    needed_bytes: int
    floor_bytes: int
    free_bytes: int

    def __str__(self) -> str:
        return (
            f"scratch directory {self.path}: needs {self.needed_bytes} B and must leave {self.floor_bytes} B free, "
            f"has {self.free_bytes} B free; free some space or lower the benchmark's size"
        )


@dataclass(eq=False)
class SizeCapExceeded(FleetmarkError):
    path: str
    needed_bytes: int
    cap_bytes: int

    def __str__(self) -> str:
        return (
            f"scratch directory {self.path}: the benchmark writes {self.needed_bytes} B, "
            f"the node allows {self.cap_bytes} B (scratch_cap_bytes in the inventory)"
        )


@dataclass(eq=False)
class LeaseTimeout(FleetmarkError):
    retryable: ClassVar[bool] = True
    path: str
    holder: str
    waited_s: float

    def __str__(self) -> str:
        return f"the node's lease {self.path} is still held by {self.holder} after {self.waited_s:.0f} s"


@dataclass(eq=False)
class ToolNotFound(FleetmarkError):
    tool: str

    def __str__(self) -> str:
        return f"{self.tool} is not installed on this node, or not on its PATH"


@dataclass(eq=False)
class ToolNotStarted(FleetmarkError):
    """The executable is there, and the system would not execute it: its format, its interpreter, the directory."""

    tool: str
    problem: str

    def __str__(self) -> str:
        return f"{self.tool} could not be started: {self.problem}"


@dataclass(eq=False)
class WorkerLost(FleetmarkError):
    """A process that worked for this one was ended by somebody else."""

    retryable: ClassVar[bool] = True
    parent: int

    def __str__(self) -> str:
        return f"a process that worked for process {self.parent} was killed, perhaps as memory ran out; try again"


@dataclass(eq=False)
class LeaseUnusable(FleetmarkError):
    path: str
    problem: str

    def __str__(self) -> str:
        return (
            f"the node's lease {self.path} cannot be used: {self.problem}; set FLEETMARK_LEASE_DIR, for everyone who "
            "measures on this machine, to one directory that all of them can write to"
        )


@dataclass(eq=False)
class WrongNode(FleetmarkError):
    """A node's work came to another machine than the one it is for; it may be routed rightly the next time."""

    retryable: ClassVar[bool] = True
    wanted: str
    this: str

    def __str__(self) -> str:
        return (
            f"this work is for node {self.wanted}, and this machine is node {self.this} (FLEETMARK_NODE); nothing was "
            f"run. Check FLEETMARK_NODE here and which worker listens to the queue of {self.wanted} in the inventory"
        )


@dataclass(eq=False)
class NodeUnreachable(FleetmarkError):
    """A node whose work is started over SSH does not let anybody in."""

    retryable: ClassVar[bool] = True
    node: str
    address: str
    problem: str

    def __str__(self) -> str:
        return f"node {self.node} cannot be reached at {self.address} over SSH: {self.problem}"


@dataclass(eq=False)
class NodeJobRefused(FleetmarkError):
    """A node's work was not done, and would not be the next time."""

    node: str
    problem: str

    def __str__(self) -> str:
        return f"node {self.node}: {self.problem}"


@dataclass(eq=False)
class SpoolFull(FleetmarkError):
    retryable: ClassVar[bool] = True
    path: str
    needed_bytes: int
    held_bytes: int
    budget_bytes: int

    def __str__(self) -> str:
        return (
            f"spool {self.path} is full: {self.needed_bytes} B do not fit beside {self.held_bytes} B, it may hold "
            f"{self.budget_bytes} B (FLEETMARK_SPOOL_BYTES); it empties when the object store can be reached again"
        )


@dataclass(eq=False)
class SpoolUnusable(FleetmarkError):
    """What the object store did not take cannot be kept on the node either."""

    retryable: ClassVar[bool] = True
    path: str
    problem: str

    def __str__(self) -> str:
        return f"spool {self.path} cannot be used: {self.problem}; nothing of it was changed"
