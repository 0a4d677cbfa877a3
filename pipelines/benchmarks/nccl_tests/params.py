"""What can be asked of nccl-tests: one collective over a range of sizes, and its name."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipelines.records import Labels, Record

KIB, MIB, GIB = 2**10, 2**20, 2**30

Collective = Literal["all_reduce", "all_gather", "reduce_scatter", "alltoall"]


class Params(Record):
    """One collective on the GPUs of one node. None of it is a path or free text."""

    collective: Collective = Field(default="all_reduce", description="which collective operation")
    gpus: Annotated[int, Field(ge=2, le=64)] | None = Field(default=None, description="GPUs; default: all of the node")
    min_bytes: Annotated[int, Field(ge=512, le=64 * GIB)] = Field(default=KIB, description="the smallest size")
    max_bytes: Annotated[int, Field(ge=512, le=64 * GIB)] = Field(default=2 * GIB, description="the largest size")
    step_factor: Annotated[int, Field(ge=2, le=1024)] = Field(default=8, description="from each size to the next")
    iterations: Annotated[int, Field(ge=1, le=10_000)] = Field(default=20, description="operations of each size")
    warmup_iterations: Annotated[int, Field(ge=0, le=1000)] = Field(default=5, description="before them, not counted")
    datatype: Literal["float", "half", "bfloat16"] = Field(default="float", description="type of the elements")
    per_rank: bool = Field(
        default=False, description="a process for each GPU, started by mpirun: times by rank, of a build with MPI"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min_bytes > self.max_bytes:
            raise ValueError("min_bytes must not be more than max_bytes")
        return self

    @property
    def sizes(self) -> tuple[int, ...]:
        found = [self.min_bytes]
        while found[-1] * self.step_factor <= self.max_bytes:
            found.append(found[-1] * self.step_factor)
        return tuple(found)


def case(params: Params) -> str:
    """`all_reduce`, `alltoall-8MiB-g4-half-per_rank`."""
    usual = Params.model_fields
    tokens: list[str] = [params.collective]
    sizes = (params.min_bytes, params.max_bytes, params.step_factor)
    if sizes != tuple(usual[name].default for name in ("min_bytes", "max_bytes", "step_factor")):
        one = len(params.sizes) == 1
        tokens.append(_size(params.min_bytes) if one else f"{_size(sizes[0])}to{_size(sizes[1])}x{sizes[2]}")
    if params.gpus is not None:
        tokens.append(f"g{params.gpus}")
    if params.datatype != usual["datatype"].default:
        tokens.append(params.datatype)
    if params.per_rank:
        tokens.append("per_rank")
    return "-".join(tokens)


def labels(params: Params) -> Labels:
    return {"collective": params.collective, "datatype": params.datatype}


def _size(size_bytes: int) -> str:
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size_bytes % unit == 0:
            return f"{size_bytes // unit}{name}"
    return f"{size_bytes}B"
