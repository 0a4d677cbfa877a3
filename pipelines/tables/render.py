"""The rows of an answer, and how people and programs read them: values with units, a table, JSON, CSV. Pure."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

from pipelines.records import Record

_NUMBERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UINTEGER", "UBIGINT", "FLOAT", "DOUBLE", "DECIMAL")


class Column(Record):
    name: str
    type: str  # as DuckDB names it: VARCHAR, DOUBLE, MAP(VARCHAR, VARCHAR)

    @property
    def is_number(self) -> bool:
        return self.type.startswith(_NUMBERS)


class Result(Record):
    """The answer to a query: every row has one value for each column. Values are in base units."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Any, ...], ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    def without(self, *names: str) -> "Result":
        """The same rows, fewer columns."""
        kept = [place for place, name in enumerate(self.names) if name not in names]
        return Result(
            columns=tuple(self.columns[place] for place in kept),
            rows=tuple(tuple(row[place] for place in kept) for row in self.rows),
        )


_LARGE = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_SMALL = ((1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"), (1e-12, "p"))
_PREFIXED = {  # unit -> the prefixes that are said of it, and how the two are written
    "B/s": (_LARGE, "{number} {prefix}B/s"),
    "B": (_LARGE, "{number} {prefix}B"),
    "1/s": (_LARGE, "{number} {prefix}/s"),
    "FLOP/s": (_LARGE, "{number} {prefix}FLOP/s"),
    "tok/s": (_LARGE, "{number} {prefix}tok/s"),
    "tok/J": (_LARGE, "{number} {prefix}tok/J"),
    "W": (_LARGE, "{number} {prefix}W"),
    "J": (_LARGE, "{number} {prefix}J"),
    "Hz": (_LARGE, "{number} {prefix}Hz"),
    "s": (_SMALL, "{number} {prefix}s"),
}
_IN_UNIT = frozenset({"value", "median", "low", "high", "observed", "expected", "typical", "p50", "p95", "p99", "p999"})


def format_value(value: float, unit: str) -> str:
    """A value in base units as a person reads it: three digits and a decimal prefix.

    `format_value(1.237e9, "B/s") == "1.24 GB/s"`, `(85e-6, "s")` is "85.0 µs", `(45_200, "1/s")` is "45.2 k/s",
    `(0.031, "ratio")` is "3.10 %", `(12, "1")` is "12". A unit that is not known follows the number as it is.
    """
    if not math.isfinite(value):
        return f"{value} {unit}"
    if unit == "1":
        return f"{value:,.0f}" if value == int(value) else _three_digits(value)
    if unit == "ratio":
        return f"{_three_digits(value * 100)} %"
    if unit not in _PREFIXED:
        return f"{_three_digits(value)} {unit}".rstrip()
    prefixes, form = _PREFIXED[unit]
    scale, prefix = _prefix(abs(value), prefixes)
    return form.format(number=_three_digits(value / scale), prefix=prefix).replace("  ", " ")


def _prefix(size: float, prefixes: Sequence[tuple[float, str]]) -> tuple[float, str]:
    """The first prefix with which `size` reads as at least 1; 999.6 reads as 1000, and takes the next one."""
    if size == 0:
        return 1.0, ""
    rounded = float(f"{size:.2e}")
    return next(((scale, prefix) for scale, prefix in prefixes if rounded >= scale * (1 - 1e-9)), prefixes[-1])


def _three_digits(value: float) -> str:
    """`1.24`, `45.2`, `850`, and from 1000 on all digits before the point."""
    size = float(f"{abs(value):.2e}")
    if value == 0:
        return "0"
    return f"{value:.2f}" if size < 10 else f"{value:.1f}" if size < 100 else f"{value:,.0f}"


def as_table(result: Result) -> str:
    """The rows as a terminal table; values beside a column `unit` are shown in that unit, and it is not repeated."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    shown = [column for column in result.columns if column.name != "unit" or not _IN_UNIT.intersection(result.names)]
    for column in shown:
        table.add_column(column.name, justify="right" if column.is_number else "left", overflow="fold")
    for row in result.rows:
        cells = dict(zip(result.names, row, strict=True))
        table.add_row(*(_cell(column.name, cells) for column in shown))
    stream = io.StringIO()
    natural = max(80, Console(width=10_000).measure(table).maximum)
    Console(file=stream, width=natural, color_system=None, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def _cell(name: str, cells: Mapping[str, Any]) -> str:
    value = cells[name]
    if value is None:
        return ""
    if name in _IN_UNIT and isinstance(value, int | float) and isinstance(cells.get("unit"), str):
        return format_value(value, cells["unit"])
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return " ".join(f"{key}={each}" for key, each in value.items())
    plain = _plain(value)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)


def as_objects(result: Result) -> list[dict[str, Any]]:
    """A dict per row of what JSON can say: instants in ISO 8601 with Z, maps as objects, values in base units."""
    return [{name: _plain(value) for name, value in zip(result.names, row, strict=True)} for row in result.rows]


def as_json(result: Result) -> str:
    """One array of objects; see `as_objects`."""
    return json.dumps(as_objects(result), ensure_ascii=False, indent=1)


def as_csv(result: Result, header: bool = True) -> str:
    """RFC 4180; maps and lists as JSON, a missing value as an empty field."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\r\n")
    if header:
        writer.writerow(result.names)
    for row in result.rows:
        plain = (_plain(value) for value in row)
        writer.writerow([json.dumps(v, ensure_ascii=False) if isinstance(v, dict | list) else v for v in plain])
    return stream.getvalue()


def _plain(value: Any) -> Any:
    """What JSON can say of a value: instants end in Z, not-a-number and infinity become null, bytes hex digits."""
    plain: Any = value
    if isinstance(value, datetime) and value.tzinfo:
        plain = value.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"
    elif isinstance(value, date):
        plain = value.isoformat()
    elif isinstance(value, float | Decimal):
        plain = float(value) if math.isfinite(value) else None
    elif isinstance(value, Mapping):
        plain = {str(key): _plain(each) for key, each in value.items()}
    elif isinstance(value, list | tuple):
        plain = [_plain(each) for each in value]
    elif isinstance(value, timedelta):
        plain = value.total_seconds()
    elif isinstance(value, bytes):
        plain = value.hex()
    elif not isinstance(value, str | int | None):
        plain = str(value)
    return plain
