"""What the command line prints: tables and sentences for people, one JSON document for scripts."""

import json
import sys
from collections.abc import Sequence
from typing import Any

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


class Verbs(click.Group):
    """A group whose verbs end with one sentence when something is wrong, never with a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FleetmarkError as e:
            failure = click.ClickException(str(e))
            failure.exit_code = FAILED if e.retryable else BAD_INPUT
            raise failure from e
