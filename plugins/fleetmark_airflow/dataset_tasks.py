"""The tasks of the dataset DAGs: each calls one stage of the library and hands ids on, never data."""

import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset, get_current_context, task
from airflow.sdk.exceptions import AirflowSkipException

from fleetmark_airflow.form import nodes_of
from fleetmark_airflow.on_node import ON_NODE
from fleetmark_airflow.tasks import deployment, require_known_parameters, run

if TYPE_CHECKING:
    from pipelines.datasets.events import Scrub
    from pipelines.datasets.publications import Request

log = logging.getLogger("fleetmark")

DATASETS = Asset("fleetmark_datasets", "fleetmark://tables/datasets")
"""Updated by every publication; the event's extra holds dataset, version and tag."""

THOROUGHNESS = (
    "--sample={{ params.sample_percent }}",
    "--rate={{ ((params.rate_mb_per_s or 0) * 1000000) | int }}",
    "--{{ '' if params.sha256 else 'no-' }}sha256",
)
"""How `fleetmark node scrub-cache` is called, see `on_node`."""


@task
def plan_publication() -> list[str]:
    """List the source and plan the shards. Returns the chunks, each as `<publication>/<number>`."""
    from pipelines.datasets import publish

    require_known_parameters()
    settings, store = deployment()
    request = _request()
    if get_current_context()["params"]["dry_run"]:
        for name, value in publish.preview(settings, store, request):
            log.info("%s=%s", name, value)
        raise AirflowSkipException("dry run: nothing was published")
    made = publish.plan(settings, store, request)
    log.info(
        "publication=%s files=%d bytes=%d groups=%d chunks=%d parent=%s",
        made.publication, made.files, made.size_bytes, made.groups, made.chunks, made.parent,
    )  # fmt: skip
    return [f"{made.publication}/{number}" for number in range(made.chunks)]


@task(map_index_template="{{ task.op_kwargs['chunk'] }}")
def pack(chunk: str) -> None:
    """Pack one chunk of the plan; what was packed before is not read again."""
    from pipelines.datasets import publications, publish
    from pipelines.datasets.meter import Meter

    settings, store = deployment()
    publication, _, number = chunk.partition("/")
    planned = publications.load(store, _dataset(), publication)
    meter = Meter(log.info, planned.size_bytes, planned.groups, "shards")
    publish.pack(settings, store, planned, int(number), meter)
    log.info("%s", meter.line())


@task(outlets=[DATASETS])
def commit(chunks: list[str]) -> str:
    """Publish the version and move the tag. Returns the version's id."""
    from pipelines.datasets import commit as committer
    from pipelines.datasets import publications

    settings, store = deployment()
    planned = publications.load(store, _dataset(), chunks[0].partition("/")[0])
    made = committer.commit(settings, store, planned, datetime.now(UTC))
    log.info("version=%s shards=%d stored_bytes=%d", made.reference, len(made.body.shards), made.stored_bytes)
    event = get_current_context()["outlet_events"][DATASETS]
    event.extra = {"dataset": made.dataset, "version": made.version, "tag": planned.request.tag}
    return made.version


@task
def land_versions() -> int:
    """Land a row for each version that the table `datasets` does not have yet. Returns how many."""
    from pipelines.tables import datasets as rows

    return rows.land_versions(deployment()[1], datetime.now(UTC))


@task
def plan_staging() -> list[str]:
    """Decide which versions go to which nodes, and write that down. Returns the nodes."""
    from pipelines.datasets import stagings

    require_known_parameters()
    settings, store = deployment()
    params = dict(get_current_context()["params"])
    made = stagings.plan(
        settings,
        store,
        stagings.Request(
            versions=params["versions"], shards=params["shards"], copies=params["copies"], **nodes_of(params)
        ),
        run(),
    )
    for share in made.shares:
        log.info(
            "version=%s shards=%d bytes=%d nodes=%d",
            share.version,
            len(share.shards),
            share.size_bytes,
            len(made.nodes),
        )
    return list(made.nodes)


@task(map_index_template="{{ task.op_kwargs['node'] }}", **ON_NODE)
def stage(node: str) -> int:
    """Fetch this node's share into its cache. Returns how many shards could not be had; their rows say why."""
    from pipelines.datasets import stagings

    settings, store = deployment()
    done = stagings.on_node(settings, store, run(), node, log.info)
    return stagings.failures(done)


