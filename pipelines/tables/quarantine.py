"""The split of a batch's measurements into rows that are believed and rows that are not, each with its reason. Pure."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipelines.records import Outcome
from pipelines.tables import schema, subjects

if TYPE_CHECKING:
    import pyarrow as pa

Reasons = Mapping[int, str]
"""By position of the row in the parsed file: why it is not believed."""


def of_failed_jobs(runs: "pa.Table", measurements: "pa.Table") -> Reasons:
    """Rows whose job did not end ok, by rule and not by expectation.

    What a tool printed before it was killed or ran out of space may be honest, but it is not the measurement that was
    planned. The job's own row in `runs` says that it failed; that is news about the node, not about the batch.
    """
    ended = subjects.outcomes(runs)
    reasons = {}
    attempts = zip(measurements["job_id"].to_pylist(), measurements["attempt"].to_pylist(), strict=True)
    for row, attempt in enumerate(attempts):
        if attempt not in ended:
            reasons[row] = "runs has no row that says how its job ended"
        elif ended[attempt][0] != Outcome.OK:
            reasons[row] = "its job ended {}: {}".format(*ended[attempt])
    return reasons


def split(measurements: "pa.Table", reasons: Reasons) -> tuple["pa.Table", "pa.Table"]:
    """The accepted rows, and the others as rows of `quarantine`. Every row is in exactly one of the two.

    Rows that an earlier release has parsed lack the columns that came later, here as there.
    """
    import pyarrow as pa

    rows = sorted(reasons)
    kept = pa.array([row not in reasons for row in range(measurements.num_rows)], type=pa.bool_())
    refused = measurements.take(pa.array(rows, type=pa.int64()))
    reason = pa.array([reasons[row] for row in rows], type=pa.string())
    explained = refused.append_column(schema.QUARANTINE.field("reason"), reason)
    columns = pa.schema([field for field in schema.QUARANTINE if field.name in explained.schema.names])
    return measurements.filter(kept), explained.select(columns.names).cast(columns)
