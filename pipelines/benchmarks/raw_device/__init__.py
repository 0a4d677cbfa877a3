"""raw_device: bandwidth, IOPS and latency of a whole disk, without a filesystem; the descriptor and the command.

fio first writes the part of the disk that is measured, once: what was never written a drive need not read from its
medium. That part lies DEVICE_EDGE_BYTES from either end of the disk. There the signatures of filesystems and volumes
lie, so that the disk is as unsigned in the next night as it was in this one, whatever the random data look like.
"""

from pipelines.benchmark import DEVICE_EDGE_BYTES, Command, Cost, Workplace
from pipelines.benchmarks.raw_device.params import Params, case
from pipelines.families import fio_params, fio_results, fio_tool
from pipelines.families.fio_params import MIB
from pipelines.records import Labels, Parsed, RawOutput


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
        f"--randseed={fio_tool.SEED}",
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
        f"--rw={fio_params.RW[params.profile]}",
        f"--bs={params.block_size_bytes}",
        f"--iodepth={params.iodepth}",
        f"--numjobs={params.numjobs}",
        f"--size={params.size_bytes}",
        f"--offset_increment={params.size_bytes}",
        fio_tool.refill(writes=params.writes, block_size_bytes=params.block_size_bytes),
        "--time_based=1",
        f"--runtime={fio_tool.milliseconds(params.runtime_s)}ms",
        f"--ramp_time={fio_tool.milliseconds(params.ramp_s)}ms",
        *((f"--rwmixread={params.read_percent}",) if params.profile == "mixed" else ()),
    )
    return Command(argv=argv, labels={**fio_params.labels(params), "direct": "true"})


def cost(params: Params) -> Cost:
    """Expected seconds: writing the part on a slow disk, warm-up, measured time. `written_bytes` is the part's size."""
    filling_s = params.total_bytes / fio_tool.SLOW_DISK_BYTES_PER_S
    return Cost(seconds=filling_s + params.ramp_s + params.runtime_s, written_bytes=params.total_bytes)


def parse(raw: RawOutput) -> Parsed:
    """Raises: UnknownOutput: fio ended well and printed something else than its document."""

    def labelled(params: Params) -> Labels:
        return {**fio_params.labels(params), **({"device": raw.job.device} if raw.job.device else {})}

    return fio_results.parse(raw, Params.model_validate, labelled, str(raw.job.params.get("profile")))


BENCHMARK = fio_tool.benchmark(
    name="raw_device",
    title="A disk without a filesystem (fio)",
    caveat="It is the part of the disk that was just written, with direct I/O: a drive's cache may hold a small one, "
    "and a drive that is nearly full, or that was not written over for long, is slower. All that lies there is lost, "
    "with loads that only read as well.",
    cadence="on demand",
    params=Params,
    metrics=(
        *fio_tool.direction("read", "read"),
        *fio_tool.direction("write", "written"),
        *fio_tool.processor(),
    ),
    case=case,
    cost=cost,
    command=command,
    parse=parse,
    device=lambda params: int(params.device),
)
