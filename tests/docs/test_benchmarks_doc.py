"""docs/benchmarks.md is what the descriptors say."""

from pathlib import Path

from pipelines import benchmark, guide

PAGE = Path(__file__).parents[2] / "docs/benchmarks.md"


def test_the_page_is_made_of_the_descriptors() -> None:
    assert PAGE.read_text() == guide.page(benchmark.discover().values()), "run `make docs`"
