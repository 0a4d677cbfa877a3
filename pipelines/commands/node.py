"""Verbs that do a node's part of a run on this machine, for who starts it there without Airflow, as over SSH."""

import os
import shlex
from pathlib import Path

import click

from pipelines import console
from pipelines.commands import options
from pipelines.commands.staging import cache_of, deployment
from pipelines.errors import BadFile

_LONGEST_VARIABLE = 2**17  # MAX_ARG_STRLEN, execve(2); for more shlex takes minutes
_run_id = click.argument("run_id", metavar="RUN")
_name = click.argument("name", metavar="NODE")
_attempt = click.option(
    "--attempt", type=click.IntRange(min=1), default=1, show_default=True, help="Which one it is; kept with it."
)


@click.group(cls=console.Verbs)
@click.option(
    "--env-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="This node's settings and credentials, NAME=VALUE on each line; what it says goes before the environment.",
)
def node(env_file: Path | None) -> None:
    """Do this node's part of a run. Exit status 1: another attempt may cure it; 2: it will not."""
    if env_file is not None:
        os.environ.update(variables(env_file))


@node.command()
@_run_id
@_name
@_attempt
def measure(run_id: str, name: str, attempt: int) -> None:
    """Run the jobs that the node does by itself; those whose raw output is there are not run again."""
    from pipelines import stages

    settings, store = deployment()
    done = stages.measure(settings, store, run_id, name, attempt, click.echo)
    click.echo(f"{len(done)} raw outputs are in the store")


@node.command()
@_run_id
@_name
@_attempt
@click.option("--approval", required=True, metavar="SHA256", help="The hash of what was decided about the run.")
def measure_devices(run_id: str, name: str, attempt: int, approval: str) -> None:
    """Run the jobs on the node's raw devices, which somebody has approved in the Airflow UI."""
    from pipelines import stages

    settings, store = deployment()
    done = stages.measure_devices(settings, store, run_id, name, attempt, click.echo, approval=approval)
    click.echo(f"{len(done)} raw outputs are in the store")


@node.command()
@_run_id
@_name
@_attempt
def exchange(run_id: str, name: str, attempt: int) -> None:
    """Stand in the node's rounds of benchmarks between two nodes, while all of the run's nodes do."""
    _exchange(run_id, name, attempt, again=False)


@node.command()
@_run_id
@_name
@_attempt
def exchange_again(run_id: str, name: str, attempt: int) -> None:
    """The same, in the rounds that were added to tell bad nodes from their partners."""
    _exchange(run_id, name, attempt, again=True)


def _exchange(run_id: str, name: str, attempt: int, *, again: bool) -> None:
    from pipelines import stages

    settings, store = deployment()
    done = stages.exchange(settings, store, run_id, name, attempt, click.echo, again=again)
    click.echo(f"{len(done)} raw outputs are in the store")


@node.command()
@_run_id
@_name
@_attempt
def stage(run_id: str, name: str, attempt: int) -> None:  # noqa: ARG001 - every verb here is called alike
    """Fetch the node's share of a planned staging into its cache."""
    from pipelines.datasets import stagings

    settings, store = deployment()
    done = stagings.on_node(settings, store, run_id, name, click.echo)
    click.echo(f"{stagings.failures(done)} shards could not be had")


@node.command()
@_run_id
@_name
@_attempt
@click.option(
    "--sample", type=click.FloatRange(0, 100, min_open=True), default=100.0, metavar="PERCENT", help="Of them."
)
@click.option("--rate", type=options.Size(), default=0, help="Bytes per second at most, e.g. 100MB; 0: no limit.")
@click.option("--sha256/--no-sha256", help="Compare the identity too, not only the fast hash.")
def scrub_cache(run_id: str, name: str, attempt: int, sample: float, rate: int, sha256: bool) -> None:  # noqa: ARG001
    """Read the shards in the node's cache again; what is damaged is put away and fetched again."""
    from pipelines.datasets import scrub

    settings, store = deployment()
    found = scrub.scrub_cache(
        settings, store, cache_of(settings), node=name, sample=sample / 100, seed=run_id,
        bytes_per_s=float(rate) if rate else None, scrub_id=run_id, full=sha256, say=click.echo,
    )  # fmt: skip
    scrub.record(store, found)
    click.echo(f"{len(found.checks)} shards were read")


def variables(path: Path) -> dict[str, str]:
    """What a file of environment variables says, quoted as in a shell or not; `#` begins a comment.

    Raises:
        BadFile: a line that is no NAME=VALUE, or it cannot be read as text.
    """
    found = {}
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise BadFile(str(path), "line 1", f"cannot be read as UTF-8 ({e})") from e
    for number, line in enumerate(text.splitlines(), start=1):
        if len(line) > _LONGEST_VARIABLE:
            raise BadFile(str(path), f"line {number}", f"it is longer than {_LONGEST_VARIABLE} characters")
        try:
            words = shlex.split(line, comments=True)
        except ValueError as e:
            raise BadFile(str(path), f"line {number}", str(e)) from e
        name, equals, value = "".join(words[:1]).partition("=")
        if words and (len(words) > 1 or not equals or not name.isidentifier()):
            raise BadFile(str(path), f"line {number}", "it is not NAME=VALUE")
        if words:
            found[name] = value
    return found


VERBS = (node,)
