"""Verbs that put a store's content away, and bring it back."""

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipelines import console
from pipelines.commands import options

if TYPE_CHECKING:
    from pipelines.storage import Store

_place = click.argument("place", metavar="DIR|URL")
_endpoint = click.option("--endpoint", help="Endpoint URL of its S3 server; default: the store's.")
_DUMP = "airflow.dump"


class _MakeByDefault(click.Group):
    """A group whose first argument may be a place: `make` is meant then."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, *ctx.help_option_names}:
            args = ["make", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_MakeByDefault)
def backup() -> None:
    """Put the store away: `fleetmark backup DIR|URL` is short for `fleetmark backup make DIR|URL`."""


@backup.command()
@_place
@_endpoint
@click.option("--database/--no-database", default=True, help="Airflow's, if it is PostgreSQL; default: with it.")
@options.as_json
def make(place: str, endpoint: str | None, database: bool, as_json: bool) -> None:
    """Copy all of the store to a directory or a bucket: tables, plans, evidence, datasets. A second one copies news.

    Runs may land meanwhile: each is in it as a whole or not at all. Interrupted, the same command goes on.
    """
    from pipelines import backup as backups
    from pipelines import database as databases
    from pipelines import settings, storage

    current = settings.load()
    url = databases.configured() if database else None
    with tempfile.TemporaryDirectory() as folder:
        dump = Path(folder) / _DUMP
        if url:  # before the store: what Airflow calls done is in the store then
            databases.dump(url, dump)
        to = _opened(place, endpoint)
        made = backups.make(storage.open_store(current), to, datetime.now(UTC), console.say, dump if url else None)
    if as_json:
        return console.emit(made.model_dump(mode="json", exclude={"objects"}) | {"objects": len(made.objects)})
    for key in made.left_out:
        console.say(f"left out, it is not a name of ours: {key!r}")
    return console.say(
        f"backup {made.backup_id}: {len(made.objects)} objects, {options.size(made.size_bytes)}; "
        f"{made.copied_objects} of them, {options.size(made.copied_bytes)}, were new"
        f"{', and the database of Airflow' if made.database else ''}"
    )


@backup.command()
@_place
@_endpoint
@click.option("--keep", type=click.IntRange(min=1), required=True, help="How many of each store stay, the newest.")
@click.option("--delete", is_flag=True, help="Do it; otherwise it is only said what would go.")
@options.as_json
def prune(place: str, endpoint: str | None, keep: int, delete: bool, as_json: bool) -> None:
    """Delete all backups but the newest, and the objects that only those had. Without --delete nothing is.

    Refused while a backup is being made there, and where a backup that stays lacks an object. Interrupted, the same
    command goes on.
    """
    from pipelines import backup as backups

    done = backups.prune(_opened(place, endpoint), keep, not delete)
    if as_json:
        return console.emit(done.model_dump(mode="json"))
    for each in done.stay:
        console.say(f"{'stays':12}{each}")
    for each in done.go:
        console.say(f"{'deleted' if delete else 'would go':12}{each}")
    how = "deleted" if delete else "would go; --delete does it"
    return console.say(f"{len(done.go)} backups, {done.objects} objects, {options.size(done.size_bytes)} {how}")


@click.command()
@_place
@_endpoint
@click.option("--backup", "backup_id", help="Which one; default: the newest.")
@click.option("--check", is_flag=True, help="Read every byte of the backup and compare it; write nothing.")
@click.option("--database/--no-database", default=True, help="Airflow's, into an empty one; default: if it is there.")
@options.as_json
def restore(
    place: str, endpoint: str | None, backup_id: str | None, check: bool, database: bool, as_json: bool
) -> None:
    """Bring a backup back into the store of the settings, which must be empty. Interrupted, the same verb goes on."""
    from pipelines import backup as backups
    from pipelines import database as databases
    from pipelines import settings, storage

    source = _opened(place, endpoint)
    of = backups.load(source, backup_id)
    if check:
        wrong = backups.damaged(source, of)
        if as_json:
            console.emit({"backup_id": of.backup_id, "objects": len(of.objects), "damaged": wrong})
        else:
            console.say("\n".join(wrong) or f"backup {of.backup_id}: {len(of.objects)} objects are what they were")
        raise SystemExit(1 if wrong else 0)
    dumped = of.database if database else None
    url = databases.configured() if dumped else None

    def then() -> None:
        if url and dumped:
            with tempfile.TemporaryDirectory() as folder:
                backups.fetch(source, dumped, Path(folder) / _DUMP)
                databases.restore(url, Path(folder) / _DUMP)

    written = backups.restore(source, of, storage.open_store(settings.load()), console.say, then)
    if as_json:
        return console.emit({"backup_id": of.backup_id, "objects": written, "database": bool(url)})
    return console.say(
        f"{written} objects of backup {of.backup_id} are in the store{', and the database' if url else ''}"
    )


def _opened(place: str, endpoint: str | None) -> "Store":
    from pipelines import settings, storage

    url = place if "://" in place else f"file://{Path(place).absolute()}"
    changed = {"store": url} | ({"s3_endpoint": endpoint} if endpoint else {})
    return storage.open_store(settings.load().model_copy(update=changed))


VERBS = (backup, restore)
