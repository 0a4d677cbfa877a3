"""Suites: which benchmarks run, with which parameters, how often. Pure but for `load` and `names`."""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import Field

from pipelines import documents
from pipelines.errors import Unknown
from pipelines.records import Record, Scalar, Suite, SuiteEntry


class SuiteFile(Record):
    """`infra/suites/<name>.toml`: a description and one [[benchmarks]] table per entry."""

    description: str
    benchmarks: tuple[SuiteEntry, ...] = Field(min_length=1)


def names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in folder.glob("*.toml")))


def load(folder: Path, name: str) -> Suite:
    """Raises: Unknown: no such suite. BadFile: with line and field."""
    if name not in names(folder):
        raise Unknown("suite", name, names(folder))
    file = documents.load(folder / f"{name}.toml", SuiteFile)
    return Suite(name=name, description=file.description, entries=file.benchmarks)


def datasets(suite: Suite) -> tuple[str, ...]:
    """Every dataset that the suite names, once, as it names it."""
    return tuple(dict.fromkeys(entry.dataset for entry in suite.entries if entry.dataset))


def parameter_sets(entry: SuiteEntry) -> Iterator[Mapping[str, Scalar]]:
    """The entry's parameters, once for each combination of its matrix."""
    for values in itertools.product(*entry.matrix.values()):
        yield {**entry.params, **dict(zip(entry.matrix, values, strict=True))}
