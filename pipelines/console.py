"""What the command line prints: tables and sentences for people, one JSON document for scripts."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

import click

from pipelines.errors import FleetmarkError


def say(line: str) -> None:
    """A line of progress. It goes to stderr, so that stdout holds the result and nothing else."""
    click.echo(line, err=True)


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """`say`; where a person is looking on, with a spinner and the time below what was said last."""
    if not sys.stderr.isatty():
        yield say
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=2) as shown:
        task = shown.add_task("", total=None)

        def say_below(line: str) -> None:
            shown.console.print(line, markup=False, highlight=False, soft_wrap=True)
            shown.update(task, description=line.strip())

        yield say_below


def emit(body: Any) -> None:
    """A result for scripts."""
    click.echo(json.dumps(body, indent=2, default=str, ensure_ascii=False))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A result for people. Piped, it is as wide as its content."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 4096)
    grid = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        grid.add_row(*row)
    with console.capture() as captured:
        console.print(grid, soft_wrap=False, markup=False)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


class BadInput(click.ClickException):
    """What a verb ends with instead of a traceback: one sentence; trying again does not help."""

    exit_code = 2

    def show(self, file: IO[Any] | None = None) -> None:  # noqa: ARG002
        say(f"fleetmark: {self.message}")


class Failed(BadInput):
    """The same, where trying again may help."""

    exit_code = 1


class Verbs(click.Group):
    """A group whose verbs end with one sentence when something is wrong, never with a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FleetmarkError as e:
            raise (Failed if e.retryable else BadInput)(str(e)) from e
