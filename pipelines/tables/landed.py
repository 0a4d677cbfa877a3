"""The rows of one run as they stand in the tables: of the batch that counts, whatever else was landed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.errors import Unknown
from pipelines.storage import Store
from pipelines.tables import query

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Landed:
    """A complete run's rows, and the version of each table that they were read from."""

    batch_id: str
    runs: "pa.Table"
    measurements: "pa.Table"
    quarantine: "pa.Table"
    histograms: "pa.Table"
    environments: "pa.Table"
    verdicts: "pa.Table"
    versions: Mapping[str, int]


def read(store: Store, run_id: str) -> Landed:
    """The run's rows.

    Raises:
        Unknown: the run has not been landed.
    """
    with query.open_reader(store) as reader:
        found = reader.query(f"SELECT batch_id FROM completed WHERE run_id = {_quoted(run_id)}").rows  # noqa: S608
        if not found:
            raise Unknown("landed run", run_id, ())
        batch = str(found[0][0])
        names = ("runs", "measurements", "quarantine", "histograms", "environments")
        tables = {name: reader.batches(_rows_of(name, batch)).read_all() for name in names}
        verdicts = reader.batches(_JUDGED_LAST.format(run_id=_quoted(run_id))).read_all()
        return Landed(batch_id=batch, verdicts=verdicts, versions=reader.versions, **tables)


_JUDGED_LAST = """
FROM verdicts WHERE run_id = {run_id} QUALIFY batch_id = last_value(batch_id) OVER (
    ORDER BY landed_at, batch_id ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)
"""
"""A run may be judged again after its rows were landed anew; what was judged last counts."""


def _rows_of(table: str, batch: str) -> str:
    return f"FROM {table} WHERE month = {_quoted(batch[:4] + '-' + batch[4:6])} AND batch_id = {_quoted(batch)}"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
