"""Landing: rows into their tables, exactly once however often it is tried or raced."""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa

from pipelines import keys
from pipelines.errors import CorruptObject, LandingConflict
from pipelines.storage import Store
from pipelines.tables import delta, files, latest
from pipelines.tables.schema import PARTITION, RUN_TABLES, SINCE, TABLES, Table

if TYPE_CHECKING:
    from deltalake import DeltaTable

_ATTEMPTS = 20
_RETRIES = 100  # of one commit: with the default 15, 1 to 4 of 160 appends by 8 processes failed
_LONGEST_PAUSE_S = 5.0
_LANDED = tuple(name for name in RUN_TABLES if name != "verdicts")  # those have a landing of their own


@dataclass(frozen=True)
class _Addition:
    """What a commit brings: rows, and by id and version the transactions of the Delta protocol that it carries."""

    rows: pa.Table
    transactions: Mapping[str, int]
    replaced: str | None = None  # the predicate of the rows that these take the place of


def land_batch(store: Store, batch: str) -> Mapping[str, int]:
    """Commit the batch's landing files, a commit per table that has news, `runs` last. Returns each table's version.

    Ended at any point and tried again, it does what is left. A batch that a later one of the same run has replaced
    changes nothing.

    Raises:
        KeyNotFound: the batch was never validated.
        LandingConflict: see `land_table`.
    """
    run = keys.run_of(batch)
    landing = {name: files.read(store, keys.landing_key(batch, name), SINCE.get(name)) for name in _LANDED}
    versions = {name: land_table(store, name, landing[name], batch, run) for name in _LANDED}
    latest.update(store, batch, landing["measurements"])
    return versions


def land_table(store: Store, name: str, rows: pa.Table, batch_id: str, run_id: str) -> int:
    """Commit one batch's rows to one table, in place of those of an earlier batch of the run. Returns the version.

    Each commit carries two transactions of the Delta protocol: the batch's, which says that it has landed, and the
    run's, whose version is the batch's generation.

    Raises:
        LandingConflict: it lost every race against other landings; safe to try again.
        CorruptObject: the rows lack a column that must not be null, or have one of another type.
        StoreRefused, StoreUnreachable: see `delta.open_table`.
    """
    version, _ = _land(store, name, batch_id, partial(_of_batch, rows=rows, batch_id=batch_id, run_id=run_id))
    return version


def land_units(store: Store, name: str, units: Mapping[str, pa.Table]) -> int:
    """Commit rows that come in units, each unit once under its id. Returns how many rows this call has landed.

    What the table lacks of the units lands in one commit, which carries a transaction of the Delta protocol for each.

    Raises: see `land_table`.
    """
    with_rows = {unit: rows for unit, rows in units.items() if rows.num_rows}
    if not with_rows:
        return 0
    _, landed = _land(store, name, next(iter(with_rows)), partial(_of_units, units=with_rows))
    return landed


def _of_batch(table: "DeltaTable", rows: pa.Table, batch_id: str, run_id: str) -> _Addition | None:
    """None when the batch has landed, when a later one of its run has, or when there is nothing to add or replace."""
    if table.transaction_version(batch_id) is not None:
        return None
    generation = keys.generation_of(batch_id)
    landed = table.transaction_version(run_id)
    transactions = {batch_id: 1, run_id: generation}
    if landed is None:
        return _Addition(rows, transactions) if rows.num_rows or generation > 1 else None
    replaced = f"{PARTITION} = '{keys.run_date(run_id)[:7]}' AND run_id = '{run_id}'"
    return _Addition(rows, transactions, replaced) if landed <= generation else None


def _of_units(table: "DeltaTable", units: Mapping[str, pa.Table]) -> _Addition | None:
    missing = [unit for unit in units if table.transaction_version(unit) is None]
    if not missing:
        return None
    return _Addition(pa.concat_tables([units[unit] for unit in missing]), dict.fromkeys(missing, 1))


def _land(store: Store, name: str, what: str, choose: Callable[["DeltaTable"], _Addition | None]) -> tuple[int, int]:
    """Commit what `choose` finds that the table lacks. Returns the table's version and how many rows were added.

    The commit is made through the very snapshot in which `choose` looked up the transactions: delta-rs then refuses it
    if another process has committed one of them meanwhile.
    """
    from deltalake.exceptions import CommitFailedError, DeltaError

    for attempt in range(_ATTEMPTS):
        table = delta.open_table(store, name)
        try:
            addition = choose(table)
            if addition is None:
                return table.version(), 0
            if news := delta.lacking(table, addition.rows.schema):
                delta.add_columns(table, news)  # which may bring in another's landing: open and look again
            else:
                _commit(table, TABLES[name], addition, what)
                return table.version(), addition.rows.num_rows
        except CommitFailedError:
            time.sleep(random.random() * min(_LONGEST_PAUSE_S, 0.05 * 2**attempt))  # noqa: S311
        except (DeltaError, OSError) as e:
            raise delta.failure(store, name, e) from e
    raise LandingConflict(name, what, _ATTEMPTS)


def _commit(table: "DeltaTable", description: Table, addition: _Addition, what: str) -> None:
    """Append the rows, or write them in place of others."""
    from deltalake import CommitProperties, Transaction, write_deltalake

    fitting = _fit(delta.columns(table), addition.rows, what)
    transactions = [Transaction(each, version) for each, version in addition.transactions.items()]
    write = partial(
        write_deltalake,
        table,
        fitting.sort_by([(column, "ascending") for column in description.sort]),
        writer_properties=delta.writer(description),
        commit_properties=CommitProperties(app_transactions=transactions, max_commit_retries=_RETRIES),
    )
    if addition.replaced is None:
        write(mode="append")
    else:
        write(mode="overwrite", predicate=addition.replaced)


def _fit(columns: pa.Schema, rows: pa.Table, what: str) -> pa.Table:
    """The rows with the table's columns, in its order and types; a column that they lack is null."""
    for field in columns:
        if field.name not in rows.schema.names:
            rows = rows.append_column(field.with_nullable(True), pa.nulls(rows.num_rows, field.type))
    try:
        return rows.select(columns.names).cast(columns)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as e:
        raise CorruptObject(what, f"its rows do not fit the table: {e}") from e