@task(trigger_rule="all_done_min_one_success")
def land_staging() -> int:
    """Land a row for every transfer. Returns how many."""
    from pipelines.tables import datasets as rows

    return rows.land_staging(deployment()[1], run())


@task
def datasets_to_scrub() -> list[str]:
    """The datasets that were asked for, by default all that have a version."""
    from pipelines.datasets import catalog

    require_known_parameters()
    return _asked_datasets() or catalog.datasets(deployment()[1])


@task
def nodes_to_scrub() -> list[str]:
    """The nodes whose caches are scrubbed."""
    from pipelines import inventory

    params = dict(get_current_context()["params"])
    if not params["caches"]:
        return []
    settings, _ = deployment()
    chosen = nodes_of(params)
    fleet = inventory.load(settings.inventory)
    return [node.name for node in inventory.select_working(fleet, chosen["nodes"], chosen["sample"], seed=run())]


@task(map_index_template="{{ task.op_kwargs['dataset'] }}")
def scrub_store(dataset: str) -> int:
    """Read a dataset's shards in the store again. Returns how many are not intact; their rows say what was done."""
    from pipelines.datasets import scrub
    from pipelines.datasets.cache import Cache

    settings, store = deployment()
    cache = Cache.of(settings)
    found = scrub.scrub_store(settings, store, dataset, scrub_id=run(), cache=cache, say=log.info, **_thoroughness())
    return _recorded(found)


@task(map_index_template="{{ task.op_kwargs['node'] }}", **ON_NODE)
def scrub_cache(node: str) -> int:
    """Read what this node's cache holds again. Returns how many shards are not intact."""
    from pipelines.datasets import scrub
    from pipelines.datasets.cache import Cache

    settings, store = deployment()
    found = scrub.scrub_cache(
        settings, store, Cache.of(settings), node=node, scrub_id=run(), say=log.info, **_thoroughness()
    )
    return _recorded(found)


@task(trigger_rule="all_done_min_one_success")
def land_scrub() -> int:
    """Land a row for every shard that was read. Returns how many."""
    from pipelines.tables import datasets as rows

    return rows.land_scrub(deployment()[1], run())


@task
def datasets_to_collect() -> list[str]:
    """The datasets that were asked for, by default all, those whose versions were all removed, too."""
    from pipelines.datasets import names

    require_known_parameters()
    return _asked_datasets() or deployment()[1].folders_under(names.root())


@task(map_index_template="{{ task.op_kwargs['dataset'] }}")
def collect(dataset: str) -> None:
    """Delete what no version needs, or only print it."""
    from pipelines.datasets import gc

    params = get_current_context()["params"]
    grace = timedelta(days=params["grace_days"])
    _, store = deployment()
    done = gc.collect(store, dataset, run(), grace, params["dry_run"], log.info)
    log.info(" ".join(f"{name}={value}" for name, value in done if not isinstance(value, tuple)))


def _recorded(found: "Scrub") -> int:
    """Keep what a scrub found; how many shards are not intact."""
    from pipelines.datasets import scrub
    from pipelines.datasets.events import Finding

    scrub.record(deployment()[1], found)
    wrong = [check for check in found.checks if check.finding is not Finding.INTACT]
    for check in wrong:
        log.warning("finding=%s dataset=%s shard=%s reason=%s", check.finding, check.dataset, check.shard, check.reason)
    log.info("place=%s checks=%d not_intact=%d", found.place, len(found.checks), len(wrong))
    return len(wrong)


def _request() -> "Request":
    from pipelines.datasets.manifest import Packing
    from pipelines.datasets.publications import Request

    params = get_current_context()["params"]
    return Request(
        source=params["source"],
        dataset=params["dataset"],
        tag=params["tag"],
        packing=Packing(
            format=params["format"], shard_bytes=params["shard_mib"] * 2**20, zstd_level=params["zstd_level"]
        ),
        parent=None if params["pack_anew"] else params["parent"] or "",
        note=params["note"] or "",
    )


def _dataset() -> str:
    return str(get_current_context()["params"]["dataset"])


def _asked_datasets() -> list[str]:
    return list(get_current_context()["params"]["datasets"])


def _thoroughness() -> dict[str, Any]:
    params = get_current_context()["params"]
    rate = params["rate_mb_per_s"]
    return {
        "sample": params["sample_percent"] / 100,
        "seed": run(),
        "bytes_per_s": rate and rate * 1_000_000,
        "full": params["sha256"],
    }
