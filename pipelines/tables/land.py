"""Landing: a batch's rows into their tables, exactly once however often it is tried or raced."""

import random
import time
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa

from pipelines import keys
from pipelines.errors import CorruptObject, LandingConflict
from pipelines.storage import Store
from pipelines.tables import delta, files, latest
from pipelines.tables.schema import PARTITION, TABLES, Table

if TYPE_CHECKING:
    from deltalake import DeltaTable

_ATTEMPTS = 20
_RETRIES = 100  # of one commit: with the default 15, 1 to 4 of 160 appends by 8 processes failed
_LONGEST_PAUSE_S = 5.0
_LANDED = tuple(name for name in TABLES if name != "verdicts")  # those have a landing of their own


def land_batch(store: Store, batch: str) -> Mapping[str, int]:
    """Commit the batch's landing files, a commit per table that has news, `runs` last. Returns each table's version.

    Ended at any point and tried again, it does what is left. A batch that a later one of the same run has replaced
    changes nothing.

    Raises:
        KeyNotFound: the batch was never validated.
        LandingConflict: see `land_table`.
    """
    run = keys.run_of(batch)
    landing = {name: files.read(store, keys.landing_key(batch, name)) for name in _LANDED}
    versions = {name: land_table(store, name, landing[name], batch, run) for name in _LANDED}
    latest.update(store, batch, landing["measurements"])
    return versions


def land_table(store: Store, name: str, rows: pa.Table, batch_id: str, run_id: str) -> int:
    """Commit one batch's rows to one table, in place of those of an earlier batch of the run. Returns the version.

    Each commit carries two transactions of the Delta protocol: the batch's, which says that it has landed, and the
    run's, whose version is the batch's generation. The commit is made through the very snapshot in which both were
    looked up: delta-rs then refuses it if another process has committed either of them meanwhile.

    Raises:
        LandingConflict: it lost every race against other landings; safe to try again.
        CorruptObject: the rows lack a column that must not be null, or have one of another type.
        StoreRefused, StoreUnreachable: see `delta.open_table`.
    """
    from deltalake.exceptions import CommitFailedError, DeltaError

    for attempt in range(_ATTEMPTS):
        table = delta.open_table(store, name)
        if not _is_due(table, rows, batch_id, run_id):
            return table.version()
        try:
            if news := delta.lacking(table, rows.schema):
                delta.add_columns(table, news)  # which may bring in another's landing: open and look again
            else:
                return _commit(table, TABLES[name], rows, batch_id, run_id)
        except CommitFailedError:
            time.sleep(random.random() * min(_LONGEST_PAUSE_S, 0.05 * 2**attempt))  # noqa: S311
        except (DeltaError, OSError) as e:
            raise delta.failure(store, name, e) from e
    raise LandingConflict(name, batch_id, _ATTEMPTS)


def _is_due(table: "DeltaTable", rows: pa.Table, batch_id: str, run_id: str) -> bool:
    """Not when the batch has landed, when a later one of its run has, or when there is nothing to add or replace."""
    if table.transaction_version(batch_id) is not None:
        return False
    generation = keys.generation_of(batch_id)
    landed = table.transaction_version(run_id)
    if landed is not None:
        return landed <= generation
    return rows.num_rows > 0 or generation > 1


def _commit(table: "DeltaTable", description: Table, rows: pa.Table, batch_id: str, run_id: str) -> int:
    """Append the rows; when the run has landed before, write them in place of its rows."""
    from deltalake import CommitProperties, Transaction, write_deltalake

    fitting = _fit(delta.columns(table), rows, batch_id)
    transactions = [Transaction(batch_id, 1), Transaction(run_id, keys.generation_of(batch_id))]
    write = partial(
        write_deltalake,
        table,
        fitting.sort_by([(column, "ascending") for column in description.sort]),
        writer_properties=delta.writer(description),
        commit_properties=CommitProperties(app_transactions=transactions, max_commit_retries=_RETRIES),
    )
    if table.transaction_version(run_id) is None:
        write(mode="append")
    else:
        month = keys.run_date(run_id)[:7]
        write(mode="overwrite", predicate=f"{PARTITION} = '{month}' AND run_id = '{run_id}'")
    return table.version()


def _fit(columns: pa.Schema, rows: pa.Table, batch_id: str) -> pa.Table:
    """The rows with the table's columns, in its order and types; a column that they lack is null."""
    for field in columns:
        if field.name not in rows.schema.names:
            rows = rows.append_column(field.with_nullable(True), pa.nulls(rows.num_rows, field.type))
    try:
        return rows.select(columns.names).cast(columns)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as e:
        raise CorruptObject(batch_id, f"its rows do not fit the table: {e}") from e
