"""Keeping the tables fast: months rewritten as one sorted file, files and log entries nobody needs removed."""

import random
import time
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from pipelines.errors import BadParameter, LandingConflict
from pipelines.records import Record
from pipelines.storage import Store
from pipelines.tables import delta, engine, latest, snapshot
from pipelines.tables.schema import PARTITION, TABLES, Table

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable

SHORTEST_VACUUM = timedelta(days=7)  # no reader's handle and no half-made commit is that old
_ATTEMPTS = 10
_ONE_FILE = 2**40  # bytes: one file per month, however big; 22 million rows a year make 120 MB a month


class TableMaintenance(Record):
    """What was done to one table."""

    table: str
    version: int  # after it
    rewritten: tuple[str, ...]  # months that are one sorted file now
    dropped: tuple[str, ...]  # months that retention removed
    files_before: int
    files_after: int
    vacuumed: int  # superseded files that were deleted


class MaintenanceReport(Record):
    tables: tuple[TableMaintenance, ...]
    latest_rows: int  # in the rebuilt table `latest`


def maintain(
    store: Store,
    now: datetime,
    keep_months: Mapping[str, int] | None = None,
    vacuum_after: timedelta = SHORTEST_VACUUM,
) -> MaintenanceReport:
    """Rewrite, expire, vacuum and checkpoint every table, then rebuild `latest`. Safe to repeat and beside landings.

    A month that already is one file is left alone. `keep_months` is how many months before the current one a table
    keeps; a table it does not name keeps all. `vacuum_after` bounds how far back time travel goes.

    Raises:
        BadParameter: a table that does not exist, a negative number of months, or a vacuum after less than 7 days.
        LandingConflict: landings came between every attempt to rewrite a month; safe to try again.
    """
    keep_months = keep_months or {}
    _check(keep_months, vacuum_after)
    done = []
    for name, description in TABLES.items():
        table = snapshot.open_newest(store, name)
        if table is not None:
            done.append(_maintain_table(store, table, description, now, keep_months.get(name), vacuum_after))
    rows = latest.rebuild(store)
    if (table := snapshot.open_newest(store, latest.TABLE.name)) is not None:
        _tidy(table, vacuum_after)
    return MaintenanceReport(tables=tuple(done), latest_rows=rows)


def _check(keep_months: Mapping[str, int], vacuum_after: timedelta) -> None:
    for name, months in keep_months.items():
        if name not in TABLES:
            raise BadParameter("results_maintenance", "keep_months", f"no table {name!r}; known: {', '.join(TABLES)}")
        if months < 0:
            raise BadParameter(
                "results_maintenance", "keep_months", f"{name}: {months} months; 0 keeps the current one"
            )
    if vacuum_after < SHORTEST_VACUUM:
        raise BadParameter("results_maintenance", "vacuum_after", f"{vacuum_after}, must be at least {SHORTEST_VACUUM}")


def _maintain_table(
    store: Store,
    table: "DeltaTable",
    description: Table,
    now: datetime,
    keep_months: int | None,
    vacuum_after: timedelta,
) -> TableMaintenance:
    before = files_by_month(table)
    expired = () if keep_months is None else expired_months(tuple(before), now, keep_months)
    if expired:
        table.delete(f"{PARTITION} < '{_months_back(now, keep_months or 0)}'")
    scattered = tuple(month for month, files in before.items() if files > 1 and month not in expired)
    for month in scattered:
        rewrite_month(store, description, month)
    table.update_incremental()
    vacuumed = _tidy(table, vacuum_after)
    return TableMaintenance(
        table=description.name,
        version=table.version(),
        rewritten=scattered,
        dropped=expired,
        files_before=sum(before.values()),
        files_after=sum(files_by_month(table).values()),
        vacuumed=vacuumed,
    )


def _tidy(table: "DeltaTable", vacuum_after: timedelta) -> int:
    """Delete superseded files and old log entries, after a checkpoint; returns how many files."""
    vacuumed = table.vacuum(retention_hours=int(vacuum_after.total_seconds() // 3600), dry_run=False)
    table.create_checkpoint()
    table.cleanup_metadata()  # entries older than the table keeps them: delta.logRetentionDuration, 30 days
    return len(vacuumed)


def rewrite_month(store: Store, description: Table, month: str) -> None:
    """Replace the month's files by one in the table's order; the rows stay the same.

    The rows are read from the files of one version and committed against that same version: a landing that comes
    between keeps its own file beside the new one, or makes this commit fail, and then the month is read again.

    Raises:
        LandingConflict: it failed that way every time; safe to try again.
        StoreRefused, StoreUnreachable: the store does not let us write.
    """
    from deltalake import CommitProperties, write_deltalake
    from deltalake.exceptions import CommitFailedError, DeltaError

    for attempt in range(_ATTEMPTS):
        table = snapshot.open_newest(store, description.name)
        if table is None or files_by_month(table)[month] < 2:
            return
        with engine.connect(store) as connection:
            files = snapshot.files(store, table, month)
            order = ", ".join(f'"{column}"' for column in description.sort)
            rows = connection.sql(f"{engine.parquet(files, PARTITION)} ORDER BY {order}").to_arrow_reader()
            try:
                write_deltalake(
                    table,
                    _as_the_table(rows, table),
                    mode="overwrite",
                    predicate=f"{PARTITION} = '{month}'",
                    target_file_size=_ONE_FILE,
                    writer_properties=delta.writer(description),
                    commit_properties=CommitProperties(custom_metadata={"fleetmark": f"sorted rewrite of {month}"}),
                )
            except CommitFailedError:
                time.sleep(random.random() * min(5.0, 0.05 * 2**attempt))  # noqa: S311
            except (DeltaError, OSError) as e:
                raise delta.failure(store, description.name, e) from e
            else:
                return
    raise LandingConflict(description.name, f"rewrite of {month}", _ATTEMPTS)


def files_by_month(table: "DeltaTable") -> Counter[str]:
    """How many files each month has, by month."""
    actions = table.get_add_actions(flatten=True)
    months = actions.column(f"partition.{PARTITION}").to_pylist()
    return Counter(dict(sorted(Counter(months).items())))


def expired_months(months: tuple[str, ...], now: datetime, keep_months: int) -> tuple[str, ...]:
    """Those of `months` that lie more than `keep_months` before the month of `now`."""
    oldest = _months_back(now, keep_months)
    return tuple(month for month in months if month < oldest)


def _months_back(now: datetime, months: int) -> str:
    year, month = divmod(now.year * 12 + now.month - 1 - months, 12)
    return f"{year:04d}-{month + 1:02d}"


def _as_the_table(rows: "pa.RecordBatchReader", table: "DeltaTable") -> "pa.RecordBatchReader":
    """The batches with the table's own columns, types and nullability."""
    import pyarrow as pa

    schema = delta.columns(table)
    tables = (pa.Table.from_batches([batch]).select(schema.names).cast(schema) for batch in rows)
    return pa.RecordBatchReader.from_batches(schema, (batch for each in tables for batch in each.to_batches()))
