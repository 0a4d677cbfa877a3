"""`fleetmark-probe` as the tool of several benchmarks: its version, how a probe ends, and what it prints."""

import re
from functools import partial
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.benchmark import Benchmark
from pipelines.errors import UnknownOutput
from pipelines.records import Outcome, Parsed, RawOutput

PROGRAM = "fleetmark-probe"

UNAVAILABLE, CONFIG = 69, 78
"""Exit statuses of a probe that measured nothing for want of something, or as it was asked (sysexits.h)."""

_OUTCOMES = {UNAVAILABLE: Outcome.NOT_MEASURED, CONFIG: Outcome.CONFIG}
_REASON_LENGTH = 500


Seconds = Annotated[float, Field(ge=1e-7, le=1e7)]
Count = Annotated[int, Field(ge=1, le=2**53)]
"""What a probe can have measured: beyond it, its clock or its counting is broken, and rates would not be finite."""


class Printed(BaseModel):
    """The base of a probe's document. Keys that a later version adds are ignored; NaN is no number."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, strict=True)

    probe: str


Document = TypeVar("Document", bound=Printed)


def version(text: str) -> str | None:
    """`0.1.0` of `fleetmark-probe 0.1.0`."""
    found = re.search(rf"^{PROGRAM} (\d{{1,9}}(?:\.\d{{1,9}}){{1,4}}\S{{0,40}})$", text, re.MULTILINE)
    return found[1] if found else None


benchmark = partial(
    Benchmark,
    tool=PROGRAM,
    minimum_version=(0, 1),
    version_argv=(PROGRAM, "--version"),
    install_hint="pip install fleetmark, which has it",
    version=version,
)
"""A benchmark of a probe that needs no other tool, by what it has of its own."""


def read(raw: RawOutput, probe: str, document: type[Document]) -> Document | Parsed:
    """The document of a probe that ended well; or how else it ended.

    Raises:
        UnknownOutput: it ended well and printed something else than its document.
    """
    if raw.refusal is not None:
        return Parsed(outcome=raw.refusal.outcome, reason=raw.refusal.reason)
    if raw.timed_out:
        return Parsed(outcome=Outcome.TRUNCATED, reason=f"the probe was ended after {raw.job.timeout_s:g} s")
    if raw.exit_status is None:
        return Parsed(outcome=Outcome.TRUNCATED, reason=f"the probe was ended by signal {raw.signal}")
    if raw.exit_status:
        said = [line.strip() for line in raw.stderr.splitlines() if line.strip()]
        reason = said[-1][:_REASON_LENGTH] if said else "it gave no reason"
        outcome = _OUTCOMES.get(raw.exit_status, Outcome.TOOL_FAILED)
        return Parsed(outcome=outcome, reason=f"the probe ended with status {raw.exit_status}: {reason}")
    try:
        found = document.model_validate_json(raw.stdout)
    except (ValidationError, RecursionError) as e:
        raise UnknownOutput(PROGRAM, f"the document of the probe {probe}", raw.stdout) from e
    if found.probe != probe:
        raise UnknownOutput(PROGRAM, f"the document of the probe {probe}", raw.stdout)
    return found
