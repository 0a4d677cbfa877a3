"""Parameters of dcgm_profile, what they cost, and the command that they make."""

from collections.abc import Mapping
from math import ceil
from typing import Annotated

from pydantic import Field

from pipelines.benchmark import Command, Cost, Workplace
from pipelines.benchmarks.dcgm_profile.fields import FIELDS
from pipelines.families import dcgm_tool
from pipelines.records import Record, Scalar

_STARTING_S = 2.0
_LONGEST_S = 604_800
_MS_PER_S = 1_000


class Params(Record):
    seconds: Annotated[int, Field(ge=2, le=_LONGEST_S)] = Field(default=10, description="how long it watches")
    interval_ms: Annotated[int, Field(ge=100, le=60_000)] = Field(
        default=1_000, description="from one sample to the next, in ms; DCGM samples no faster than every 100 ms"
    )

    @property
    def samples(self) -> int:
        return max(2, self.seconds * _MS_PER_S // self.interval_ms)


def case(params: Params) -> str:
    """`10s`, `10s-100ms`."""
    usual: int = Params.model_fields["interval_ms"].default
    return f"{params.seconds}s" if params.interval_ms == usual else f"{params.seconds}s-{params.interval_ms}ms"


def cost(params: Params) -> Cost:
    return Cost(seconds=params.samples * params.interval_ms / _MS_PER_S + _STARTING_S, written_bytes=0)


def beside(seconds: float) -> Mapping[str, Scalar]:
    """Beside a job that takes this long at most."""
    return {"seconds": min(max(2, ceil(seconds)), _LONGEST_S)}


def command(params: Params, _: Workplace) -> Command:
    ids = ",".join(str(field.id) for field in FIELDS.values())
    argv = (dcgm_tool.TOOL, "dmon", "-e", ids, "-d", str(params.interval_ms), "-c", str(params.samples))
    return Command(argv=argv)
