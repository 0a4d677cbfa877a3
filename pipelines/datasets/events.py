"""What happened to shards: transfers to a node, checks of what is stored. Kept in the store, then landed as rows."""

from enum import StrEnum
from typing import Literal

from pydantic import AwareDatetime, NonNegativeFloat, NonNegativeInt, PositiveInt

from pipelines.datasets.manifest import Sha256, VersionId
from pipelines.records import Name, Record


class Arrival(StrEnum):
    """How a wanted shard came to be in a node's cache."""

    FETCHED = "fetched"
    RESUMED = "resumed"  # the end of it was fetched, an earlier attempt had the beginning
    PRESENT = "present"  # it was there and its bytes were right
    FAILED = "failed"  # it is not there; `reason` says why


class Transfer(Record):
    """One shard, one node, one staging."""

    dataset: Name
    version: VersionId
    shard: Sha256
    size_bytes: PositiveInt
    arrival: Arrival
    reason: str = ""
    fetched_bytes: NonNegativeInt  # over the network
    duration_s: NonNegativeFloat  # monotonic, from the first request, or the first byte read back, to the verified file
    started_at: AwareDatetime


class Staging(Record):
    """What one staging did on one node."""

    schema_version: Literal[1] = 1
    staging_id: Name
    node: Name
    store: str  # URL of the object store
    cache: str  # path of the cache
    environment_id: Name
    transfers: tuple[Transfer, ...]


class Finding(StrEnum):
    """What a check of a shard found."""

    INTACT = "intact"
    MISSING = "missing"  # a manifest names it and it is not there
    DAMAGED = "damaged"  # other bytes; put away, no good copy was found
    REPAIRED = "repaired"  # it was damaged or missing, and a good copy is in its place


class Check(Record):
    """One shard in one place. `place` is `store`, or the name of a node for its cache."""

    dataset: Name
    shard: Sha256
    size_bytes: PositiveInt
    finding: Finding
    reason: str = ""  # empty when intact
    duration_s: NonNegativeFloat
    checked_at: AwareDatetime


class Scrub(Record):
    """What one scrub found in one place."""

    schema_version: Literal[1] = 1
    scrub_id: Name
    place: Name
    checks: tuple[Check, ...]
