"""docs/tables.md says what the tables are."""

import re
from pathlib import Path

import pytest

from pipelines.tables.schema import TABLES

TEXT = (Path(__file__).parents[2] / "docs/tables.md").read_text()
SHARED, *SECTIONS = re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]


def documented(section: str) -> dict[str, str]:
    """Column -> type of the table in a section."""
    return dict(re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", section, flags=re.MULTILINE))


@pytest.mark.parametrize("name", sorted(TABLES))
def test_every_column_of_every_table_is_documented_with_its_type(name: str) -> None:
    section = next(section for section in SECTIONS if section.startswith(f"{name}\n"))
    known = documented(SHARED) | documented(section)
    schema = TABLES[name].schema
    assert {column: known.get(column) for column in schema.names} == {
        field.name: str(field.type).replace("map<string, string ('labels')>", "map<string, string>") for field in schema
    }


def test_every_documented_column_exists() -> None:
    columns = {column for table in TABLES.values() for column in table.schema.names}
    assert documented(TEXT).keys() <= columns
