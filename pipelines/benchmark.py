"""The contract of a benchmark, and how the benchmarks are found: a module each, with `BENCHMARK = ...` at its foot."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import PurePath
from typing import Any, Literal

from pydantic import ValidationError

import pipelines.benchmarks
from pipelines.errors import BadParameter, Unknown
from pipelines.records import Endpoint, Job, Parsed, RawOutput, Record, Scalar, Unit


@dataclass(frozen=True)
class Metric:
    """A metric a benchmark gives. A value outside `low..high` is not honest: a broken tool or parser."""

    name: str
    unit: Unit
    better: Literal["higher", "lower", "neither"]
    low: float
    high: float
    meaning: str


COMMON_METRICS = (
    Metric("energy", "J", "neither", 0, 1e10, "energy that a GPU or CPU took while the tool ran (label device)"),
    Metric("power_mean", "W", "neither", 0, 1e4, "power of a GPU or CPU while the tool ran, mean over time"),
    Metric("throttled_time", "s", "lower", 0, 1e7, "time for which a GPU's clocks were held down (label reason)"),
)
"""What a job's telemetry tells, whichever benchmark it is of; on a machine that has no source of it, nothing."""


@dataclass(frozen=True)
class Cost:
    seconds: float
    written_bytes: int  # the most it ever writes


@dataclass(frozen=True)
class Floor:
    """An expectation on the median of a case's repeats: below it the node is reported, the row stays."""

    metric: str
    minimum: float
    unit: Unit
    source: str


@dataclass(frozen=True)
class Peer:
    """Where the server of a pair is reached."""

    address: str
    port: int


DEVICE_EDGE_BYTES = 16 * 2**20
"""At either end of a disk nothing is written: the signatures of filesystems, RAID and partition tables lie there."""


@dataclass(frozen=True)
class Workplace:
    """What the node's shell gives a command: its own empty directory and what it saw there."""

    scratch: PurePath
    output: PurePath  # where the tool writes its result, if it can write to a file
    direct_io: bool  # whether the scratch filesystem takes O_DIRECT
    tool_version: str
    files: PurePath | None = None  # the folder of `Benchmark.files`, and of all else in the job's dataset; for reading
    peer: Peer | None = None  # of a pair benchmark: whom the client connects to
    device: PurePath | None = None  # of a benchmark of raw devices: the disk, which is empty and nobody else's
    cpus: int = 1  # that a process may run on
    gpus: int = 0
    endpoints: Mapping[str, Endpoint] = field(default_factory=dict)  # servers that the inventory names
    tool_help: str = ""  # what `Benchmark.help_argv` printed; empty in a preview


@dataclass(frozen=True)
class Command:
    argv: tuple[str, ...]
    labels: Mapping[str, str] = field(default_factory=dict)  # what was decided here, kept in RawOutput.facts


@dataclass(frozen=True)
class Pair:
    """What makes a benchmark one between two nodes: `Benchmark.command` is the client's, this is about the server.

    `unanswered` says of a client's attempt why it met no server that was free; such an attempt is made again. None: it
    met one. `served` tells from what the server printed whether it had a client: a port scan is none. `compared` is the
    metric by which pairs are compared; more of it is better.
    """

    serve: Callable[[Any, int], Command]  # a server for one client, on a port; it ends after that client
    unanswered: Callable[[RawOutput], str | None]
    served: Callable[[str], bool]
    compared: str = "goodput"


