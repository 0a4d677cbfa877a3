"""The inventory of the fleet, and the selection of nodes from it. Pure but for `load`."""

import logging
import random
from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt, ValidationInfo, field_validator

from pipelines import documents
from pipelines.errors import BadSelection, Unknown
from pipelines.records import Name, Node, Record
from pipelines.tournament import Rules

log = logging.getLogger(__name__)

_LONGEST_TERM = 1000  # characters: fnmatch takes time for the square of a glob's brackets
_STORE = "store"  # the place of a scrub of the object store, beside nodes' names


class Tenant(Record):
    """Whoever ad hoc runs are charged to, see `tenants`."""

    node_minutes_per_day: PositiveFloat


class AdHoc(Record):
    """What a run that somebody asks for may take, beside the nightly ones."""

    longest_s: PositiveFloat | None = None  # on one node, which is how long it may keep a nightly run from that node


class Cost(Record):
    """In what `price_per_hour` of the nodes is."""

    currency: Name | None = None  # EUR, USD


class Rounds(Record):
    """How often the nightly run comes to every node, see `coverage`."""

    within_nights: PositiveInt = 1  # 1: every node every night


class Inventory(Record):
    """`infra/fleet.toml`: one [[nodes]] table per machine, and how the fleet is shared."""

    nodes: tuple[Node, ...]
    limits: Mapping[str, PositiveInt] = {}  # label -> how many nodes with an equal value of it may run at once
    tenants: Mapping[Name, Tenant] = {}
    adhoc: AdHoc = AdHoc()
    rounds: Rounds = Rounds()
    pairs: Rules = Rules()
    cost: Annotated[Cost, Field(validate_default=True)] = Cost()

    @field_validator("nodes")
    @classmethod
    def _names_are_unique(cls, nodes: tuple[Node, ...]) -> tuple[Node, ...]:
        if not nodes:
            raise ValueError("needs at least one node")
        name, count = Counter(node.name for node in nodes).most_common(1)[0]
        if count > 1:
            raise ValueError(f"node {name!r} is listed {count} times")
        if any(node.name == _STORE for node in nodes):
            raise ValueError(f"a node cannot be called {_STORE!r}: rows about the object store have that place")
        disks = Counter(serial for node in nodes for serial in node.devices)
        if twice := [serial for serial, times in disks.items() if times > 1 and not serial.startswith("loop:")]:
            raise ValueError(f"device {twice[0]!r} is listed {disks[twice[0]]} times, and a disk is in one node")
        return nodes

    @field_validator("limits")
    @classmethod
    def _limits_are_of_labels(cls, limits: Mapping[str, int], info: ValidationInfo) -> Mapping[str, int]:
        known = {key for node in info.data.get("nodes", ()) for key in node.labels}
        if "nodes" in info.data and (unknown := [key for key in limits if key not in known]):
            raise ValueError(f"no node has the label {unknown[0]!r}; known: {', '.join(sorted(known)) or 'none'}")
        return limits

    @field_validator("cost")
    @classmethod
    def _prices_have_a_currency(cls, cost: Cost, info: ValidationInfo) -> Cost:
        priced = [node.name for node in info.data.get("nodes", ()) if node.price_per_hour]
        if priced and cost.currency is None:
            raise ValueError(f"currency is missing, and node {priced[0]!r} has a price_per_hour")
        return cost

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(node.name for node in self.nodes)


def load(path: Path) -> Inventory:
    """Raises: BadFile: with line and field."""
    return documents.load(path, Inventory)


def select(
    inventory: Inventory, terms: tuple[str, ...] = (), sample: int | None = None, seed: str = ""
) -> tuple[Node, ...]:
    """The nodes that any term names, in inventory order; every node when there is no term.

    A term is a name (`gpu-01`), a glob (`gpu-*`), or conditions on labels and features that must all hold
    (`sku=h200,rack=r1*`, `feature=rdma`). `sample` then keeps that many at random, the same ones for the same `seed`.

    Raises:
        Unknown: a plain name that is not in the inventory.
        BadSelection: a term that selects nothing, or a sample that is not positive.
    """
    return _sampled(_named(inventory, terms), sample, seed)


def select_working(
    inventory: Inventory, terms: tuple[str, ...] = (), sample: int | None = None, seed: str = ""
) -> tuple[Node, ...]:
    """The same for a run, which takes no node that is drained; the log names those that are left out.

    Raises:
        Unknown, BadSelection: as above, or every node of the selection is drained.
    """
    named = _named(inventory, terms)
    working = tuple(node for node in named if not node.drained)
    if drained := [node.name for node in named if node.drained]:
        log.info("drained, left out: nodes=%s", ",".join(drained))
    if not working:
        raise BadSelection(" ".join(terms) or "every node", "the inventory says that each of these nodes is drained")
    return _sampled(working, sample, seed)


def _named(inventory: Inventory, terms: tuple[str, ...]) -> tuple[Node, ...]:
    chosen = set(inventory.names) if not terms else {name for term in terms for name in _matching(inventory, term)}
    return tuple(node for node in inventory.nodes if node.name in chosen)


def _sampled(nodes: tuple[Node, ...], sample: int | None, seed: str) -> tuple[Node, ...]:
    if sample is None:
        return nodes
    if sample < 1:
        raise BadSelection(f"sample {sample}", "a sample has at least 1 node")
    kept = set(random.Random(seed).sample(sorted(node.name for node in nodes), min(sample, len(nodes))))  # noqa: S311
    return tuple(node for node in nodes if node.name in kept)


def _matching(inventory: Inventory, term: str) -> set[str]:
    if len(term) > _LONGEST_TERM:
        raise BadSelection(f"{term[:_LONGEST_TERM]}...", f"a term has at most {_LONGEST_TERM} characters")
    if "=" in term:
        matched = {node.name for node in inventory.nodes if all(_holds(node, part) for part in term.split(","))}
    elif any(character in term for character in "*?["):
        matched = {name for name in inventory.names if fnmatchcase(name, term)}
    elif term in inventory.names:
        return {term}
    else:
        raise Unknown("node", term, inventory.names)
    if not matched:
        raise BadSelection(term, f"matches none of the {len(inventory.nodes)} nodes of the inventory")
    return matched


def _holds(node: Node, condition: str) -> bool:
    key, _, wanted = condition.partition("=")
    if key == "feature":
        return any(fnmatchcase(feature, wanted) for feature in node.features)
    return fnmatchcase(node.labels.get(key, ""), wanted)
