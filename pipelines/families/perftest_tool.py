"""perftest as the tool of several benchmarks: what can be asked of its programs, their command line, their metrics."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pipelines.benchmark import Cost, Metric
from pipelines.records import Labels, Record

KIB, MIB = 2**10, 2**20
MINIMUM_VERSION = (6, 6)  # the oldest that was read; what it calls its version is not its release's number
INSTALL_HINT = "apt-get install perftest; for GPUDirect a build with CUDA"
SOURCE = "https://github.com/linux-rdma/perftest"
PROGRAMS = tuple(f"ib_{verb}_{short}" for verb in ("write", "read", "send") for short in ("bw", "lat"))

_SHORT: Mapping[str, str] = {"bandwidth": "bw", "latency": "lat"}
_SIZES: Mapping[str, int] = {"bandwidth": 64 * KIB, "latency": 8}
_LARGEST = 8 * MIB  # of perftest's sizes
_MARGIN_S = 1  # at either end of the time, which perftest does not count
_SETTLING_S = 2.0  # opening the device, registering memory, connecting
_SLOW_MESSAGE_S = 20e-6  # what planning assumes of one that it knows nothing of


def _size(given: Mapping[str, Any]) -> int:
    return _SIZES[given.get("measure", "bandwidth")]


class Params(Record):
    """One load. None of it is a path, an address or free text. A sweep over sizes is a matrix in a suite."""

    operation: Literal["write", "read", "send"] = Field(default="write", description="RDMA write, RDMA read, or send")
    measure: Literal["bandwidth", "latency"] = Field(default="bandwidth", description="which of the two is measured")
    size_bytes: Annotated[int, Field(ge=1, le=_LARGEST)] = Field(
        default_factory=_size, description="bytes of a message", json_schema_extra={"defaults": dict(_SIZES)}
    )
    queue_pairs: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=1, description="queue pairs side by side; of latency, 1"
    )
    bidirectional: bool = Field(default=False, description="of bandwidth: both ways at once, and their sum")
    duration_s: Annotated[int, Field(ge=3, le=3600)] = Field(
        default=6, description="of bandwidth: seconds, of which the first and the last are not counted"
    )
    iterations: Annotated[int, Field(ge=1000, le=10_000_000)] = Field(
        default=100_000, description="of latency: messages, one after the other"
    )
    device: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,31}$")] | None = Field(
        default=None, description="the RDMA device, as ibv_devices names it; default: the first"
    )
    ib_port: Annotated[int, Field(ge=1, le=255)] = Field(default=1, description="port of that device")
    gid_index: Annotated[int, Field(ge=0, le=255)] | None = Field(
        default=None, description="index of the GID; with RoCE it chooses version and VLAN"
    )
    use_cuda: Annotated[int, Field(ge=0, le=63)] | None = Field(
        default=None, description="the GPU in whose memory the messages lie (GPUDirect); default: host memory"
    )
    use_cuda_dmabuf: bool = Field(
        default=False, description="with use_cuda: by DMA-BUF, where there is no nvidia-peermem; not in every build"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.measure == "latency" and (self.queue_pairs > 1 or self.bidirectional):
            raise ValueError("latency is measured on one queue pair, one message at a time")
        if self.measure == "latency" and self.operation == "write" and self.use_cuda is not None:
            raise ValueError("perftest measures the latency of GPU memory with read and send only")
        if self.use_cuda_dmabuf and self.use_cuda is None:
            raise ValueError("use_cuda_dmabuf is about the memory of a GPU, which use_cuda names")
        return self


def program(params: Params) -> str:
    return f"ib_{params.operation}_{_SHORT[params.measure]}"


def arguments(params: Params) -> tuple[str, ...]:
    """What client and server are both told; they must agree on it."""
    amount: tuple[str, ...] = (f"--iters={params.iterations}",)
    if params.measure == "bandwidth":
        amount = (f"--duration={params.duration_s}", f"--margin={_MARGIN_S}", f"--qp={params.queue_pairs}")
    return (
        f"--size={params.size_bytes}",
        *amount,
        *(("--bidirectional",) if params.bidirectional else ()),
        *((f"--ib-dev={params.device}",) if params.device else ()),
        f"--ib-port={params.ib_port}",
        *((f"--gid-index={params.gid_index}",) if params.gid_index is not None else ()),
        *((f"--use_cuda={params.use_cuda}",) if params.use_cuda is not None else ()),
        *(("--use_cuda_dmabuf",) if params.use_cuda_dmabuf else ()),  # after the one before, or it is refused
        "--report_gbits",  # the JSON document does not say its unit
        "--CPU-freq",  # else a warning may stand within the table
    )


def case(params: Params) -> str:
    """`write_bw`, `read_lat-4KiB`, `send_bw-1MiB-qp4-both-cuda0-mlx5_1`."""
    tokens = [f"{params.operation}_{_SHORT[params.measure]}"]
    if params.size_bytes != _SIZES[params.measure]:
        tokens.append(_sized(params.size_bytes))
    if params.queue_pairs != 1:
        tokens.append(f"qp{params.queue_pairs}")
    if params.bidirectional:
        tokens.append("both")
    if params.use_cuda is not None:
        tokens.append(f"cuda{params.use_cuda}{'dmabuf' if params.use_cuda_dmabuf else ''}")
    if params.device:
        tokens.append(params.device)
    if params.ib_port != 1:
        tokens.append(f"port{params.ib_port}")
    if params.gid_index is not None:
        tokens.append(f"gid{params.gid_index}")
    return "-".join(tokens)[:63].rstrip("-_.")


def labels(params: Params) -> Labels:
    return {
        "operation": params.operation,
        "size": str(params.size_bytes),
        "queue_pairs": str(params.queue_pairs),
        "direction": "both" if params.bidirectional else "forward",
        "memory": "host" if params.use_cuda is None else "cuda",
    }


def cost(params: Params) -> Cost:
    measured_s = params.duration_s if params.measure == "bandwidth" else params.iterations * _SLOW_MESSAGE_S
    return Cost(seconds=measured_s + _SETTLING_S, written_bytes=0)


def required(params: Params) -> frozenset[str]:
    if params.measure == "bandwidth":
        return frozenset({"bandwidth", "message_rate"})
    return frozenset(f"latency_{name}" for name in ("min", "p50", "mean", "p99", "p999", "max"))


def version(text: str) -> str | None:
    """`6.06` of `Version: 6.06`; perftest exits with 1 after it."""
    found = re.search(r"^Version: (\d{1,9}(?:\.\d{1,9}){1,4})\s*$", text, re.MULTILINE)
    return found.group(1) if found else None


def metrics() -> tuple[Metric, ...]:
    """100 ns is less than a round trip over PCI Express takes; 1 TB/s more than a node's ports carry together."""
    of = "of one message; of a read the whole round trip, of the others half of it"
    return (
        Metric("bandwidth", "B/s", "higher", 1e3, 1e12, "bytes of messages per second; with bidirectional, both ways"),
        Metric("message_rate", "1/s", "higher", 1.0, 1e10, "messages per second"),
        Metric("latency_min", "s", "lower", 1e-7, 10.0, f"shortest {of}"),
        Metric("latency_p50", "s", "lower", 1e-7, 10.0, f"median {of} (t_typical)"),
        Metric("latency_mean", "s", "lower", 1e-7, 10.0, f"mean {of}"),
        Metric("latency_p99", "s", "lower", 1e-7, 10.0, f"99th percentile {of}"),
        Metric("latency_p999", "s", "lower", 1e-7, 10.0, f"99.9th percentile {of}"),
        Metric("latency_max", "s", "lower", 1e-7, 10.0, f"longest {of}; perftest leaves out the very longest"),
    )


def _sized(size_bytes: int) -> str:
    for unit, name in ((MIB, "MiB"), (KIB, "KiB")):
        if size_bytes % unit == 0:
            return f"{size_bytes // unit}{name}"
    return f"{size_bytes}B"
