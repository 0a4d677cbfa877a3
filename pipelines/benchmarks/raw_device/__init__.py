"""raw_device: bandwidth, IOPS and latency of a whole disk, without a filesystem; the descriptor and the command.

fio first writes the part of the disk that is measured, once: what was never written a drive need not read from its
medium. That part lies DEVICE_EDGE_BYTES from either end of the disk. There the signatures of filesystems and volumes
lie, so that the disk is as unsigned in the next night as it was in this one, whatever the random data look like.
"""

from pipelines.benchmark import DEVICE_EDGE_BYTES, Benchmark, Command, Cost, Workplace
from pipelines.benchmarks.raw_device.params import KIB, MIB, Params, case, labels
from pipelines.families import fio_results, fio_tool
from pipelines.records import Labels, Parsed, RawOutput

_RW = {"seq_read": "read", "seq_write": "write", "rand_read": "randread", "rand_write": "randwrite", "mixed": "randrw"}
_SLOW_DISK_BYTES_PER_S = 250_000_000  # what planning assumes of a disk it knows nothing of
_REFILL_BELOW_BYTES = 128 * KIB  # as in the benchmark fio: smaller blocks of one random buffer would repeat
_SEED = 20_180_412


def command(params: Params, workplace: Workplace) -> Command:
    """fio's command line: one job that writes the part of the disk, then the jobs that are measured, over and over.

    `--allow_file_create=0`: where the path is gone fio would make a file of that name, in memory, and measure it.
    """
    common = (
        "--thread=1",  # without it a killed fio leaves the processes of its jobs behind, still writing
        f"--filename={fio_tool.escaped(workplace.device)}",
        "--allow_file_create=0",
        "--direct=1",
        f"--ioengine={params.engine}",
        f"--offset={DEVICE_EDGE_BYTES}",
        f"--randseed={_SEED}",
        "--scramble_buffers=1",
    )
    argv = (
        "fio",
        f"--output={workplace.output}",
        "--output-format=json+",
        "--eta=never",
        "--name=fill",
        *common,
        "--rw=write",
        f"--bs={MIB}",
        "--iodepth=8",
        f"--size={params.total_bytes}",
        "--end_fsync=1",
        f"--name={params.profile}",
        "--stonewall=1",
        *common,
        f"--rw={_RW[params.profile]}",
        f"--bs={params.block_size_bytes}",
        f"--iodepth={params.iodepth}",
        f"--numjobs={params.numjobs}",
        f"--size={params.size_bytes}",
        f"--offset_increment={params.size_bytes}",
        f"--refill_buffers={int(params.writes and params.block_size_bytes < _REFILL_BELOW_BYTES)}",
        "--time_based=1",
        f"--runtime={fio_tool.milliseconds(params.runtime_s)}ms",
        f"--ramp_time={fio_tool.milliseconds(params.ramp_s)}ms",
        *((f"--rwmixread={params.read_percent}",) if params.profile == "mixed" else ()),
    )
    return Command(argv=argv, labels={**labels(params), "direct": "true"})


def cost(params: Params) -> Cost:
    """Expected seconds: writing the part on a slow disk, warm-up, measured time. `written_bytes` is the part's size."""
    filling_s = params.total_bytes / _SLOW_DISK_BYTES_PER_S
    return Cost(seconds=filling_s + params.ramp_s + params.runtime_s, written_bytes=params.total_bytes)


def parse(raw: RawOutput) -> Parsed:
    """Raises: UnknownOutput: fio ended well and printed something else than its document."""

    def labelled(params: Params) -> Labels:
        return {**labels(params), **({"device": raw.job.device} if raw.job.device else {})}

    return fio_results.parse(raw, Params.model_validate, labelled, str(raw.job.params.get("profile")))


BENCHMARK = Benchmark(
    name="raw_device",
    title="A disk without a filesystem (fio)",
    caveat="It is the part of the disk that was just written, with direct I/O: a drive's cache may hold a small one, "
    "and a drive that is nearly full, or that was not written over for long, is slower. All that lies there is lost, "
    "with loads that only read as well.",
    cadence="on demand",
    tool="fio",
    minimum_version=fio_tool.MINIMUM_VERSION,
    version_argv=("fio", "--version"),
    install_hint="apt-get install fio",
    writes=True,
    source="https://fio.readthedocs.io/en/latest/fio_doc.html#json-output",
    params=Params,
    metrics=(
        *fio_tool.direction("read", "read"),
        *fio_tool.direction("write", "written"),
        *fio_tool.processor(),
    ),
    case=case,
    cost=cost,
    required=fio_results.required,
    command=command,
    version=fio_tool.version,
    parse=parse,
    device=lambda params: int(params.device),
)
