"""What the command line prints: tables and sentences for people, one JSON document for scripts."""

import json
import sys
from collections.abc import Sequence
from typing import IO, Any

import click

from pipelines.errors import FleetmarkError

BAD_INPUT = 2
FAILED = 1


def say(line: str) -> None:
    """A line of progress. It goes to stderr, so that stdout holds the result and nothing else."""
    click.echo(line, err=True)


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


class Sentence(click.ClickException):
    """What a verb ends with instead of a traceback."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    def show(self, file: IO[Any] | None = None) -> None:  # noqa: ARG002
        say(f"fleetmark: {self.message}")


class Verbs(click.Group):
    """A group whose verbs end with one sentence when something is wrong, never with a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FleetmarkError as e:
            raise Sentence(str(e), FAILED if e.retryable else BAD_INPUT) from e
