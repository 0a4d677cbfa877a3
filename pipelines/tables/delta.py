"""The Delta tables of the store: opened or created, evolved, and how their files are written."""

from typing import TYPE_CHECKING

import pyarrow as pa

from pipelines import keys
from pipelines.errors import StoreRefused
from pipelines.storage import Store
from pipelines.tables.schema import PARTITION, TABLES

if TYPE_CHECKING:
    from deltalake import DeltaTable, WriterProperties

ROW_GROUP = 122_880
"""Rows: DuckDB's own size, and the best of four tried for point queries and scans together."""

_ALMOST_UNIQUE = ("value", "job_id", "raw_key", "raw_sha256")
"""Few values repeat in them: with a dictionary, files are 5 % larger and reading a node's month takes twice the CPU."""


def writer() -> "WriterProperties":
    """How every file of a table is written."""
    from deltalake import ColumnProperties, WriterProperties

    plain = ColumnProperties(dictionary_enabled=False)
    columns = dict.fromkeys(_ALMOST_UNIQUE, plain)
    return WriterProperties(compression="ZSTD", max_row_group_size=ROW_GROUP, column_properties=columns)


def uri(store: Store, name: str) -> str:
    return store.url(keys.table_key(name))


def open_table(store: Store, name: str) -> "DeltaTable":
    """The newest version of one of `schema.TABLES`; an empty table is made when there is none. Safe to race.

    Raises:
        StoreRefused: the store does not let us make it, or what lies there is not a table.
    """
    from deltalake import CommitProperties, DeltaTable
    from deltalake.exceptions import DeltaError, TableNotFoundError

    where, options = uri(store, name), store.delta_options
    try:
        return DeltaTable(where, storage_options=options)
    except TableNotFoundError:
        store.require_atomic_create()  # the first commit of all, so that none is ever made where two writers can win
    except (DeltaError, OSError) as e:
        raise StoreRefused(where, str(e)) from e
    try:
        return DeltaTable.create(
            where,
            TABLES[name].schema,
            partition_by=[PARTITION],
            storage_options=options,
            commit_properties=CommitProperties(max_commit_retries=0),  # a retry would reset the other's columns
        )
    except (DeltaError, OSError):  # most likely another process made it meanwhile
        try:
            return DeltaTable(where, storage_options=options)
        except (DeltaError, OSError) as e:
            raise StoreRefused(where, str(e)) from e


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
