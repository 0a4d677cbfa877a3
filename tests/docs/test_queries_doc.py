"""docs/queries.md is true: every query in it runs and gives the output that stands under it."""

from collections.abc import Iterator

import pytest

from perf import documented
from perf.generate import generate
from pipelines import storage
from pipelines.settings import Settings
from pipelines.tables.query import Reader, open_reader

TEXT = documented.DOCUMENT.read_text()
QUERIES = documented.queries(TEXT)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    store = storage.open_store(Settings(home=tmp_path_factory.mktemp("documented")))
    generate(store, documented.FLEET)
    with open_reader(store) as opened:
        yield opened


def test_there_are_ten_and_none_is_missed() -> None:
    assert len(QUERIES) == TEXT.count("```sql") == TEXT.count("\n## ") == 10


@pytest.mark.parametrize("query", QUERIES, ids=[query.title for query in QUERIES])
def test_a_documented_query_gives_the_output_that_is_shown(reader: Reader, query: documented.Documented) -> None:
    assert documented.output(reader, query.sql) == query.output
    assert query.output.count("\n") > 2, "an example without a row explains nothing"
