"""Pages: one self-contained HTML file each, from a template and records; everything in it is escaped. Pure."""

from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.tables.render import format_value

if TYPE_CHECKING:
    import jinja2


def render(template: str, **fields: Any) -> str:
    """The page. A field that the template names and is not given is an error, never an empty place."""
    return _environment().get_template(template).render(**fields)


@cache
def _environment() -> "jinja2.Environment":
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"value": format_value, "instant": instant, "span": span, "count": count, "plural": plural}
    return environment


def instant(at: datetime) -> str:
    """`2026-11-21 02:00 UTC`."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def span(start: datetime, end: datetime) -> str:
    """`2026-11-21 02:00 to 02:07 UTC`."""
    first, last = instant(start).split(), instant(end).split()
    if first == last:
        return " ".join(first)
    return " ".join([*first[:2], "to", *(last[1:] if first[0] == last[0] else last)])


def count(number: int) -> str:
    return f"{number:,}"


def plural(number: int, noun: str) -> str:
    """`1 job`, `2 jobs`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
