"""The rows of one run as they stand in the tables. A later landing of a run replaces the one before it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines import keys
from pipelines.errors import Unknown
from pipelines.storage import Store
from pipelines.tables import query
from pipelines.tables.engine import quoted
from pipelines.tables.schema import RUN_TABLES

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
    telemetry: "pa.Table"
    environments: "pa.Table"
    verdicts: "pa.Table"
    versions: Mapping[str, int]


def read(store: Store, run_id: str) -> Landed:
    """The run's rows.

    Raises:
        Unknown: the run has not been landed.
    """
    with query.open_reader(store) as reader:
        found = reader.query(f"SELECT batch_id FROM completed WHERE run_id = {quoted(run_id)}").rows  # noqa: S608
        if not found:
            raise Unknown("landed run", run_id, ())
        tables = {name: reader.batches(_rows_of(name, run_id)).read_all() for name in RUN_TABLES}
        return Landed(batch_id=str(found[0][0]), versions=reader.versions, **tables)


def _rows_of(table: str, run_id: str) -> str:
    return f"FROM {table} WHERE month = {quoted(keys.run_date(run_id)[:7])} AND run_id = {quoted(run_id)}"
