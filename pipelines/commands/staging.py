"""Verbs that move and check shards: stage, download, verify, scrub, collect."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines import console
from pipelines.commands import options
from pipelines.commands.dataset_views import DIGITS
from pipelines.commands.datasets import dataset, tables_are_here

if TYPE_CHECKING:
    from pipelines.datasets.cache import Cache
    from pipelines.datasets.events import Scrub
    from pipelines.settings import Settings
    from pipelines.storage import Store


@dataset.command()
@click.argument("versions", nargs=-1, metavar="[NAME[@TAG|@ID]]...")
@click.option(
    "--shards",
    "which",
    default="all",
    show_default=True,
    help="all; hot (as much as infra/hot.toml gives of the cache's budget); i/n: the i-th of n parts, from 1; or the "
    "first digits of shards' hashes, with commas between.",
)
@options.as_json
def stage(versions: tuple[str, ...], which: str, as_json: bool) -> None:
    """Fetch shards into this node's cache, verified. Without a version: what infra/hot.toml and the suites name.

    What is there is read back and kept; an interrupted download goes on at its last good block.
    """
    import uuid

    from pipelines import keys
    from pipelines.datasets import stage as stager
    from pipelines.datasets import stagings

    current, store = deployment()
    used_at = {each.sha256: each.used_at for each in cache_of(current).present()}
    now = datetime.now(UTC)
    staging = keys.run_id(now, uuid.uuid4().hex)
    chosen = stagings.chosen(current, store, versions, which, used_at)
    with console.progress() as say:
        parts = [stager.stage(current, store, each, shards, staging_id=staging, say=say) for each, shards in chosen]
    done = stagings.together(parts)
    stager.record(store, done)
    if tables_are_here():
        from pipelines.tables import datasets as rows

        rows.land_staging(store, staging)
    if as_json:
        console.emit(done.model_dump(mode="json"))
    else:
        for each, _ in chosen:
            mine = [transfer for transfer in done.transfers if transfer.version == each.version]
            here = sum(not transfer.reason for transfer in mine)
            fetched = options.size(sum(transfer.fetched_bytes for transfer in mine))
            click.echo(f"{each.reference}: {here} of {len(mine)} shards here, {fetched} fetched")
    if failed := stagings.failures(done):
        raise console.Failed(f"{failed} shards could not be had: see above")


@dataset.command()
@click.argument("version", metavar="NAME[@TAG|@ID]")
@click.argument("target", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--as",
    "form",
    type=click.Choice(["shards", "files"]),
    help="The shards as they are, or the files as they were. Default: shards of tar and parquet, files of blob.",
)
@click.option("--overwrite", is_flag=True, help="Replace files that are there and have other bytes.")
@options.as_json
def download(version: str, target: Path, form: str | None, overwrite: bool, as_json: bool) -> None:
    """Write a version to a directory, verified; interrupted, the same command goes on where it was."""
    from pipelines.datasets import catalog
    from pipelines.datasets import download as downloader

    _, store = deployment()
    found = catalog.load(store, version)
    wanted = form or ("files" if found.body.packing.format == "blob" else "shards")
    with console.progress() as say:
        done = downloader.download(store, found, target, "files" if wanted == "files" else "shards", say, overwrite)
    if as_json:
        return console.emit({"version": found.version, "target": str(target), "as": wanted, **done.model_dump()})
    return click.echo(f"{found.reference} is in {target}: {done.files} {wanted}, {options.size(done.size_bytes)}")


@dataset.command()
@click.argument("version", metavar="NAME[@TAG|@ID]")
@options.as_json
def verify(version: str, as_json: bool) -> None:
    """Read every shard and every index of a version in the store and compare it with the manifest."""
    from pipelines import bulk
    from pipelines.datasets import catalog
    from pipelines.datasets import verify as verifier
    from pipelines.datasets.meter import Meter

    _, store = deployment()
    found = catalog.load(store, version)
    with console.progress() as say:
        meter = Meter(say, found.stored_bytes, len({shard.sha256 for shard in found.body.shards}), "shards")
        damaged = verifier.damaged(store, bulk.of(store), found, meter)
        say(meter.line())
    if as_json:
        console.emit({"version": found.version, "intact": not damaged, "damaged": damaged})
    for sentence in damaged:
        console.say(sentence)
    if damaged:
        raise console.Failed(f"{found.reference}: {len(damaged)} objects are damaged or missing; see `dataset scrub`")
    if not as_json:
        click.echo(f"{found.reference} is intact")


@dataset.command()
@click.argument("name", required=False)
@click.option("--sample", type=click.FloatRange(0, 100, min_open=True), metavar="PERCENT", help="Of the shards.")
@click.option("--sha256", is_flag=True, help="Compare the identity too, not only the fast hash.")
@click.option("--rate", type=options.Size(), help="Bytes per second at most, e.g. 100MB.")
@click.option("--cache", "of_cache", is_flag=True, help="Scrub this node's cache instead of the store.")
@options.as_json
def scrub(
    name: str | None, sample: float | None, sha256: bool, rate: int | None, of_cache: bool, as_json: bool
) -> None:
    """Read what is stored, or cached, again; put damage away and repair what has a good copy on the other side."""
    import uuid

    from pipelines import keys
    from pipelines.datasets import scrub as scrubber

    current, store = deployment()
    found_names = _datasets(store, name)
    scrub_id = keys.run_id(datetime.now(UTC), uuid.uuid4().hex)
    how: Any = {
        "sample": sample / 100 if sample else None,
        "seed": scrub_id,
        "bytes_per_s": float(rate) if rate else None,
        "scrub_id": scrub_id,
        "full": sha256,
    }
    with console.progress() as say:
        if of_cache:
            done = [scrubber.scrub_cache(current, store, cache_of(current), node=current.node_name, say=say, **how)]
        else:
            cache = cache_of(current) if current.cache_root.is_dir() else None
            done = [scrubber.scrub_store(current, store, each, cache=cache, say=say, **how) for each in found_names]
    _finish_scrub(store, scrub_id, done, as_json)


@dataset.command()
@click.argument("name", required=False)
@click.option("--delete", is_flag=True, help="Delete; without it, only say what would be deleted.")
@click.option(
    "--grace-days",
    type=click.FloatRange(min=0),
    default=7.0,
    show_default=True,
    help="What is younger than this stays.",
)
@options.as_json
def gc(name: str | None, delete: bool, grace_days: float, as_json: bool) -> None:
    """Collect what no version needs: of one dataset, or of all of them.

    Shards and indexes that no manifest names, versions that were removed, leftovers of publications that were never
    finished. While a publication of a dataset is under way, nothing of it is deleted.
    """
    from pipelines.datasets import gc as collector

    _, store = deployment()
    grace = timedelta(days=grace_days)
    done = [collector.collect(store, each, "cli", grace, not delete, console.say) for each in _datasets(store, name)]
    if as_json:
        console.emit([each.model_dump(mode="json") for each in done])


def _finish_scrub(store: "Store", scrub_id: str, done: "list[Scrub]", as_json: bool) -> None:
    """Keep what was found, land it where tables can be written, and say it."""
    from pipelines.datasets import scrub as scrubber
    from pipelines.datasets.events import Finding

    for each in done:
        scrubber.record(store, each)
    if tables_are_here():
        from pipelines.tables import datasets as rows

        rows.land_scrub(store, scrub_id)
    checks = [check for each in done for check in each.checks]
    wrong = [check for check in checks if check.finding is not Finding.INTACT]
    if as_json:
        console.emit([each.model_dump(mode="json") for each in done])
    for check in wrong:
        console.say(f"{check.finding} {check.dataset} {check.shard[:DIGITS]}: {check.reason}")
    if not as_json:
        click.echo(f"{len(checks)} checked, {len(checks) - len(wrong)} intact")
    if any(check.finding in {Finding.DAMAGED, Finding.MISSING} for check in wrong):
        raise console.Failed("damage without a good copy: publish the dataset again from its source")


def _datasets(store: "Store", name: str | None) -> list[str]:
    """The dataset that was named, or all of them. Raises: Unknown."""
    from pipelines.datasets import catalog, names
    from pipelines.errors import Unknown

    known = store.folders_under(names.root())  # one whose versions are all removed has something to collect
    if name is not None and names.checked("dataset", name) not in known:
        raise Unknown("dataset", name, tuple(catalog.datasets(store)))
    return [name] if name else known


def cache_of(current: "Settings") -> "Cache":
    """This node's cache, made if it is not there."""
    from pipelines.datasets.cache import Cache

    return Cache.of(current)


def deployment() -> "tuple[Settings, Store]":
    """The settings, and the store they name."""
    from pipelines import settings, storage

    current = settings.load()
    return current, storage.open_store(current)
