"""The columns that all shards of a version have: one Arrow schema, made of those of its source files.

Types are promoted as `pyarrow.unify_schemas` does it (int32 and int64 to int64, integers and floats to double, a name
that some files lack is null there); what has no common type is an error. Columns stand in the order in which the
files, sorted by path, first have them. A schema travels as text: base64 of Arrow's IPC form.
"""

import base64
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

from pipelines.errors import NotInstalled, SourceRefused

_NOT_OURS = {b"pandas"}  # says how many rows a file had and which column was its index
_FIELD_ID = b"PARQUET:field_id"  # unique in one file, not among several


def arrow() -> Any:
    """pyarrow, which nodes do not have. Raises: NotInstalled."""
    if "pyarrow" not in sys.modules:  # it reads this once. mimalloc keeps what threads gave back: 250 MB, not 170
        os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    try:
        import pyarrow as pa
        import pyarrow.compute
        import pyarrow.csv
        import pyarrow.json
        import pyarrow.parquet
    except ModuleNotFoundError as e:
        raise NotInstalled("pyarrow", "tables") from e
    return pa


def written(schema: Any) -> str:
    """A file's schema as text, equal for files whose rows can be put together as they are."""
    pa = arrow()
    fields = [_mapped_field(field, _value_type) for field in schema]
    return _text(pa.schema(fields, _kept(schema.metadata, _NOT_OURS)))


def read(text: str) -> Any:
    """The pyarrow.Schema of a text."""
    pa = arrow()
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


def unified(url: str, found: Iterable[tuple[str, str]]) -> str:
    """The one schema of a version, as text. `found`: its files' different ones, each after the first path that has it.

    Raises:
        SourceRefused: a column has types that nothing holds together; or there is no column at all.
    """
    pa = arrow()
    files = sorted((path, read(text)) for path, text in found)
    merged = pa.schema([])
    for path, schema in files:
        try:
            merged = pa.unify_schemas([merged, schema.remove_metadata()], promote_options="permissive")
        except pa.ArrowException as e:
            raise SourceRefused(f"{url}: {path}", _conflict(schema, merged, files)) from e
    if not len(merged):
        raise SourceRefused(url, "no file has a column")
    named = {schema.remove_metadata() for _, schema in files}
    return _text(_without_nulls(merged).with_metadata(_common(files) if len(named) == 1 else None))


def mapped(of: Any, leaf: Callable[[Any], Any]) -> Any:
    """The type with `leaf` applied to what lists and structs are made of; everything nullable, as in JSON."""
    types = arrow().types
    pa = arrow()
    if types.is_struct(of):
        return pa.struct([_mapped_field(field, leaf) for field in of])
    if types.is_large_list(of):
        return pa.large_list(_mapped_field(of.value_field, leaf))
    if types.is_fixed_size_list(of):
        return pa.list_(_mapped_field(of.value_field, leaf), of.list_size)
    if types.is_list(of):
        return pa.list_(_mapped_field(of.value_field, leaf))
    return leaf(of)


def _mapped_field(field: Any, leaf: Callable[[Any], Any]) -> Any:
    kept = _kept(field.metadata, {_FIELD_ID})
    return field.with_type(mapped(field.type, leaf)).with_nullable(True).with_metadata(kept)


def _value_type(of: Any) -> Any:
    """Without dictionaries: how values repeat is for each shard to say."""
    return of.value_type if arrow().types.is_dictionary(of) else of


def _without_nulls(schema: Any) -> Any:
    """A column with nothing in it anywhere is of strings: many readers know no type that is only null."""
    pa = arrow()
    fields = [_mapped_field(field, lambda leaf: pa.string() if pa.types.is_null(leaf) else leaf) for field in schema]
    return pa.schema(fields)


def _kept(metadata: dict[bytes, bytes] | None, without: set[bytes]) -> dict[bytes, bytes] | None:
    return {name: value for name, value in sorted((metadata or {}).items()) if name not in without} or None


def _common(files: list[tuple[str, Any]]) -> dict[bytes, bytes] | None:
    """What all files say beside their columns, the types of HF datasets for one."""
    said = [set((schema.metadata or {}).items()) for _, schema in files]
    return dict(sorted(set.intersection(*said))) or None


def _conflict(schema: Any, merged: Any, files: list[tuple[str, Any]]) -> str:
    pa = arrow()
    for field in schema:
        place = merged.get_field_index(field.name)
        if place < 0:
            continue
        try:
            pa.unify_schemas([pa.schema([merged.field(place)]), pa.schema([field])], promote_options="permissive")
        except pa.ArrowException:
            other = next(other for other, its in files if field.name in its.names)
            before = merged.field(place).type
            return f"column {field.name!r} is {field.type}, and {before} in {other}; a version has one type for each"
    return f"its columns and those of the files before it cannot be put together: {schema}"


def _text(schema: Any) -> str:
    return base64.b64encode(schema.serialize()).decode()
