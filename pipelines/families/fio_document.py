"""fio's JSON+ document: found in what fio printed, and read into records. Keys that nothing here needs are ignored."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, ValidationError

from pipelines.errors import UnknownOutput

# fio prints the outer braces of a document, and only those, alone on a line.
_OPEN, _CLOSE = "\n{\n", "\n}\n"
_BEGINNING = _OPEN + '  "fio version"'

_Count = Annotated[int, Field(ge=0, le=2**63)]


class _Reading(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Latency(_Reading):
    """Nanoseconds. `bins` counts requests by the middle of their bin; without requests there are none."""

    mean: NonNegativeFloat
    max: _Count
    bins: dict[_Count, _Count] = {}


class Direction(_Reading):
    io_bytes: _Count
    total_ios: _Count
    runtime: _Count  # ms, without the ramp
    clat_ns: Latency


class Sync(_Reading):
    lat_ns: Latency


class JobDocument(_Reading):
    jobname: str = ""
    error: int  # errno
    read: Direction
    write: Direction
    sync: Sync | None = None
    usr_cpu: NonNegativeFloat  # %
    sys_cpu: NonNegativeFloat  # %
    options: dict[str, str] = Field(default={}, alias="job options")

    @property
    def direct(self) -> bool:
        return self.options.get("direct") == "1"


class Document(_Reading):
    jobs: Annotated[tuple[JobDocument, ...], Field(min_length=1)]


@dataclass(frozen=True)
class Printed:
    """What fio printed: its last complete document, if there is one, and the lines around it."""

    document: Document | None
    cut: bool  # a document begins and does not end
    said: tuple[str, ...]


def read(text: str) -> Printed:
    """The last complete document in `text`: with a status interval fio prints one after the other.

    Raises:
        UnknownOutput: what looks like a document is not one of fio 3.
    """
    padded = f"\n{text}\n"
    end = padded.rfind(_CLOSE)
    start = padded.rfind(_OPEN, 0, end + 1)
    if start < 0:
        around, begins, _ = padded.partition(_BEGINNING)
        return Printed(document=None, cut=bool(begins), said=lines(around))
    body = padded[start : end + len(_CLOSE)]
    try:
        document = Document.model_validate_json(body)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        where = ".".join(str(step) for step in first["loc"]) or "its text"
        raise UnknownOutput("fio", f"a document of fio 3; {where}: {first['msg']}", body.strip()) from e
    before, _, _ = padded.partition(_OPEN)
    return Printed(document=document, cut=False, said=lines(before + padded[end + len(_CLOSE) :]))


def lines(text: str) -> tuple[str, ...]:
    """Without those that say nothing."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())
