"""What was asked of a tool, as its parser needs it first: the job's parameters, or why there was no run to judge."""

from typing import TypeVar

from pydantic import ValidationError

from pipelines.errors import UnknownOutput
from pipelines.records import Parsed, RawOutput, Record

P = TypeVar("P", bound=Record)


def params(raw: RawOutput, record: type[P], tool: str) -> P | Parsed:
    """The parameters of the job; of an attempt that was refused, what is made of it.

    Raises:
        UnknownOutput: the job has parameters that are none of this benchmark.
    """
    if raw.refusal is not None:
        return Parsed(outcome=raw.refusal.outcome, reason=raw.refusal.reason)
    return of_run(raw, record, tool)


def of_run(raw: RawOutput, record: type[P], tool: str) -> P:
    """The parameters of a job that is known to have run.

    Raises:
        UnknownOutput: the job has parameters that are none of this benchmark.
    """
    try:
        return record.model_validate(dict(raw.job.params))
    except ValidationError as e:
        raise UnknownOutput(tool, "a job with parameters of this benchmark", str(dict(raw.job.params))) from e
