"""checkpoint: how fast a training job's checkpoint is saved to the node's scratch filesystem, and restored from it."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from pipelines.benchmark import Command, Cost, Floor, Metric, Workplace
from pipelines.families import probe_tool, scratch
from pipelines.families.probe_tool import Count, Seconds
from pipelines.records import Labels, Measurement, Outcome, Parsed, RawOutput, Record

MIB, GIB = 2**20, 2**30
_FLOOR_BYTES_PER_S = 500_000_000
_SLOW_DISK_BYTES_PER_S = 250_000_000  # half the floor, as of fio's checkpoint: saved once, read twice
_STARTING_S = 1.0


class Params(Record):
    writers: Annotated[int, Field(ge=1, le=64)] = Field(
        default=4, description="writers side by side, each with a shard of its own"
    )
    size_bytes: Annotated[int, Field(ge=MIB, le=256 * GIB)] = Field(
        default=256 * MIB, description="bytes of each writer's shard"
    )

    @property
    def total_bytes(self) -> int:
        return self.writers * self.size_bytes


class _Document(probe_tool.Printed):
    writers: Count
    size_bytes: Count
    save_s: Seconds
    sync_s: Annotated[float, Field(ge=0, le=1e7)]
    restore_s: Seconds
    cache: Literal["dropped", "bypassed", "warm"]


def case(params: Params) -> str:
    """`w4`, `w8-4096MiB`: writers, and the size of a shard where it is not the usual one."""
    usual: int = Params.model_fields["size_bytes"].default
    size = params.size_bytes
    named = f"-{size // MIB}MiB" if size % MIB == 0 else f"-{size}B"
    return f"w{params.writers}{'' if size == usual else named}"


def cost(params: Params) -> Cost:
    seconds = _STARTING_S + 3 * params.total_bytes / _SLOW_DISK_BYTES_PER_S
    return Cost(seconds=seconds, written_bytes=params.total_bytes + MIB)


def required(_: Params) -> frozenset[str]:
    return frozenset({"save_bandwidth", "save_time", "restore_bandwidth", "restore_time"})


def floors(_: Params) -> tuple[Floor, ...]:
    return (
        Floor(
            metric="save_bandwidth",
            minimum=_FLOOR_BYTES_PER_S,
            unit="B/s",
            source="default of the benchmark: a node that saves more slowly holds up its whole training job",
        ),
    )


def command(params: Params, workplace: Workplace) -> Command:
    direct = int(workplace.direct_io)
    options = (f"--writers={params.writers}", f"--size={params.size_bytes}", f"--direct={direct}")
    return Command(argv=(probe_tool.PROGRAM, "checkpoint", *options))


def parse(raw: RawOutput) -> Parsed:
    """Raises: UnknownOutput: the probe ended well and printed something else than its document."""
    found = probe_tool.read(raw, "checkpoint", _Document)
    if isinstance(found, Parsed):
        return found
    return Parsed(outcome=Outcome.OK, measurements=tuple(_measurements(found, scratch.labels(raw))))


def _measurements(document: _Document, where: Labels) -> Iterator[Measurement]:
    total = document.writers * document.size_bytes
    labels = {"writers": str(document.writers), "size": str(document.size_bytes), **where}
    restored = {**labels, "cache": document.cache}
    yield Measurement(metric="save_bandwidth", value=total / document.save_s, unit="B/s", labels=labels)
    yield Measurement(metric="save_time", value=document.save_s, unit="s", labels=labels)
    yield Measurement(metric="sync_time", value=document.sync_s, unit="s", labels=labels)
    yield Measurement(metric="restore_bandwidth", value=total / document.restore_s, unit="B/s", labels=restored)
    yield Measurement(metric="restore_time", value=document.restore_s, unit="s", labels=restored)


BENCHMARK = probe_tool.benchmark(
    name="checkpoint",
    title="Saving and restoring a checkpoint on the node",
    caveat="It is the disk's part of a checkpoint: nothing is copied from a GPU, serialised or sent to other nodes. "
    "Unlike fio's profile of the same name, which writes and flushes piece by piece, it saves shards as a training "
    "framework does, flushes each once at its end, flushes the directory and renames it, and restores them. A restore "
    "labelled cache=warm was read from memory and says nothing about the disk; in one labelled dropped the kernel had "
    "forgotten the bytes, and the drive or its controller may still have held them. With a "
    "label `filesystem` (tmpfs, ZFS) what was saved may be in memory as well. A drive's own write cache takes "
    "the first gigabytes faster than the rest: choose the size of your own checkpoints.",
    cadence="nightly",
    writes=True,
    source="https://man7.org/linux/man-pages/man2/fsync.2.html",
    params=Params,
    metrics=(
        Metric("save_bandwidth", "B/s", "higher", 1e3, 1e12, "bytes saved per second, until the last is durable"),
        Metric("save_time", "s", "lower", 1e-4, 1e6, "from the first write until the renamed directory is durable"),
        Metric("sync_time", "s", "lower", 0.0, 1e6, "how much of that came after the last write had returned"),
        Metric("restore_bandwidth", "B/s", "higher", 1e3, 1e12, "bytes read back per second (label cache)"),
        Metric("restore_time", "s", "lower", 1e-5, 1e6, "from the first read to the last (label cache)"),
    ),
    case=case,
    cost=cost,
    required=required,
    command=command,
    parse=parse,
    floors=floors,
)