Cadence = Literal["nightly", "weekly", "on demand"]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: what it takes, what it gives, and three pure functions. Everything else reads this descriptor.

    `params` is a closed pydantic record with a default for every field; it refuses what the tool could not run.
    `case` names a parameter set in tables ("rand_read"); `required` are the metrics its case must give to be OK.
    `command` may raise nothing; `parse` raises UnknownOutput on anything but its tool's output, and nothing else.
    `files` are the names of the files that the command reads: from the job's dataset, or where it has none, from the
    folder of files that the node has in the inventory. Where one is missing, the tool is not started.
    `device` says which of the disks that the inventory lists for the node, from 0, is written to as a whole. Such a job
    runs in Airflow once a second person has approved it, see `approvals`, and on a disk that is empty, see `devices`.
    """

    name: str
    title: str
    caveat: str  # what the numbers do not mean, in full sentences
    cadence: Cadence  # how often it is worth its cost
    tool: str  # executable on the node's PATH, which its command starts, or one of `programs`
    minimum_version: tuple[int, ...]
    version_argv: tuple[str, ...]
    install_hint: str
    writes: bool
    source: str  # where the tool and its output format are documented
    params: type[Record]
    metrics: tuple[Metric, ...]
    case: Callable[[Any], str]
    cost: Callable[[Any], Cost]
    required: Callable[[Any], frozenset[str]]
    command: Callable[[Any, Workplace], Command]
    version: Callable[[str], str | None]  # from the text that version_argv printed
    parse: Callable[[RawOutput], Parsed]
    floors: Callable[[Any], tuple[Floor, ...]] = lambda _: ()
    memory: Callable[[Any, int], int] = lambda _, __: 0  # bytes that it takes on so many processors, where it is much
    pair: Pair | None = None
    needs: frozenset[str] = frozenset()  # features of the inventory; on a node without them it is not planned
    files: Callable[[Any], tuple[str, ...]] = lambda _: ()
    device: Callable[[Any], int] | None = None
    passed: tuple[str, ...] = ()  # environment variables that its tool is given beside the usual ones
    help_argv: tuple[str, ...] = ()  # prints the options that the tool knows, where builds differ in them
    companion: Callable[[float], Mapping[str, Scalar]] | None = None  # its parameters beside a job of so many seconds
    programs: tuple[str, ...] = ()  # executables that come with the tool, in its version

    @property
    def described(self) -> tuple[Metric, ...]:
        """Its own metrics, and those that a job of any benchmark has where the machine can be asked."""
        own = {metric.name for metric in self.metrics}
        return (*self.metrics, *(metric for metric in COMMON_METRICS if metric.name not in own))

    def metric(self, name: str) -> Metric:
        """Raises: Unknown: the descriptor has no such metric."""
        for metric in self.described:
            if metric.name == name:
                return metric
        raise Unknown(f"metric of {self.name}", name, tuple(metric.name for metric in self.described))

    def checked_params(self, given: Mapping[str, Scalar]) -> Any:
        """The parameters as the benchmark's own record, defaults filled in.

        Raises:
            BadParameter: a parameter that is unknown, of the wrong type, or that the tool could not run with.
        """
        try:
            return self.params.model_validate(dict(given))
        except ValidationError as e:
            first = e.errors()[0]
            name = str(first["loc"][0]) if first["loc"] else ", ".join(given)
            problem = first["msg"].removeprefix("Value error, ")
            if first["type"] == "extra_forbidden":
                problem = f"there is no such parameter; known: {', '.join(self.params.model_fields)}"
            raise BadParameter(self.name, name, problem) from e

    @property
    def compared(self) -> Metric:
        """The metric by which pairs are compared."""
        if self.pair is None:
            raise Unknown("benchmark between two nodes", self.name, ())
        return self.metric(self.pair.compared)

    def params_of(self, job: Job) -> Any:
        return self.checked_params(job.params)


@cache
def discover() -> Mapping[str, Benchmark]:
    """Every benchmark by name: each module of `pipelines.benchmarks` that has a BENCHMARK."""
    found: dict[str, Benchmark] = {}
    for module in pkgutil.iter_modules(pipelines.benchmarks.__path__, "pipelines.benchmarks."):
        benchmark = getattr(importlib.import_module(module.name), "BENCHMARK", None)
        if isinstance(benchmark, Benchmark):
            found[benchmark.name] = benchmark
    return dict(sorted(found.items()))


def get(name: str) -> Benchmark:
    """Raises: Unknown: there is no benchmark of that name."""
    benchmarks = discover()
    if name not in benchmarks:
        raise Unknown("benchmark", name, tuple(benchmarks))
    return benchmarks[name]
