"""nccl_tests: what collective operations reach between the GPUs of one node, by size; and which GPU is late."""

import re

from pipelines.benchmark import Benchmark, Command, Cost, Metric, Workplace
from pipelines.benchmarks.nccl_tests.output import parse, required
from pipelines.benchmarks.nccl_tests.params import Params, case

_STARTING_S = 12.0  # contexts and communicators of eight GPUs
_SLOW_BYTES_PER_S = 5e9  # what planning assumes of a node that it knows nothing of: PCI Express without NVLink
_SLOW_OPERATION_S = 100e-6
_JSON_FROM, _PER_ITERATION_FROM = (2, 17, 3), (2, 18)


def cost(params: Params) -> Cost:
    """Each size is done in place and out of place, and checked once."""
    times = 2 * (params.iterations + params.warmup_iterations + 2)
    seconds = sum(times * (size / _SLOW_BYTES_PER_S + _SLOW_OPERATION_S) for size in params.sizes)
    return Cost(seconds=_STARTING_S + min(seconds, 600.0), written_bytes=0)


def command(params: Params, workplace: Workplace) -> Command:
    """One process with all GPUs, or by mpirun one with each. Options only where the version's help lists them."""
    has = tuple(int(part) for part in re.findall(r"\d+", workplace.tool_version)[:3])
    gpus = params.gpus or max(1, workplace.gpus)
    launch = ("mpirun", "--allow-run-as-root", "--bind-to", "none", "-np", str(gpus)) if params.per_rank else ()
    argv = (
        *launch,
        f"{params.collective}_perf",
        *("-g", str(1 if params.per_rank else gpus)),
        *("-b", str(params.min_bytes), "-e", str(params.max_bytes), "-f", str(params.step_factor)),
        *("-n", str(params.iterations), "-w", str(params.warmup_iterations)),
        *("-c", "1"),
        *("-d", params.datatype),
        *(("-J", str(workplace.output)) if has >= _JSON_FROM else ()),
        *(("-I", "1") if has >= _PER_ITERATION_FROM else ()),
    )
    return Command(argv=argv)


def version(text: str) -> str | None:
    """The release that the options in its help came with; no option prints a version, only a measurement does."""
    if not re.search(r"^USAGE: \S*_perf", text, re.MULTILINE):
        return None
    if "--per_iter_timing" in text:
        return "2.18+"
    return "2.17.3+" if "-J,--output_file" in text else "2.0+"  # some forks have another option of that name


BENCHMARK = Benchmark(
    name="nccl_tests",
    title="Collectives between the GPUs of a node (nccl-tests)",
    caveat="busbw is algbw times a factor of the collective and the number of GPUs, so that it can be held against "
    "what a link carries; it is no rate at which a training job's gradients move. Small sizes measure latency, large "
    "ones bandwidth, and the average over all of them neither. Nothing of the network between nodes is in it.",
    cadence="nightly",
    tool="all_reduce_perf",
    programs=("all_gather_perf", "reduce_scatter_perf", "alltoall_perf", "mpirun"),
    minimum_version=(2, 0),
    version_argv=("all_reduce_perf", "--help"),
    install_hint="build https://github.com/NVIDIA/nccl-tests, for times by rank with MPI=1, and put build/ on the PATH",
    writes=False,
    source="https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md",
    params=Params,
    metrics=(
        Metric("algbw", "B/s", "higher", 1e3, 1e13, "bytes of the operation's size per second"),
        Metric("busbw", "B/s", "higher", 1e3, 1e13, "algbw times the factor that makes it comparable with a link"),
        Metric("collective_time", "s", "lower", 1e-7, 600.0, "mean time of one operation"),
        Metric("iteration_time_min", "s", "lower", 1e-7, 600.0, "shortest operation, the slowest process of each"),
        Metric("iteration_time_p50", "s", "lower", 1e-7, 600.0, "median of the operations, likewise"),
        Metric(
            "iteration_time_p99", "s", "lower", 1e-7, 600.0, "99th percentile of them; the longest below 100 of them"
        ),
        Metric("iteration_time_max", "s", "lower", 1e-7, 600.0, "longest of them"),
        Metric("rank_time", "s", "lower", 1e-7, 600.0, "mean time of an operation on one rank (label rank)"),
        Metric(
            "straggler_lag", "ratio", "lower", 0.0, 1.0, "share of the slowest rank's time that the median does without"
        ),
    ),
    case=case,
    cost=cost,
    required=required,
    command=command,
    version=version,
    parse=parse,
    needs=frozenset({"gpu"}),
    passed=("NCCL_TOPO_FILE", "NCCL_SOCKET_IFNAME", "NCCL_CONF_FILE"),
)
