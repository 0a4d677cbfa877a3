"""Staging over nodes: which versions and shards go to which of them; and one node's share of that."""

from collections.abc import Callable

from pydantic import NonNegativeInt, PositiveInt

from pipelines import inventory
from pipelines.datasets import catalog, names, stage, stage_plan
from pipelines.datasets.events import Arrival, Staging
from pipelines.datasets.manifest import Manifest, Sha256, Shard, VersionId
from pipelines.errors import KeyNotFound, Unknown
from pipelines.records import Name, Record
from pipelines.settings import Settings
from pipelines.storage import Store


class Request(Record):
    """What a person asks for."""

    versions: tuple[str, ...] = ()  # NAME[@TAG|@ID]; none: those of the hot policy
    shards: str = "all"  # all, hot, or i/n
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
