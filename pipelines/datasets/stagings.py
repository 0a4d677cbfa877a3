"""Staging over nodes: which versions and shards go to which of them, and one node's share of that."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from pydantic import NonNegativeInt, PositiveInt

from pipelines import documents, inventory, suites
from pipelines.datasets import catalog, names, stage, stage_plan
from pipelines.datasets.events import Arrival, Staging
from pipelines.datasets.manifest import Manifest, Sha256, Shard, VersionId
from pipelines.datasets.stage_plan import Policy
from pipelines.errors import BadReference, KeyNotFound, Unknown
from pipelines.records import Name, Record
from pipelines.settings import Settings
from pipelines.storage import Store

HOT = "hot"
Say = Callable[[str], None]


class Request(Record):
    """What a person or a schedule asks for."""

    versions: tuple[str, ...] = ()  # NAME[@TAG|@ID]; none: those of the hot policy
    shards: str = "all"  # all, hot, i/n, or digits of hashes
    nodes: tuple[str, ...] = ()  # see inventory.select
    sample: PositiveInt | None = None
    copies: PositiveInt | None = None  # None: each node has each shard


class Share(Record):
    """What is staged of one version, over all nodes."""

    dataset: Name
    version: VersionId
    shards: tuple[Sha256, ...]
    size_bytes: NonNegativeInt


class Plan(Record):
    """Written before anything is fetched: a tag that moves later changes nothing."""

    staging_id: Name
    nodes: tuple[Name, ...]
    copies: PositiveInt | None
    shares: tuple[Share, ...]


def plan(settings: Settings, store: Store, request: Request, staging_id: str) -> Plan:
    """Decide what goes where and write it down; a repeat finds what was written.

    Raises:
        Unknown, BadReference, BadSelection: a version, a shard or a node that there is not.
        BadFile: the inventory or the hot policy is malformed.
    """
    fleet = inventory.select_working(inventory.load(settings.inventory), request.nodes, request.sample, seed=staging_id)
    made = Plan(
        staging_id=staging_id,
        nodes=tuple(node.name for node in fleet),
        copies=request.copies,
        shares=tuple(_share(*each) for each in chosen(settings, store, request.versions, request.shards)),
    )
    store.create(names.staging_plan_key(staging_id), made.model_dump_json().encode())
    return load(store, staging_id)


def load(store: Store, staging_id: str) -> Plan:
    """Raises: Unknown: there is no such staging."""
    try:
        return Plan.model_validate_json(store.read(names.staging_plan_key(staging_id)))
    except KeyNotFound as e:
        raise Unknown("staging", staging_id, ()) from e


def chosen(
    settings: Settings,
    store: Store,
    versions: Sequence[str],
    which: str,
    used_at: Mapping[str, datetime] | None = None,
) -> Sequence[tuple[Manifest, tuple[Shard, ...]]]:
    """The shards of each version. `hot` fills the policy's share of a cache's budget, the most wanted version first.

    Where not all of a version fits, what was used last comes first, as far as `used_at` tells.

    Raises: see `plan`.
    """
    policy = hot_policy(settings)
    named = list(versions) or [*policy.datasets, *needed(settings)]
    if not named:
        raise BadReference(HOT, f"no version was asked for, {settings.hot} names none, and no suite needs one")
    found = {each.reference: each for each in (catalog.load(store, text) for text in named)}
    if which == HOT:
        return stage_plan.hot(tuple(found.values()), used_at or {}, int(settings.cache_bytes * policy.budget_share))
    return [(each, stage_plan.choose(each, which)) for each in found.values()]


def hot_policy(settings: Settings) -> Policy:
    """The policy of the deployment; without a file, nothing is hot. Raises: BadFile."""
    return documents.load(settings.hot, Policy) if settings.hot.exists() else Policy()


def needed(settings: Settings) -> list[str]:
    """The versions that jobs of the suites name. Raises: BadFile."""
    loaded = (suites.load(settings.suites, name) for name in suites.names(settings.suites))
    return [entry.dataset for suite in loaded for entry in suite.entries if entry.dataset]


def on_node(settings: Settings, store: Store, staging_id: str, node: str, say: Say) -> Staging:
    """Bring a node's share of a planned staging into this machine's cache, and keep what was done.

    Raises:
        WrongNode: this machine is another node. And what `stage.stage` raises.
    """
    settings.require_node(node)
    planned = load(store, staging_id)
    here = settings.model_copy(update={"node": node})
    done = []
    for share in planned.shares:
        manifest = catalog.load_version(store, share.dataset, share.version)
        chosen_shards = frozenset(share.shards)
        wanted = [shard for shard in stage_plan.choose(manifest, "all") if shard.sha256 in chosen_shards]
        mine = stage_plan.share(wanted, planned.nodes, node, planned.copies)
        done.append(stage.stage(here, store, manifest, mine, staging_id=staging_id, say=say))
    whole = together(done)
    stage.record(store, whole)
    return whole


def together(parts: Sequence[Staging]) -> Staging:
    """Several versions' transfers of one staging on one node."""
    return parts[0].model_copy(update={"transfers": tuple(each for part in parts for each in part.transfers)})


def failures(of: Staging) -> int:
    """How many shards could not be had."""
    return sum(transfer.arrival is Arrival.FAILED for transfer in of.transfers)


def _share(manifest: Manifest, shards: Sequence[Shard]) -> Share:
    return Share(
        dataset=manifest.dataset,
        version=manifest.version,
        shards=tuple(shard.sha256 for shard in shards),
        size_bytes=sum(shard.size_bytes for shard in shards),
    )
