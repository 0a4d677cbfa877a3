"""What crosses a stage: frozen, closed records. Values are in base units; missing is absent, never zero."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

Unit = Literal["B/s", "FLOP/s", "1/s", "s", "B", "1", "ratio", "W", "J", "Hz", "tok/s", "tok/J", "°C"]
"""Base units. "1" is a count; "ratio" lies between 0 and 1."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
"""A name that is also safe as a path segment, an Airflow queue and a table value."""

DatasetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}(@[A-Za-z0-9][A-Za-z0-9._-]{0,62})?$")]
"""NAME@TAG or NAME@ID; NAME alone is NAME@latest."""

DeviceSerial = Annotated[str, Field(pattern=r"^(loop:)?[A-Za-z0-9][A-Za-z0-9._+-]{2,126}$")]
"""The serial number of a disk, as `devices` reads it."""

EndpointUrl = Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9.:\[\]_-]{1,253}(/[A-Za-z0-9._~/-]{0,200})?$")]
"""Without a user, a password or a query, which would end in raw outputs."""

DatasetVersion = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}@[0-9a-f]{32}$")]
"""NAME@ID, with all digits of the id: the same bytes for ever."""

Scalar = bool | int | float | str
Labels = Mapping[str, str]


class Record(BaseModel):
    """Frozen and closed: an unknown field is an error, and nothing changes after construction."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Outcome(StrEnum):
    """How a planned job ended. Only OK is a measurement; none of the others is a zero or a pass."""

    OK = "ok"
    TOOL_FAILED = "tool_failed"
    TRUNCATED = "truncated"  # it ran, but not to its end: killed, timed out, or part of the output is missing
    NOT_MEASURED = "not_measured"  # the tool, the peer or the node was not there
    CONFIG = "config"  # the parameters or the node's set-up do not allow it; says nothing about the hardware
    CONTENDED = "contended"  # something else held the node


class Endpoint(Record):
    """An OpenAI-compatible server. `metrics` is where Prometheus reads it; default `/metrics` of the same server."""

    url: EndpointUrl  # without /v1
    metrics: EndpointUrl | None = None


class Node(Record):
    """A machine of the inventory. `labels` are its cohort labels: sku, rack, power_domain, tenant."""

    name: Name
    queue: Name
    scratch: str  # absolute, or relative to FLEETMARK_HOME
    scratch_cap_bytes: Annotated[int, Field(gt=0, lt=2**63)] = 64 * 2**30
    free_floor_bytes: Annotated[int, Field(ge=0, lt=2**63)] = 2 * 2**30
    features: tuple[Name, ...] = ()
    price_per_hour: PositiveFloat | None = None  # in the inventory's currency
    files: str | None = None  # an absolute folder with what jobs without a dataset read: models
    devices: Annotated[tuple[DeviceSerial, ...], Field(max_length=64)] = ()  # disks whose content may be destroyed
    endpoints: Mapping[Name, Endpoint] = {}  # the servers that its benchmarks may put load on
    drained: bool = False  # no run takes it
    address: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.:_-]{0,252}$")] | None = None  # for its peers
    labels: Labels = {}

    @property
    def cohort(self) -> str:
        """The nodes this one is compared with: same SKU."""
        return self.labels.get("sku", "unlabelled")

    @property
    def reached_at(self) -> str:
        """What the other nodes connect to."""
        return self.address or self.name


class SuiteEntry(Record):
    """One benchmark in a suite. `matrix` multiplies: every combination of its lists is a case of its own."""

    benchmark: Name
    params: Mapping[str, Scalar] = {}
    matrix: Mapping[str, tuple[Scalar, ...]] = {}
    repeats: Annotated[int, Field(ge=1, le=100)] = 1
    timeout_s: Annotated[float, Field(gt=0)] | None = None  # default: from the benchmark's own cost
    dataset: DatasetName | None = None  # its files are on the node before the benchmark starts
    needs: tuple[Name, ...] = ()  # features that a node must have to be asked, beside those that the benchmark needs
    beside: tuple[Name, ...] = ()  # benchmarks that watch while each of its jobs runs, each with a row of its own
    pairs: Literal["all", "quick"] | None = None  # of a benchmark between two nodes: which of them meet; default quick


class Suite(Record):
    name: Name
    description: str
    entries: tuple[SuiteEntry, ...]


class Job(Record):
    """One execution of one tool on one node. A repeat is a job of its own, so that each repeat is a row."""

    job_id: Name  # content hash of what follows within its run
    node: Name
    benchmark: Name
    case: Name
    params: Mapping[str, Scalar]  # complete: defaults filled in when the plan was made
    repeat: PositiveInt
    timeout_s: Annotated[float, Field(gt=0)]
    seconds: NonNegativeFloat  # expected
    written_bytes: Annotated[int, Field(ge=0)]  # at most
    dataset: DatasetVersion | None = None
    device: DeviceSerial | None = None  # the disk that it writes to, where that has no filesystem
    beside: Name | None = None  # the job during which this one watches, and with which it ends
    # A benchmark between two nodes has one job for both: `node` is the client, and the server has no row of its own.
    peer: Name | None = None  # the server
    round: PositiveInt | None = None  # in which each node stands in one pair at most
    port: Annotated[int, Field(ge=1024, le=65535)] | None = None  # of the server
    closes_s: NonNegativeFloat | None = None  # when its round is over, after the beginning of the run's rounds
    again: bool = False  # one more test of a node whose pairs did badly, in rounds of their own

    @property
    def task(self) -> str:
        """The task of its node, of those in `stages`, that runs it."""
        if self.peer:
            return "exchange_again" if self.again else "exchange"
        return "measure_devices" if self.device else "measure"


class Plan(Record):
    """What one run will do. Written to the store before anything runs; completeness is judged against it."""

    run_id: Name
    suite: Name
    created_at: AwareDatetime
    trigger: str  # "schedule", "manual", "cli"
    tenant: Name = "default"  # whom it is charged to, see `tenants`
    priority: PositiveInt | None = None  # among those that wait for a node the greatest goes first; None: not asked
    note: str = ""
    unreachable_after_s: PositiveFloat | None = None  # how long a task waits for its node; None: it does not
    nodes: tuple[Node, ...]
    jobs: tuple[Job, ...]
    left_out: tuple[str, ...] = ()  # sentences: what of the suite was not asked of which nodes, and why

    def jobs_of(self, node: str) -> tuple[Job, ...]:
        return tuple(job for job in self.jobs if job.node == node)

    def solo_jobs_of(self, node: str) -> tuple[Job, ...]:
        """The jobs that the node does by itself, and that nobody has to approve; without those that watch others."""
        alone = (job for job in self.jobs if job.peer is None and job.device is None and job.beside is None)
        return tuple(job for job in alone if job.node == node)

    def watchers_of(self, job: Job) -> tuple[Job, ...]:
        """The jobs that run beside this one."""
        return tuple(each for each in self.jobs if each.beside == job.job_id)

    def device_jobs_of(self, node: str) -> tuple[Job, ...]:
        """The jobs that write to the node's disks, which a second person has to approve."""
        return tuple(job for job in self.jobs if job.node == node and job.device is not None)

    def device_nodes(self) -> tuple[str, ...]:
        """The nodes that have such jobs, in the plan's order."""
        having = {job.node for job in self.jobs if job.device is not None}
        return tuple(node.name for node in self.nodes if node.name in having)

    def pair_jobs_of(self, node: str, *, again: bool = False) -> tuple[Job, ...]:
        """The jobs in which the node is the client or the server, in the order of their rounds."""
        return tuple(job for job in self.jobs if job.peer and node in (job.node, job.peer) and job.again == again)

    def paired_nodes(self, *, again: bool = False) -> tuple[str, ...]:
        """The nodes that stand in any round, in the plan's order."""
        met = {name for job in self.jobs if job.peer and job.again == again for name in (job.node, job.peer)}
        return tuple(node.name for node in self.nodes if node.name in met)

    def benchmarks_of(self, node: str) -> frozenset[str]:
        """Those for which the node needs a tool, alone or with a peer."""
        return frozenset(job.benchmark for job in self.jobs if node in (job.node, job.peer))

    def seconds_by_node(self) -> Mapping[str, float]:
        """For how long each node is expected to be held; a test between two holds both."""
        held = dict.fromkeys((node.name for node in self.nodes), 0.0)
        for job in self.jobs:
            for name in filter(None, (job.node, job.peer)):
                held[name] = held.get(name, 0.0) + job.seconds
        return held

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)


