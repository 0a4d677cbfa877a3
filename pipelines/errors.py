"""Every error that is raised on purpose: fields, whether a retry may help, and one sentence that says what now."""

from dataclasses import dataclass, fields
from typing import Any, ClassVar


class FleetmarkError(Exception):
    """What callers catch at a boundary. `str(error)` is the whole sentence; the fields are for programs."""

    retryable: ClassVar[bool] = False

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]


# --- what an operator wrote ---------------------------------------------------------------------------------


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


# --- the object store ---------------------------------------------------------------------------------------


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


# --- datasets ------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class BadReference(FleetmarkError):
    text: str
    problem: str

    def __str__(self) -> str:
        return f"{self.text!r} names no dataset, tag or version: {self.problem}"


@dataclass(eq=False)
class SourceRefused(FleetmarkError):
    """A source, or a file of it, that cannot be published as it is."""

    url: str
    problem: str

    def __str__(self) -> str:
        return f"source {self.url}: {self.problem}"


@dataclass(eq=False)
class SourceChanged(FleetmarkError):
    """A source file is not what it was when the publication was planned; nothing is published."""

    url: str
    planned: str
    found: str

    def __str__(self) -> str:
        return (
            f"source file {self.url} changed while it was being published: planned {self.planned}, found {self.found}; "
            "publish again when nobody writes to it"
        )


@dataclass(eq=False)
class NotPacked(FleetmarkError):
    """A publication is to be committed and not all of it is packed."""

    retryable: ClassVar[bool] = True
    dataset: str
    publication: str
    missing: int
    chunks: int

    def __str__(self) -> str:
        return (
            f"publication {self.publication} of dataset {self.dataset}: {self.missing} of {self.chunks} chunks are not "
            "packed yet; the same publish again continues where it was"
        )


@dataclass(eq=False)
class TagMoved(FleetmarkError):
    """Somebody else moved a tag since it was looked at."""

    dataset: str
    tag: str
    expected: str
    found: str
    wanted: str

    def __str__(self) -> str:
        return (
            f"tag {self.dataset}@{self.tag} was moved meanwhile: expected it at {self.expected}, found it at "
            f"{self.found}; it stays there. To move it: fleetmark dataset tag {self.dataset}@{self.wanted} {self.tag}"
        )


@dataclass(eq=False)
class VersionInUse(FleetmarkError):
    dataset: str
    version: str
    tags: tuple[str, ...]

    def __str__(self) -> str:
        return f"version {self.dataset}@{self.version} is tagged {', '.join(self.tags)}; remove or move the tag first"


@dataclass(eq=False)
class DamagedShard(FleetmarkError):
    """Bytes of a shard are not what its manifest says, wherever they came from and however often they were fetched."""

    dataset: str
    shard: str
    url: str
    expected: str
    got: str

    def __str__(self) -> str:
        return (
            f"shard {self.shard[:12]} of dataset {self.dataset} is damaged: expected {self.expected}, got {self.got} "
            f"from {self.url}; nothing of it was kept. `fleetmark dataset scrub {self.dataset}` looks for a good copy"
        )


@dataclass(eq=False)
class CacheFull(FleetmarkError):
    path: str
    needed_bytes: int
    budget_bytes: int
    free_bytes: int
    floor_bytes: int
    kept_bytes: int  # by pins and by processes that read

    def __str__(self) -> str:
        return (
            f"cache {self.path}: {self.needed_bytes} B do not fit: budget {self.budget_bytes} B, of which "
            f"{self.kept_bytes} B are pinned or in use; {self.free_bytes} B are free on the disk and "
            f"{self.floor_bytes} B must stay free. Unpin or evict something, or raise FLEETMARK_CACHE_BYTES"
        )


@dataclass(eq=False)
class CacheUnusable(FleetmarkError):
    path: str
    problem: str

    def __str__(self) -> str:
        return f"cache {self.path} cannot be used: {self.problem}; see FLEETMARK_CACHE"


@dataclass(eq=False)
class AmbiguousSample(FleetmarkError):
    """Files of one sample that a sample's names cannot tell apart."""

    dataset: str
    path: str
    ending: str

    def __str__(self) -> str:
        return (
            f"dataset {self.dataset}: the sample of file {self.path!r} has the name {self.ending!r} twice; "
            "rename the file and publish again"
        )


@dataclass(eq=False)
class WrongState(FleetmarkError):
    """The state of a reader that is to go on in another one, which would read other samples."""

    what: str
    expected: str
    got: str

    def __str__(self) -> str:
        return (
            f"this reader cannot go on from that state: its {self.what} is {self.expected}, the state's {self.got}; "
            "open the reader as the one was that the state is of"
        )


@dataclass(eq=False)
class DownloadRefused(FleetmarkError):
    path: str
    problem: str

    def __str__(self) -> str:
        return f"download to {self.path}: {self.problem}"


@dataclass(eq=False)
class StillCollecting(FleetmarkError):
    """Publications and the collector of unreferenced shards keep out of each other's way."""

    retryable: ClassVar[bool] = True
    dataset: str
    who: str

    def __str__(self) -> str:
        return f"dataset {self.dataset}: {self.who} is at work; safe to try again when it is done"


# --- the node -----------------------------------------------------------------------------------------------


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


# --- what a tool printed, what landed -----------------------------------------------------------------------


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


@dataclass(eq=False)
class AirflowFailed(FleetmarkError):
    """The embedded Airflow did not come up, or ended a run in another state than success."""

    problem: str
    log: str

    def __str__(self) -> str:
        return f"{self.problem}; see {self.log}"


@dataclass(eq=False)
class TriggerRefused(FleetmarkError):
    """Airflow would not start a run: the parameters are not what the DAG's form allows."""

    dag: str
    problem: str

    def __str__(self) -> str:
        return f"Airflow refused to start {self.dag}: {self.problem}"


@dataclass(eq=False)
class NodeRefused(FleetmarkError):
    """A node asked the control plane for what is not its own, see fleetmark_airflow.node_access."""

    node: str
    problem: str

    def __str__(self) -> str:
        return f"refused to node {self.node}: {self.problem}"
