"""What can be asked of fio: six profiles, each with its defaults, and the parameters that vary them."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pipelines import keys
from pipelines.families import fio_params
from pipelines.families.fio_params import GIB, KIB, MIB, BlockSize, Depth, Jobs, Percent
from pipelines.records import Record, Scalar

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


_default = fio_params.of_profile(DEFAULTS)


class Params(Record):
    """One load. A parameter that its profile has no use for is None, so that an override can name a whole suite.

    No field is a path, an option or free text: fio reads and writes files it names itself, in its own directory.
    """

    profile: Profile = Field(default="rand_read", description="which load; sets the defaults of all the others")
    block_size_bytes: BlockSize = _default("block_size_bytes", "bytes of one request")
    iodepth: Depth = _default("iodepth", "queue depth: requests in flight of each job")
    numjobs: Jobs = _default("numjobs", "jobs side by side, each with its own file")
    size_bytes: Annotated[int, Field(ge=MIB, le=1024 * GIB)] = _default("size_bytes", "bytes of each job's file")
    runtime_s: Annotated[float, Field(ge=0.1, le=3600)] | None = _default(
        "runtime_s", "seconds that are measured, after the ramp"
    )
    ramp_s: Annotated[float, Field(ge=0, le=600)] | None = _default(
        "ramp_s", "seconds of warm-up: the same load, not counted"
    )
    read_percent: Percent | None = _default("read_percent", "share of reads in a mixed load")
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
        return self.profile in fio_params.READING

    @property
    def writes(self) -> bool:
        return self.profile in fio_params.WRITING

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
        **fio_params.tokens(params),
        "read_percent": f"r{params.read_percent}",
        "fsync_bytes": f"fsync{fio_params.size(params.fsync_bytes or 0)}",
        "engine": params.engine,
        "direct": {"auto": "auto", "on": "direct", "off": "buffered"}[params.direct],
    }
    usual = DEFAULTS[params.profile]
    given = [token for name, token in tokens.items() if getattr(params, name) != usual.get(name)]
    name = "-".join([params.profile, *given])
    return name if len(name) <= 63 else f"{params.profile}-{keys.content_id(given)}"