class Environment(Record):
    """The configuration a number depends on; equal configurations share `environment_id` across the fleet."""

    environment_id: Name
    facts: Mapping[str, str | int | tuple[Mapping[str, str | int | None], ...] | None]


class Refusal(Record):
    """Why a job's tool was not started at all."""

    outcome: Outcome
    reason: str


class Series(Record):
    """A quantity over the time of a job. Of a long job not every sample is kept; the summary is of all that were taken.

    `seconds` are those since the tool's start. A quantity that never changed has its first and its last sample only.
    """

    metric: Name
    unit: Unit
    labels: Labels = {}
    source: Name  # who was asked: nvml, rapl, hwmon, cpufreq, dcgm
    count: PositiveInt  # samples taken
    minimum: FiniteFloat
    mean: FiniteFloat  # over time, between samples linear
    maximum: FiniteFloat
    seconds: tuple[FiniteFloat, ...]
    samples: tuple[FiniteFloat, ...]

    @model_validator(mode="after")
    def _samples_have_their_times(self) -> "Series":
        if not self.samples or len(self.samples) != len(self.seconds):
            raise ValueError("needs a time for each of its samples, and one sample at least")
        return self


class Telemetry(Record):
    """What the machine said of itself while a tool ran, see `telemetry`."""

    series: tuple[Series, ...] = ()
    notes: tuple[str, ...] = ()  # sources that could not be read, and why
    cpu_s: NonNegativeFloat = 0.0  # of a processor's time, which the sampling itself took


