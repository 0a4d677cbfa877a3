"""dcgm_diag: NVIDIA's own tests of the GPUs of a node, from a look at its set-up to hours of load (dcgmi diag)."""

from typing import Annotated

from pydantic import Field

from pipelines.benchmark import Benchmark, Command, Cost, Floor, Metric, Workplace
from pipelines.benchmarks.dcgm_diag.output import parse
from pipelines.families import dcgm_tool
from pipelines.records import Record

_SECONDS = {1: 30.0, 2: 180.0, 3: 1800.0, 4: 7200.0}  # the user guide's "seconds", 2 minutes, 30 minutes, 1 to 2 hours


class Params(Record):
    level: Annotated[int, Field(ge=1, le=4)] = Field(
        default=1, description="1: set-up, 2: and memory and PCIe, 3: and load, 4: and hours of load"
    )


def case(params: Params) -> str:
    return f"r{params.level}"


def cost(params: Params) -> Cost:
    return Cost(seconds=_SECONDS[params.level], written_bytes=0)


def command(params: Params, _: Workplace) -> Command:
    return Command(argv=(dcgm_tool.TOOL, "diag", "-r", str(params.level), "-j"))


def required(_: Params) -> frozenset[str]:
    return frozenset({"passed"})


def floors(_: Params) -> tuple[Floor, ...]:
    """Every test is to be passed by every GPU that it ran on."""
    return (Floor("passed", 1.0, "ratio", "DCGM's own verdict, but for errors of severity configuration"),)


BENCHMARK = Benchmark(
    name="dcgm_diag",
    title="NVIDIA's diagnostic of the GPUs (dcgmi diag)",
    caveat="A test that was skipped has no row: it was not passed, and a note says why it was skipped. A test that "
    "failed for nothing but the node's set-up (severity configuration) has no row in passed either, since it says "
    "nothing about the GPU. Where DCGM 4 fails all GPUs for what it warns of one, that one alone has a row. It prints "
    "a warning as a failure, so both are 0 here; the label severity of errors says how bad it is: monitor is a GPU "
    "that still works, isolate one that does not. With several repeats the median is judged, which a single failure "
    "does not move: ask for one.",
    cadence="weekly",
    tool=dcgm_tool.TOOL,
    minimum_version=dcgm_tool.MINIMUM_VERSION,
    version_argv=dcgm_tool.VERSION_ARGV,
    install_hint=dcgm_tool.INSTALL_HINT,
    writes=False,
    source="https://docs.nvidia.com/datacenter/dcgm/latest/user-guide/dcgm-diagnostics.html",
    params=Params,
    metrics=(
        Metric("passed", "ratio", "higher", 0.0, 1.0, "1: the GPU passed the test, 0: it failed (labels gpu, test)"),
        Metric("errors", "1", "lower", 1.0, 1e6, "errors of a test on a GPU (labels severity, category, error)"),
        Metric("bandwidth", "B/s", "higher", 1e6, 1e13, "between GPU and host (label direction)"),
        Metric("flops", "FLOP/s", "higher", 1e9, 1e18, "what the test diagnostic reached in its own matrix product"),
    ),
    case=case,
    cost=cost,
    required=required,
    command=command,
    version=dcgm_tool.version,
    parse=parse,
    floors=floors,
    needs=frozenset({"gpu"}),
)
