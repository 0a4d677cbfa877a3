"""What the parameters of fio's benchmarks have in common: profiles that set defaults, and how a load is named."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Protocol

from pydantic import Field
from pydantic.config import JsonDict

from pipelines.records import Scalar

KIB, MIB, GIB = 2**10, 2**20, 2**30

RW = {
    "seq_read": "read",
    "seq_write": "write",
    "rand_read": "randread",
    "rand_write": "randwrite",
    "mixed": "randrw",
    "checkpoint": "write",
}
"""What fio calls the load of a profile."""

READING = frozenset({"seq_read", "rand_read", "mixed"})
WRITING = frozenset({"seq_write", "rand_write", "mixed", "checkpoint"})

BlockSize = Annotated[int, Field(ge=512, le=16 * MIB, multiple_of=512)]
Depth = Annotated[int, Field(ge=1, le=1024)]
Jobs = Annotated[int, Field(ge=1, le=64)]
Percent = Annotated[int, Field(ge=1, le=99)]


class Named(Protocol):
    """What makes a load of one profile another."""

    @property
    def block_size_bytes(self) -> int: ...
    @property
    def iodepth(self) -> int: ...
    @property
    def numjobs(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def engine(self) -> str: ...


def of_profile(defaults: Mapping[str, Mapping[str, Scalar]]) -> Callable[[str, str], Any]:
    """Makes a field (its name, its description) whose default is what the profile says; None where it says nothing."""

    def field(name: str, description: str) -> Any:
        listed: JsonDict = {profile: values[name] for profile, values in defaults.items() if name in values}
        return Field(
            default_factory=lambda given: defaults[given["profile"]].get(name),
            description=description,
            json_schema_extra={"defaults": listed},
        )

    return field


def tokens(load: Named) -> dict[str, str]:
    """How a case names each of these, where it is not the profile's own."""
    return {
        "block_size_bytes": f"bs{size(load.block_size_bytes)}",
        "iodepth": f"qd{load.iodepth}",
        "numjobs": f"j{load.numjobs}",
        "size_bytes": size(load.size_bytes),
    }


def labels(load: Named) -> dict[str, str]:
    """Sizes in bytes."""
    return {
        "block_size": str(load.block_size_bytes),
        "iodepth": str(load.iodepth),
        "numjobs": str(load.numjobs),
        "size": str(load.size_bytes),
        "engine": load.engine,
    }


def size(size_bytes: int) -> str:
    """`4KiB`, `256MiB`: in the greatest unit of which it is a whole number."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size_bytes % unit == 0:
            return f"{size_bytes // unit}{name}"
    return f"{size_bytes}B"
