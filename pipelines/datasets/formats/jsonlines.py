"""JSON lines as Arrow record batches, with an object on each line and nothing else."""

import json
import re
from collections.abc import Iterator
from typing import Any

from pipelines.datasets.formats.columns import arrow, mapped

BLOCK_BYTES = 2 * 2**20  # read and parsed at once
_LONGEST_LINE = 64 * 2**20
_BOM = b"\xef\xbb\xbf"
_SECOND_VALUE = re.compile(rb"\}[ \t\r]*null")  # pyarrow 26 reads past its buffers when a row is null


def schema(text: Any) -> Any:
    """The columns of the first block, as pyarrow takes them; strings stay strings.

    Raises:
        ValueError: this is not JSON lines.
    """
    pa = arrow()
    first = next(_blocks(text), b"")
    if not _objects(first):
        return pa.schema([])
    found = _parsed(first, None).schema
    return pa.schema([pa.field(field.name, _without_times(field.type)) for field in found])


def batches(text: Any, schema: Any) -> Iterator[Any]:
    """The rows, a batch or more for each block.

    Raises:
        ValueError: this is not JSON lines, or a row does not fit the schema; it names the lines.
    """
    pa = arrow()
    readable = pa.schema([pa.field(field.name, _parseable(field.type)) for field in schema])
    lines = 0
    for block in _blocks(text):
        first, lines = lines + 1, lines + block.count(b"\n") + (not block.endswith(b"\n"))
        try:
            table = _rows(block, readable)
        except (ValueError, NotImplementedError, pa.ArrowException) as e:
            raise ValueError(f"lines {first} to {lines}: {_explained(e, block, readable)}") from e
        yield from table.to_batches()


def _blocks(text: Any) -> Iterator[bytes]:
    """Whole lines, of about BLOCK_BYTES."""
    held: list[bytes] = []
    bom = _BOM
    while data := text.read(BLOCK_BYTES):
        end = data.rfind(b"\n") + 1 if len(data) == BLOCK_BYTES else len(data)
        if end:
            yield b"".join([*held, data[:end]]).removeprefix(bom)
            held, bom = [], b""
        held.append(data[end:])
        if sum(map(len, held)) > _LONGEST_LINE:
            raise ValueError(f"a line is longer than {_LONGEST_LINE} B")
    if last := b"".join(held):
        yield last.removeprefix(bom)


def _objects(block: bytes) -> int:
    """How many lines have an object. Raises: ValueError: a line begins with something else."""
    lines = block.count(b"\n") + (not block.endswith(b"\n"))
    if not block.startswith(b"{") or block.count(b"\n{") != lines - 1:
        filled = [line for line in block.split(b"\n") if line.strip()]
        for line in filled:
            if not line.lstrip().startswith(b"{"):
                raise ValueError(f"expected an object on each line, found {_shown(line)}")
        lines = len(filled)
    for match in _SECOND_VALUE.finditer(block):
        start, end = block.rfind(b"\n", 0, match.start()) + 1, block.find(b"\n", match.end())
        json.loads(block[start : end if end >= 0 else None])
    return lines


def _rows(block: bytes, schema: Any) -> Any:
    objects = _objects(block)
    table = _parsed(block, schema)
    if len(table) != objects:
        raise ValueError("expected one object on each line, found more")
    return table


def _shown(line: bytes) -> str:
    return repr(line[:40].decode(errors="replace"))


def _parsed(block: bytes, schema: Any) -> Any:
    reader = arrow().json
    return reader.read_json(
        arrow().BufferReader(block),
        reader.ReadOptions(use_threads=False, block_size=len(block) + 1),
        reader.ParseOptions(explicit_schema=schema, unexpected_field_behavior="infer" if schema is None else "error"),
    )


def _explained(problem: Exception, block: bytes, schema: Any) -> str:
    """pyarrow does not name a field that it did not expect."""
    if "unexpected field" in str(problem):
        names = _parsed(block, None).schema.names
        unknown = [name for name in names if name not in schema.names]
        return f"{unknown[0] if unknown else 'a nested name'!r} is not among the names of the first {BLOCK_BYTES} B"
    return str(problem)


def _without_times(of: Any) -> Any:
    """JSON has no times: what looks like one is a string, and stays as it is written."""
    pa = arrow()
    return mapped(of, lambda leaf: pa.string() if pa.types.is_timestamp(leaf) else leaf)


def _parseable(of: Any) -> Any:
    """The type to parse as, where pyarrow's JSON reader does not know the one that is wanted."""
    pa = arrow()
    return pa.list_(_parseable(of.value_type)) if pa.types.is_large_list(of) else of
