"""Verbs that move and check shards: stage, download, verify, scrub, collect; and this node's cache."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines import console
from pipelines.commands import options
from pipelines.commands.datasets import dataset, tables_are_here

if TYPE_CHECKING:
    from pipelines.datasets.cache import Cache
    from pipelines.datasets.events import Scrub
    from pipelines.settings import Settings
    from pipelines.storage import Store

_DIGITS = 12


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

    current, store = _deployment()
    used_at = {each.sha256: each.used_at for each in _cache(current).present()}
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

    _, store = _deployment()
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

    _, store = _deployment()
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

    current, store = _deployment()
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
            done = [scrubber.scrub_cache(current, store, _cache(current), node=current.node, say=say, **how)]
        else:
            cache = _cache(current) if current.cache_root.is_dir() else None
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

    _, store = _deployment()
    grace = timedelta(days=grace_days)
    done = [collector.collect(store, each, "cli", grace, not delete, console.say) for each in _datasets(store, name)]
    if as_json:
        console.emit([each.model_dump(mode="json") for each in done])


@click.group(cls=console.Verbs)
def cache() -> None:
    """Look after this node's cache of shards: FLEETMARK_CACHE, FLEETMARK_CACHE_BYTES, FLEETMARK_CACHE_FLOOR_BYTES."""


@cache.command()
@options.as_json
def ls(as_json: bool) -> None:
    """List the shards in the cache, and what room there is."""
    current, _ = _deployment()
    here = _cache(current)
    present, room = here.present(), here.room()
    if as_json:
        return console.emit([each.model_dump(mode="json") for each in present])
    console.table(
        ("shard", "dataset", "size", "last used", ""),
        [
            (
                each.sha256[:_DIGITS],
                each.dataset,
                options.size(each.size_bytes),
                f"{each.used_at:%Y-%m-%d %H:%M}",
                " ".join(word for word, holds in (("pinned", each.is_pinned), ("in use", each.is_in_use)) if holds),
            )
            for each in present
        ],
    )
    return console.say(
        f"{options.size(room.held_bytes)} of {options.size(room.budget_bytes)} held in {room.path}; "
        f"{options.size(room.free_bytes)} free on its disk, {options.size(room.floor_bytes)} must stay free"
    )


@cache.command("verify")
@options.as_json
def verify_cache(as_json: bool) -> None:
    """Read every shard in the cache; what is damaged is put away and will be fetched again."""
    current, _ = _deployment()
    here = _cache(current)
    damaged = []
    for each in here.present():
        note = here.note(each.sha256)
        if note is None or here.verify(note.shard) is False:
            here.quarantine(each.sha256)
            damaged.append(each.sha256)
    if as_json:
        console.emit({"damaged": damaged})
    if damaged:
        raise console.Failed(f"{len(damaged)} shards were damaged and put away: {', '.join(damaged)}")
    if not as_json:
        click.echo("every shard in the cache is intact")


@cache.command()
@click.argument("version", metavar="NAME[@TAG|@ID]")
@options.as_json
def pin(version: str, as_json: bool) -> None:
    """Keep a version's shards in the cache, those that are staged later, too, until `unpin`."""
    from pipelines.datasets import catalog, names

    current, store = _deployment()
    found, reference = catalog.load(store, version), str(names.parse(version))
    _cache(current).pin(reference, found)
    if as_json:
        return console.emit({"pinned": reference, "version": found.version})
    return console.say(f"{reference} is pinned at {found.version}: {len(found.body.shards)} shards")


@cache.command()
@click.argument("version", metavar="NAME[@TAG|@ID]")
@options.as_json
def unpin(version: str, as_json: bool) -> None:
    """Let a pinned version's shards be evicted again. Name it as it was pinned."""
    from pipelines.datasets import names
    from pipelines.errors import Unknown

    current, _ = _deployment()
    here, reference = _cache(current), str(names.parse(version))
    if not here.unpin(reference):
        raise Unknown("pin", reference, tuple(each.reference for each in here.pins()))
    return console.emit({"unpinned": reference}) if as_json else console.say(f"{reference} is no longer pinned")


@cache.command()
@click.argument("shards", nargs=-1, metavar="[SHARD]...")
@click.option("--all", "everything", is_flag=True, help="Every shard that is neither pinned nor in use.")
@options.as_json
def evict(shards: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """Remove shards from the cache, named by the first digits of their hash. Pinned ones and those in use stay."""
    current, _ = _deployment()
    here = _cache(current)
    if not shards and not everything:
        raise click.UsageError("name shards, or say --all")
    going = here.evict(each.sha256 for each in here.present() if everything or any(map(each.sha256.startswith, shards)))
    return console.emit({"evicted": going}) if as_json else console.say(f"{len(going)} shards evicted")


@cache.command("gc")
@options.as_json
def gc_cache(as_json: bool) -> None:
    """Remove what nobody will use: downloads abandoned for a day, damaged shards, folders that killed jobs left."""
    from pipelines.datasets.materialise import reclaim

    current, _ = _deployment()
    here = _cache(current)
    reclaim(here, console.say)
    gone = here.gc()
    return console.emit({"removed": gone}) if as_json else console.say(f"{len(gone)} files removed")


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
        console.say(f"{check.finding} {check.dataset} {check.shard[:_DIGITS]}: {check.reason}")
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


def _cache(current: "Settings") -> "Cache":
    from pipelines.datasets.cache import Cache

    return Cache.of(current)


def _deployment() -> "tuple[Settings, Store]":
    from pipelines import settings, storage

    current = settings.load()
    return current, storage.open_store(current)


VERBS = (cache,)
