"""TOML files that an operator edits, read into records; an error names the file, the line and the field."""

import re
import tomllib
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from pipelines.errors import BadFile
from pipelines.records import Record

R = TypeVar("R", bound=Record)

_MOST_DOTS = 500  # in a line: for a key of n parts tomllib takes memory for n squared
_SHOWN = 200  # characters of a value that does not fit


def load(path: Path, record: type[R]) -> R:
    """The file as a record.

    Raises:
        BadFile: it is not there, is not TOML, or a field is missing, unknown or does not fit.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as e:
        raise BadFile(str(path), "line 1", f"cannot be read ({e.strerror})") from e
    except UnicodeDecodeError as e:
        raise BadFile(str(path), "line 1", f"is not UTF-8 ({e.reason} at byte {e.start})") from e
    return parse(text, record, str(path))


def parse(text: str, record: type[R], path: str) -> R:
    """See `load`; `path` is only named in errors."""
    for number, line in enumerate(text.splitlines(), start=1):
        if line.count(".") > _MOST_DOTS:
            raise BadFile(path, f"line {number}", f"more than {_MOST_DOTS} dots; no key is nested that deep")
    try:
        body = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        problem, _, place = str(e).partition(" (at ")
        raise BadFile(path, place.rstrip(")") or "end of file", problem[:1].lower() + problem[1:]) from e
    except (ValueError, RecursionError) as e:  # tomllib lets Python's own limits through
        raise BadFile(path, "somewhere in it", "a number is too long, or values are nested too deep") from e
    try:
        return record.model_validate(body)
    except ValidationError as e:
        first = e.errors()[0]
        where = f"line {line_of(text, first['loc'])}, field {_dotted(first['loc'])}"
        raise BadFile(path, where, _sentence(first["type"], first["msg"], first.get("input"))) from e


def line_of(text: str, location: tuple[int | str, ...]) -> int:
    """The line (from 1) of a field, given its path such as ("nodes", 2, "scratch"); the nearest header if unsure."""
    lines = text.splitlines()
    found = 0
    for part, following in zip(location, (*location[1:], None), strict=True):
        if isinstance(part, int):
            continue
        occurrence = following if isinstance(following, int) else 0
        own = re.compile(rf"^\s*(\[\[?[^\]]*\b{re.escape(part)}\]\]?|[\"']?{re.escape(part)}[\"']?\s*=)")
        within = re.compile(rf"^\s*\[{re.escape(part)}\.")  # of [tenants.ml], where there is no [tenants]
        matches = [number for number, line in enumerate(lines) if number >= found and own.match(line)]
        matches = matches or [number for number, line in enumerate(lines) if number >= found and within.match(line)]
        if not matches:
            break
        found = matches[min(occurrence, len(matches) - 1)]
    return found + 1


def _dotted(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "(top)"


def _sentence(kind: str, message: str, given: object) -> str:
    if kind == "extra_forbidden":
        return "there is no such field"
    if kind == "missing":
        return "is required"
    return f"{message.removeprefix('Value error, ')}, got {_shown(given)}"


def _shown(given: object) -> str:
    try:
        text = repr(given)
    except (ValueError, RecursionError):  # a number of more digits than Python prints, or values in values
        return f"a {type(given).__name__} that is too large to print"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
