"""The Delta tables of the store: opened or created, evolved, and how their files are written."""

import re
from typing import TYPE_CHECKING

import pyarrow as pa

from pipelines import bulk, keys
from pipelines.errors import StoreRefused, StoreUnreachable
from pipelines.storage import Store
from pipelines.tables.schema import PARTITION, TABLES, Table

if TYPE_CHECKING:
    from deltalake import DeltaTable, WriterProperties

_COLOUR = re.compile("\x1b\\[[0-9;]*m|↳")
_ALMOST_UNIQUE = ("value", "job_id", "raw_key", "raw_sha256")
"""Few values repeat in them: with a dictionary, files are 5 % larger and reading a node's month takes twice the CPU."""


def writer(table: Table) -> "WriterProperties":
    """How every file of the table is written."""
    from deltalake import ColumnProperties, WriterProperties

    plain = ColumnProperties(dictionary_enabled=False)
    columns = dict.fromkeys(_ALMOST_UNIQUE, plain)
    return WriterProperties(compression="ZSTD", max_row_group_size=table.row_group, column_properties=columns)


def uri(store: Store, name: str) -> str:
    return store.url(keys.table_key(name))


def open_table(store: Store, name: str) -> "DeltaTable":
    """The newest version of one of `schema.TABLES`; see `open_described`."""
    return open_described(store, TABLES[name])


def open_described(store: Store, table: Table) -> "DeltaTable":
    """The newest version of a table; an empty one is made when there is none. Safe to race.

    Raises:
        StoreRefused: the store does not let us make it, or what lies there is not a table.
        StoreUnreachable: after retries for as long as the settings say.
        UnsafeStore: there is no table yet, and on this store several writers could win the same commit.
    """
    from deltalake import CommitProperties, DeltaTable
    from deltalake.exceptions import DeltaError, TableNotFoundError

    where, options = uri(store, table.name), store.delta_options
    try:
        return DeltaTable(where, storage_options=options)
    except TableNotFoundError:
        store.require_atomic_create()  # the first commit of all, so that none is ever made where two writers can win
    except (DeltaError, OSError) as e:
        raise failure(store, table.name, e) from e
    try:
        return DeltaTable.create(
            where,
            table.schema,
            partition_by=[PARTITION] if table.partitioned else None,
            storage_options=options,
            commit_properties=CommitProperties(max_commit_retries=0),  # a retry would reset the other's columns
        )
    except (DeltaError, OSError):  # most likely another process made it meanwhile
        try:
            return DeltaTable(where, storage_options=options)
        except (DeltaError, OSError) as e:
            raise failure(store, table.name, e) from e


def failure(store: Store, name: str, e: Exception) -> StoreRefused | StoreUnreachable:
    """What delta-rs reports in several coloured lines, as one sentence; whether a retry may help stands in its text."""
    said = " ".join(_COLOUR.sub("", str(e)).split())
    if attempts := bulk.attempts_in(said):
        return StoreUnreachable(uri(store, name), attempts, said)
    return StoreRefused(uri(store, name), said)


def columns(table: "DeltaTable") -> pa.Schema:
    return pa.schema(table.schema().to_arrow())


def lacking(table: "DeltaTable", schema: pa.Schema) -> list[pa.Field]:
    """The columns of `schema` that the table does not have yet."""
    known = set(columns(table).names)
    return [field for field in schema if field.name not in known]


def add_columns(table: "DeltaTable", fields: list[pa.Field]) -> None:
    """Add nullable columns at the end, in a commit of their own. Old rows and old readers are not touched.

    Raises:
        CommitFailedError: another process changed the table meanwhile; open it again.
    """
    from deltalake import Schema

    added = Schema.from_arrow(pa.schema([field.with_nullable(True) for field in fields]))
    table.alter.add_columns(added.fields)
