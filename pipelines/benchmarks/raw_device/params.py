"""What can be asked of a raw device: five loads, each with its defaults, and the parameters that vary them."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic.config import JsonDict

from pipelines.records import Record

KIB, MIB, GIB = 2**10, 2**20, 2**30
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


def _of_profile(name: str) -> Callable[[Mapping[str, Any]], int]:
    return lambda given: DEFAULTS[given["profile"]][name]


def _default(name: str, description: str) -> Any:
    defaults: JsonDict = {profile: values[name] for profile, values in DEFAULTS.items()}
    return Field(default_factory=_of_profile(name), description=description, json_schema_extra={"defaults": defaults})


class Params(Record):
    """One load. No field is a path: a device is the number of one that the inventory lists for the node."""

    profile: Profile = Field(default="rand_read", description="which load; sets the defaults of block size and depth")
    device: Annotated[int, Field(ge=0, lt=MOST_DEVICES)] = Field(
        default=0, description="which of the node's `devices` in the inventory, from 0"
    )
    block_size_bytes: Annotated[int, Field(ge=512, le=16 * MIB, multiple_of=512)] = _default(
        "block_size_bytes", "bytes of one request"
    )
    iodepth: Annotated[int, Field(ge=1, le=1024)] = _default("iodepth", "queue depth: requests in flight of each job")
    numjobs: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1, description="jobs side by side, each with its own part of the disk"
    )
    size_bytes: Annotated[int, Field(ge=MIB, le=1024 * GIB, multiple_of=MIB)] = Field(
        default=GIB, description="bytes of each job's part, all of which are written before anything is measured"
    )
    runtime_s: Annotated[float, Field(ge=0.1, le=3600)] = Field(
        default=5.0, description="seconds that are measured, after the ramp"
    )
    ramp_s: Annotated[float, Field(ge=0, le=600)] = Field(
        default=1.0, description="seconds of warm-up: the same load, not counted"
    )
    read_percent: Annotated[int, Field(ge=1, le=99)] = Field(default=70, description="share of reads in a mixed load")
    engine: Literal["libaio", "io_uring"] = Field(default="libaio", description="how fio submits requests")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.size_bytes % self.block_size_bytes:
            raise ValueError("size_bytes must be a multiple of block_size_bytes")
        return self

    @property
    def reads(self) -> bool:
        return self.profile in {"seq_read", "rand_read", "mixed"}

    @property
    def writes(self) -> bool:
        return self.profile in {"seq_write", "rand_write", "mixed"}

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
        "block_size_bytes": f"bs{_size(params.block_size_bytes)}",
        "iodepth": f"qd{params.iodepth}",
        "numjobs": f"j{params.numjobs}",
        "size_bytes": _size(params.size_bytes),
        "read_percent": f"r{params.read_percent}",
        "engine": params.engine,
    }
    return "-".join(
        [params.profile, *(token for name, token in tokens.items() if getattr(params, name) != usual[name])]
    )


def labels(params: Params) -> dict[str, str]:
    """What varies between loads of one profile; sizes in bytes."""
    return {
        "block_size": str(params.block_size_bytes),
        "iodepth": str(params.iodepth),
        "numjobs": str(params.numjobs),
        "size": str(params.size_bytes),
        "engine": params.engine,
    }


def _size(size_bytes: int) -> str:
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size_bytes % unit == 0:
            return f"{size_bytes // unit}{name}"
    return f"{size_bytes}B"
