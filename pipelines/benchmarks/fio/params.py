"""What can be asked of fio: six profiles, each with its defaults, and the parameters that vary them."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic.config import JsonDict

from pipelines import keys
from pipelines.records import Record, Scalar

KIB, MIB, GIB = 2**10, 2**20, 2**30

Profile = Literal["seq_read", "seq_write", "rand_read", "rand_write", "mixed", "checkpoint"]
Engine = Literal["libaio", "io_uring", "psync"]

_TIMED: Mapping[str, Scalar] = {
    "numjobs": 1,
    "size_bytes": 256 * MIB,
    "runtime_s": 1.5,
    "ramp_s": 0.5,
    "engine": "libaio",
    "direct": "auto",
}
_SEQUENTIAL = {**_TIMED, "block_size_bytes": MIB, "iodepth": 8}
_RANDOM = {**_TIMED, "block_size_bytes": 4 * KIB, "iodepth": 32}

DEFAULTS: Mapping[str, Mapping[str, Scalar]] = {
    "seq_read": _SEQUENTIAL,
    "seq_write": _SEQUENTIAL,
    "rand_read": _RANDOM,
    "rand_write": _RANDOM,
    "mixed": {**_RANDOM, "read_percent": 70},
    # What saving a training state does: one writer per file, through the page cache, made durable as it goes.
    "checkpoint": {
        "block_size_bytes": MIB,
        "iodepth": 1,
        "numjobs": 1,
        "size_bytes": GIB,
        "fsync_bytes": 64 * MIB,
        "engine": "psync",
        "direct": "off",
    },
}


def _of_profile(name: str) -> Callable[[Mapping[str, Any]], Any]:
    """The default of a field: what the profile says, None where the profile has no use for it."""
    return lambda given: DEFAULTS[given["profile"]].get(name)


def _default(name: str, description: str) -> Any:
    defaults: JsonDict = {profile: values[name] for profile, values in DEFAULTS.items() if name in values}
    return Field(default_factory=_of_profile(name), description=description, json_schema_extra={"defaults": defaults})


class Params(Record):
    """One load. A parameter that its profile has no use for is None, so that an override can name a whole suite.

    No field is a path, an option or free text: fio reads and writes files it names itself, in its own directory.
    """

    profile: Profile = Field(default="rand_read", description="which load; sets the defaults of all the others")
    block_size_bytes: Annotated[int, Field(ge=512, le=16 * MIB, multiple_of=512)] = _default(
        "block_size_bytes", "bytes of one request"
    )
    iodepth: Annotated[int, Field(ge=1, le=1024)] = _default("iodepth", "queue depth: requests in flight of each job")
    numjobs: Annotated[int, Field(ge=1, le=64)] = _default("numjobs", "jobs side by side, each with its own file")
    size_bytes: Annotated[int, Field(ge=MIB, le=1024 * GIB)] = _default("size_bytes", "bytes of each job's file")
    runtime_s: Annotated[float, Field(ge=0.1, le=3600)] | None = _default(
        "runtime_s", "seconds that are measured, after the ramp"
    )
    ramp_s: Annotated[float, Field(ge=0, le=600)] | None = _default(
        "ramp_s", "seconds of warm-up: the same load, not counted"
    )
    read_percent: Annotated[int, Field(ge=1, le=99)] | None = _default("read_percent", "share of reads in a mixed load")
    fsync_bytes: Annotated[int, Field(ge=512, le=64 * GIB)] | None = _default(
        "fsync_bytes", "fsync after every so many bytes"
    )
    engine: Engine = _default("engine", "how fio submits requests")
    direct: Literal["auto", "on", "off"] = _default("direct", "O_DIRECT; auto: where the filesystem takes it")

    @field_validator("runtime_s", "ramp_s", "read_percent", "fsync_bytes")
    @classmethod
    def _only_where_used(cls, value: float | None, info: ValidationInfo) -> float | None:
        used = info.field_name in DEFAULTS.get(info.data.get("profile", ""), {})
        if used and value is None:
            raise ValueError("the profile needs a number here")
        return value if used else None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.size_bytes % self.block_size_bytes:
            raise ValueError("size_bytes must be a multiple of block_size_bytes")
        if self.fsync_bytes is not None and self.fsync_bytes % self.block_size_bytes:
            raise ValueError("fsync_bytes must be a multiple of block_size_bytes")
        if self.engine == "psync" and self.iodepth > 1:
            raise ValueError("the psync engine has one request in flight: iodepth must be 1, or engine another")
        return self

    @property
    def reads(self) -> bool:
        return self.profile in {"seq_read", "rand_read", "mixed"}

    @property
    def writes(self) -> bool:
        return self.profile in {"seq_write", "rand_write", "mixed", "checkpoint"}

    @property
    def syncs(self) -> bool:
        """Whether an fsync is timed: the one that ends a job is not, nor one that would come after the last write."""
        return self.fsync_bytes is not None and self.fsync_bytes < self.size_bytes

    @property
    def total_bytes(self) -> int:
        """Bytes of all jobs' files together."""
        return self.size_bytes * self.numjobs


def case(params: Params) -> str:
    """The profile, and what makes this load another than the profile's own: `rand_read`, `rand_read-bs16KiB-qd64`.

    How long it runs is no part of it.
    """
    tokens = {
        "block_size_bytes": f"bs{_size(params.block_size_bytes)}",
        "iodepth": f"qd{params.iodepth}",
        "numjobs": f"j{params.numjobs}",
        "size_bytes": _size(params.size_bytes),
        "read_percent": f"r{params.read_percent}",
        "fsync_bytes": f"fsync{_size(params.fsync_bytes or 0)}",
        "engine": params.engine,
        "direct": {"auto": "auto", "on": "direct", "off": "buffered"}[params.direct],
    }
    usual = DEFAULTS[params.profile]
    given = [token for name, token in tokens.items() if getattr(params, name) != usual.get(name)]
    name = "-".join([params.profile, *given])
    return name if len(name) <= 63 else f"{params.profile}-{keys.content_id(given)}"


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