class RawOutput(Record):
    """The evidence of one attempt at one job, stored before anyone judges it and never overwritten."""

    schema_version: Literal[1] = 1
    run_id: Name
    job: Job
    attempt: PositiveInt
    hostname: str
    tool: str
    tool_version: str | None
    environment_id: Name
    simulated: bool = False
    argv: tuple[str, ...] = ()
    exit_status: int | None = None  # None when no process ended by itself: refused, or ended by a signal
    signal: int | None = None
    timed_out: bool = False
    output: str | None = None  # the file the tool was told to write, where it has one
    stdout: str = ""
    stderr: str = ""
    started_at: AwareDatetime
    duration_s: NonNegativeFloat  # monotonic
    lease_wait_s: NonNegativeFloat = 0.0
    facts: Labels = {}  # what the node saw while preparing, e.g. filesystem, direct_io
    refusal: Refusal | None = None
    telemetry: Telemetry | None = None  # None: nothing was sampled, or nothing on this machine can be


class Measurement(Record):
    metric: Name
    value: FiniteFloat
    unit: Unit
    labels: Labels = {}


class Histogram(Record):
    """Counts by bin. Bins of equal value add up, so percentiles of many runs or nodes stay exact to a bin."""

    metric: Name
    unit: Unit
    labels: Labels = {}
    bins: tuple[tuple[float, int], ...]  # (value in `unit`, count), ascending by value


class Parsed(Record):
    """What a benchmark makes of one RawOutput. `reason` is empty only when the outcome is OK."""

    outcome: Outcome
    reason: str = ""
    measurements: tuple[Measurement, ...] = ()
    histograms: tuple[Histogram, ...] = ()
    series: tuple[Series, ...] = ()  # beside those of the job's telemetry
    notes: tuple[str, ...] = ()  # what the tool said beside its result, worth keeping with the run


class Validation(Record):
    """The short form of a validation; the whole of it is at `reports/<run>/validation.json` and `.html`."""

    run_id: str
    success: bool
    rows: int
    quarantined: int
    failed: tuple[str, ...]  # a sentence for each expectation that did not hold
