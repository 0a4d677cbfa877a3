"""Deciding what is staged: which shards are hot, which node takes which, and what has to go for it. Pure."""

import heapq
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Annotated

import xxhash
from pydantic import AwareDatetime, Field, NonNegativeInt

from pipelines.datasets.manifest import Manifest, Sha256, Shard
from pipelines.errors import BadReference, CacheFull, Unknown
from pipelines.records import Record

_PART = re.compile(r"^([0-9]{1,6})/([0-9]{1,6})$")
_DIGEST = re.compile(r"^[0-9a-f]{6,64}$")


class Policy(Record):
    """`infra/hot.toml`: what every node should have, the most wanted first."""

    datasets: tuple[str, ...] = ()  # NAME[@TAG|@ID]
    budget_share: Annotated[float, Field(gt=0, le=1)] = 0.8  # of a cache's budget; the rest is for what jobs ask for


class Cached(Record):
    """A shard in a cache."""

    sha256: Sha256
    dataset: str
    size_bytes: NonNegativeInt
    used_at: AwareDatetime
    is_pinned: bool
    is_in_use: bool


class Room(Record):
    """A cache's space, in bytes. `held_bytes` counts everything in it, downloads under way and damaged files too."""

    path: str
    budget_bytes: NonNegativeInt
    held_bytes: NonNegativeInt
    free_bytes: NonNegativeInt
    floor_bytes: NonNegativeInt

    def lacking(self, needed_bytes: int) -> int:
        """How many bytes have to go before so many more may come; 0 or less when none."""
        over_budget = self.held_bytes + needed_bytes - self.budget_bytes
        below_floor = self.floor_bytes - (self.free_bytes - needed_bytes)
        return max(over_budget, below_floor)

    def without(self, gone_bytes: int) -> "Room":
        """The room when so much has gone. The disk itself may say so only later (btrfs, XFS)."""
        freed = {"held_bytes": self.held_bytes - gone_bytes, "free_bytes": self.free_bytes + gone_bytes}
        return self.model_copy(update=freed)


def choose(manifest: Manifest, which: str) -> tuple[Shard, ...]:
    """The version's distinct shards that `which` names: `all`, `i/n` (the i-th of n parts), or digits of hashes.

    Raises:
        BadReference: it is none of these.
        Unknown: the version has no shard that begins with these digits.
    """
    distinct = {shard.sha256: shard for shard in manifest.body.shards}
    if which == "all":
        return tuple(distinct.values())
    if part := _PART.match(which):
        number, parts = int(part[1]), int(part[2])
        if not 1 <= number <= parts:
            raise BadReference(which, f"a part is one of 1/{parts} to {parts}/{parts}")
        return tuple(shard for place, shard in enumerate(distinct.values()) if place % parts == number - 1)
    chosen = []
    for digits in which.split(","):
        if not _DIGEST.match(digits):
            raise BadReference(which, "shards are `hot`, `all`, `i/n`, or the first digits of their sha256")
        found = [shard for sha256, shard in distinct.items() if sha256.startswith(digits)]
        if not found:
            raise Unknown(f"shard of {manifest.reference}", digits, tuple(distinct)[:5])
        chosen += found
    return tuple({shard.sha256: shard for shard in chosen}.values())


def hot(
    wanted: Sequence[Manifest], used_at: Mapping[str, datetime], budget_bytes: int
) -> tuple[tuple[Manifest, tuple[Shard, ...]], ...]:
    """What fits into a byte budget of the versions, the most wanted first; of each its most recently used shards first.

    A shard that several versions have counts once.
    """
    taken: set[str] = set()
    chosen = []
    for manifest in wanted:
        shards = []
        for shard in sorted(choose(manifest, "all"), key=_recency(used_at)):
            if shard.sha256 in taken:
                shards.append(shard)
            elif shard.size_bytes <= budget_bytes:
                budget_bytes -= shard.size_bytes
                taken.add(shard.sha256)
                shards.append(shard)
        chosen.append((manifest, tuple(shards)))
    return tuple(chosen)


def _recency(used_at: Mapping[str, datetime]) -> Callable[[Shard], float]:
    return lambda shard: -used_at[shard.sha256].timestamp() if shard.sha256 in used_at else 0.0


def share(shards: Iterable[Shard], nodes: Sequence[str], node: str, copies: int | None) -> tuple[Shard, ...]:
    """A node's part of the shards: all of them, or those that rendezvous hashing puts there, each on `copies` nodes.

    A node that goes takes its own part with it and moves no other (Thaler and Ravishankar, 1998).
    """
    if copies is None:
        return tuple(shards)
    return tuple(shard for shard in shards if node in holders(shard.sha256, nodes, copies))


def holders(sha256: str, nodes: Sequence[str], copies: int) -> tuple[str, ...]:
    """The nodes that keep a shard, the best one first."""
    return tuple(heapq.nlargest(copies, nodes, key=lambda node: xxhash.xxh3_128_digest(f"{node}\0{sha256}".encode())))


def evict(present: Iterable[Cached], room: Room, needed_bytes: int, wanted: frozenset[str]) -> tuple[str, ...]:
    """The shards that go so that `needed_bytes` fit: the least recently used, never one pinned, in use or wanted.

    Raises:
        CacheFull: it would not fit even then.
    """
    lacking, going, kept_bytes = room.lacking(needed_bytes), [], 0
    for each in sorted(present, key=lambda cached: cached.used_at):
        if each.is_pinned or each.is_in_use or each.sha256 in wanted:
            kept_bytes += each.size_bytes
        elif lacking > 0:
            going.append(each.sha256)
            lacking -= each.size_bytes
    if lacking > 0:
        raise CacheFull(room.path, needed_bytes, room.budget_bytes, room.free_bytes, room.floor_bytes, kept_bytes)
    return tuple(going)
