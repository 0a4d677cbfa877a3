"""Lanes: one-slot pools, each node in one of them, so that no rack or power domain runs more nodes than it may. Pure.

Airflow has no limit on tasks by label, but no two tasks of a one-slot pool run at once. So where at most k nodes of a
group may run at once, the group's nodes share k lanes.
"""

import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from heapq import heappop, heappush, heapreplace

from pipelines import keys
from pipelines.inventory import Inventory
from pipelines.records import Node

_KEY = re.compile(r"[A-Za-z0-9_.]{1,60}")
_VALUE = re.compile(r"[A-Za-z0-9_.-]{1,120}")
_NOT_IN_POOLS = re.compile(r"[^A-Za-z0-9_.]+")
_TAKEN = ("node", "lane", "pair", "planning")  # what other names of pools begin with


@dataclass(eq=False)
class _Lane:
    name: str
    number: int  # older lanes have lower ones
    nodes: list[str] = field(default_factory=list)
    groups: dict["_Group", None] = field(default_factory=dict)

    def take(self, nodes: Iterable[str], groups: Iterable["_Group"]) -> None:
        self.nodes.extend(nodes)
        for group in groups:
            self.groups[group] = None
            group.let_in(self)


@dataclass(eq=False)
class _Group:
    """The nodes with one value of a label that is limited, and the lanes they are in so far."""

    title: str
    limit: int
    lanes: dict[_Lane, None] = field(default_factory=dict)
    founded: int = 0
    _waiting: list[tuple[int, int, _Lane]] = field(default_factory=list)  # a heap by length and age, put right lazily

    @property
    def is_full(self) -> bool:
        return len(self.lanes) >= self.limit

    def let_in(self, lane: _Lane) -> None:
        if lane not in self.lanes:
            self.lanes[lane] = None
            heappush(self._waiting, (len(lane.nodes), lane.number, lane))

    def shortest_first(self) -> Generator[_Lane, None, None]:
        """Its lanes by length, equal ones by age, each with as little work as it takes: a group may have thousands."""
        seen = []
        try:
            while self._waiting:
                length, number, lane = self._waiting[0]
                if lane not in self.lanes:
                    heappop(self._waiting)
                elif length < len(lane.nodes):
                    heapreplace(self._waiting, (len(lane.nodes), number, lane))
                else:
                    seen.append(heappop(self._waiting))
                    yield lane
        finally:
            for each in seen:
                heappush(self._waiting, each)


def of(inventory: Inventory) -> Mapping[str, str]:
    """The lane of each node, in the inventory's order; a lane's name is that of its pool.

    Nodes with an equal value of a limited label are in at most as many lanes as the limit says, whichever labels they
    have besides. A node under no limit has a lane of its own. Nodes are placed one after the other: each opens a new
    lane where all of its limits allow one, and else joins the shortest that they allow. So a node that is added at the
    end of the inventory moves no other, except where labels cross (a rack that lies in two power domains) and leave it
    no lane: then lanes become one, and those who shared a lane still do.
    """
    groups: dict[tuple[str, str], _Group] = {}
    lanes: list[_Lane] = []
    for node in inventory.nodes:
        own = _groups_of(node, inventory.limits, groups)
        lane = _allowed(own)
        if lane is None:
            lane = _Lane(_name(node, own), len(lanes))
            lanes.append(lane)
        lane.take((node.name,), own)
    found = {node: lane.name for lane in lanes for node in lane.nodes}
    return {name: found[name] for name in inventory.names}


def _groups_of(node: Node, limits: Mapping[str, int], groups: dict[tuple[str, str], _Group]) -> list[_Group]:
    own = []
    for key, limit in limits.items():
        if (value := node.labels.get(key)) is not None:
            own.append(groups.setdefault((key, value), _Group(_title(key, value), limit)))
    return own


def _allowed(own: Sequence[_Group]) -> _Lane | None:
    """The lane that a node of these groups joins; None where it may have a new one."""
    full = sorted((group for group in own if group.is_full), key=lambda group: len(group.lanes))
    if not full:
        return None
    return _shortest(full, [group for group in own if not group.is_full]) or _joined(full)


def _shortest(full: Sequence[_Group], roomy: Sequence[_Group]) -> _Lane | None:
    """The shortest lane that each of the full groups has; of equal ones that which is new to most of the others."""
    fewest, *others = full
    best: tuple[int, int] | None = None
    found = None
    with closing(fewest.shortest_first()) as lanes:
        for lane in lanes:
            if best and len(lane.nodes) > best[0]:
                break
            if all(lane in group.lanes for group in others):
                known = sum(lane in group.lanes for group in roomy)
                if best is None or known < best[1]:
                    best, found = (len(lane.nodes), known), lane
                if not known:
                    break
    return found


def _joined(full: Sequence[_Group]) -> _Lane:
    """One lane made of several, so that each of these groups has it. No group has more lanes after it than before."""
    chosen: list[_Lane] = []
    while without := [group for group in full if not any(lane in group.lanes for lane in chosen)]:
        candidates = (lane for group in without for lane in group.lanes)
        chosen.append(min(candidates, key=lambda lane: (-sum(lane in g.lanes for g in without), len(lane.nodes))))
    oldest, *others = sorted(chosen, key=lambda lane: lane.number)
    for lane in others:
        for group in lane.groups:
            del group.lanes[lane]
        oldest.take(lane.nodes, lane.groups)
        lane.nodes = []
    return oldest


def _name(node: Node, own: Sequence[_Group]) -> str:
    """`node-gpu-01`, or for a node under limits the first of them and a number: `power_domain-p1-2`."""
    if not own:
        return f"node-{node.name}"
    own[0].founded += 1
    return f"{own[0].title}-{own[0].founded}"


def _title(key: str, value: str) -> str:
    """The label in characters that a pool's name may have; a hash tells apart what then reads the same."""
    if _KEY.fullmatch(key) and _VALUE.fullmatch(value) and key not in _TAKEN:
        return f"{key}-{value}"
    readable = _NOT_IN_POOLS.sub("_", f"{key}_{value}")[:60]
    return f"lane-{readable}-{keys.content_id([key, value], 10)}"
