"""Verbs that read the tables: results, query, export."""

import importlib.util
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pipelines import console

if TYPE_CHECKING:
    from pipelines.storage import Store
    from pipelines.tables.query import Reader
    from pipelines.tables.render import Result

F = TypeVar("F", bound=Callable[..., Any])


class AsOf(click.ParamType["int | datetime"]):
    """A version of `runs` as a number, or a time in ISO 8601; without an offset it is UTC."""

    name = "version or time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | datetime:
        if str(value).isdigit():
            return int(value)
        try:
            at = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is neither a version (12) nor a time (2026-11-21T08:00:00Z)", param, ctx)
        return at if at.tzinfo else at.replace(tzinfo=UTC)


def reading(command: F) -> F:
    """--as-of, and the form of the answer."""
    command = click.option("--csv", "form", flag_value="csv", help="Print CSV.")(command)
    command = click.option("--json", "form", flag_value="json", help="Print a JSON array, one object per row.")(command)
    return click.option(
        "--as-of",
        type=AsOf(),
        help="Read what stood at a time (2026-11-21T08:00:00Z), or at a version of the table `runs` (12).",
    )(command)


@click.command()
@reading
@click.option("--run", "run", help="A run id; default: the newest complete run with what is asked for.")
@click.option("--node", help="Only this node.")
@click.option("--benchmark", help="Only this benchmark.")
@click.option("--case", help="Only this case, e.g. rand_read.")
@click.option("--metric", help="Only this metric, e.g. read_bandwidth.")
def results(form: str | None, as_of: int | datetime | None, **which: str | None) -> None:
    """Show a run's results: the median of the repeats, their least and greatest, with units."""
    with _reader(_store(), as_of) as reader:
        _print_results(reader, form, **which)


@click.command()
@click.argument("sql")
@reading
def query(sql: str, form: str | None, as_of: int | datetime | None) -> None:
    """Answer one SELECT over the tables with DuckDB; read only.

    Tables: measurements, runs, quarantine, histograms, telemetry, environments, verdicts, latest, usage; datasets,
    staging, scrubs. Views: results (measurements of complete runs), completed (one row per complete run). See
    docs/tables.md and docs/queries.md.
    """
    with _reader(_store(), as_of) as reader:
        _print(reader.query(sql), form)


@click.command()
@click.argument("source", metavar="TABLE_OR_SELECT")
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--format", "form", type=click.Choice(["parquet", "csv", "json"]), help="Default: the path's ending.")
@click.option("--as-of", type=AsOf(), help="As for `fleetmark query`.")
def export(source: str, path: Path, form: str | None, as_of: int | datetime | None) -> None:
    """Write a table, a view or the answer to a SELECT to a file (.parquet, .csv or .json)."""
    from pipelines.tables import export as exporter

    with _reader(_store(), as_of) as reader:
        rows = exporter.export(reader, source, path, form)
    console.say(f"{rows} rows in {path}")


def show_overview(store: "Store", run: str, as_json: bool) -> None:
    """The results of one run, for verbs that end with them."""
    from pipelines.tables import results as summaries
    from pipelines.tables.overview import others, overview

    with _reader(store, None) as reader:
        found = summaries.results(reader, run=run)
    if as_json:
        return _print(summaries.as_result(found), "json")
    tables = [table for table in (overview(found), others(found)) if table.rows]
    for table in tables or [overview(found)]:
        _print(table, None)
    return None


def _print_results(reader: "Reader", form: str | None, **which: str | None) -> None:
    from pipelines.tables import results as summaries

    found = summaries.results(reader, **which)
    result = summaries.as_result(found)
    _print(result if form else result.without("run_id", "labels"), form)
    if found:
        console.say(f"run {found[0].run_id}: median of the repeats, lowest, highest")
    else:
        console.say("nothing matches" if "runs" in reader.versions else "no results: no run is complete yet")


def _print(result: "Result", form: str | None) -> None:
    from pipelines.tables import render

    forms = {"json": render.as_json, "csv": render.as_csv, None: render.as_table}
    click.echo(forms[form](result).rstrip("\n"))


def _reader(store: "Store", as_of: int | datetime | None) -> "Reader":
    """Raises: NotInstalled: this is a bare node's environment."""
    from pipelines.errors import NotInstalled

    if importlib.util.find_spec("duckdb") is None:
        raise NotInstalled("DuckDB", "tables")
    from pipelines.tables.query import open_reader

    return open_reader(store, as_of)


def _store() -> "Store":
    from pipelines import settings, storage

    return storage.open_store(settings.load())


VERBS = (results, query, export)
