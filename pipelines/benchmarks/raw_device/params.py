"""What can be asked of a raw device: five loads, each with its defaults, and the parameters that vary them."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipelines.families import fio_params
from pipelines.families.fio_params import GIB, KIB, MIB, BlockSize, Depth, Jobs, Percent
from pipelines.records import Record

MOST_DEVICES = 64

Profile = Literal["seq_read", "seq_write", "rand_read", "rand_write", "mixed"]
_SEQUENTIAL, _RANDOM = {"block_size_bytes": MIB, "iodepth": 8}, {"block_size_bytes": 4 * KIB, "iodepth": 32}
DEFAULTS: Mapping[str, Mapping[str, int]] = {
    "seq_read": _SEQUENTIAL,
    "seq_write": _SEQUENTIAL,
    "rand_read": _RANDOM,
    "rand_write": _RANDOM,
    "mixed": _RANDOM,
}


_default = fio_params.of_profile(DEFAULTS)


class Params(Record):
    """One load. No field is a path: a device is the number of one that the inventory lists for the node."""

    profile: Profile = Field(default="rand_read", description="which load; sets the defaults of block size and depth")
    device: Annotated[int, Field(ge=0, lt=MOST_DEVICES)] = Field(
        default=0, description="which of the node's `devices` in the inventory, from 0"
    )
    block_size_bytes: BlockSize = _default("block_size_bytes", "bytes of one request")
    iodepth: Depth = _default("iodepth", "queue depth: requests in flight of each job")
    numjobs: Jobs = Field(default=1, description="jobs side by side, each with its own part of the disk")
    size_bytes: Annotated[int, Field(ge=MIB, le=1024 * GIB, multiple_of=MIB)] = Field(
        default=GIB, description="bytes of each job's part, all of which are written before anything is measured"
    )
    runtime_s: Annotated[float, Field(ge=0.1, le=3600)] = Field(
        default=5.0, description="seconds that are measured, after the ramp"
    )
    ramp_s: Annotated[float, Field(ge=0, le=600)] = Field(
        default=1.0, description="seconds of warm-up: the same load, not counted"
    )
    read_percent: Percent = Field(default=70, description="share of reads in a mixed load")
    engine: Literal["libaio", "io_uring"] = Field(default="libaio", description="how fio submits requests")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.size_bytes % self.block_size_bytes:
            raise ValueError("size_bytes must be a multiple of block_size_bytes")
        return self

    @property
    def reads(self) -> bool:
        return self.profile in fio_params.READING

    @property
    def writes(self) -> bool:
        return self.profile in fio_params.WRITING

    @property
    def syncs(self) -> bool:
        return False

    @property
    def total_bytes(self) -> int:
        """Bytes of the disk that are written."""
        return self.size_bytes * self.numjobs


def case(params: Params) -> str:
    """The profile, and what makes this load another than the profile's own: `rand_read`, `rand_read-d1-qd64`.

    How long it runs is no part of it.
    """
    usual = {**DEFAULTS[params.profile], "device": 0, "numjobs": 1, "size_bytes": GIB, "engine": "libaio"}
    usual |= {"read_percent": 70 if params.profile == "mixed" else params.read_percent}
    tokens = {
        "device": f"d{params.device}",
        **fio_params.tokens(params),
        "read_percent": f"r{params.read_percent}",
        "engine": params.engine,
    }
    return "-".join(
        [params.profile, *(token for name, token in tokens.items() if getattr(params, name) != usual[name])]
    )
