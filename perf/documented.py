"""The queries of docs/queries.md: read from there by the benchmark and by the test, and their output written there."""

import re
from dataclasses import dataclass
from pathlib import Path

from perf.fleet import Fleet
from perf.generate import generate
from pipelines.storage import Store
from pipelines.tables import render
from pipelines.tables.query import Reader, open_reader

DOCUMENT = Path(__file__).parents[1] / "docs/queries.md"
FLEET = Fleet(nodes=12, nights=120, nightly=3)
_SHOWN = 8  # rows of an answer that the document shows
_BLOCK = re.compile(r"^## (?P<title>\d+\. .+?)\n.*?```sql\n(?P<sql>.*?)```\n\n```text\n(?P<output>.*?)```", re.M | re.S)


@dataclass(frozen=True)
class Documented:
    title: str
    sql: str
    output: str


def queries(text: str) -> tuple[Documented, ...]:
    """Every query of the document, in order."""
    return tuple(Documented(**found.groupdict()) for found in _BLOCK.finditer(text))


def output(reader: Reader, sql: str) -> str:
    """The first rows of the answer as the document shows them."""
    answer = reader.query(sql)
    lines = render.as_table(answer.model_copy(update={"rows": answer.rows[:_SHOWN]})).splitlines()
    more = len(answer.rows) - _SHOWN
    return "\n".join([*lines, f"({more} more rows)"] if more > 0 else lines) + "\n"


def written(text: str, store: Store) -> str:
    """The document with the output of its queries on `FLEET`, which is generated into the empty `store`."""
    generate(store, FLEET)
    with open_reader(store) as reader:
        return _BLOCK.sub(lambda found: _with_output(found, output(reader, found["sql"])), text)


def _with_output(found: re.Match[str], text: str) -> str:
    whole, begin = found[0], found.start("output") - found.start()
    return f"{whole[:begin]}{text}```"
