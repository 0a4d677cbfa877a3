"""Which nodes meet in which round, and what their meetings say: tournaments, re-tests, and the bad node. Pure.

In a round a node stands in one pair at most, so that no pair shares a node's link with another.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import count
from statistics import median
from typing import Annotated, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from pipelines.records import Name, Record

Meeting = tuple[str, str]  # client, server
Round = tuple[Meeting, ...]


class Rules(Record):
    """How the pairs of a run find each other."""

    base_port: Annotated[int, Field(ge=1024, le=65534)] = 5201
    ports: Annotated[int, Field(ge=2, le=5000)] = 1000  # from `base_port` on, to be open between nodes
    wait_s: PositiveFloat = 120.0  # how much later than the first node another may begin and miss no round

    @model_validator(mode="after")
    def _ports_exist(self) -> Self:
        if self.base_port + self.ports > 65536:
            raise ValueError("base_port and ports go beyond 65535, the last port")
        return self


def everyone(nodes: Sequence[str]) -> tuple[Round, ...]:
    """A round-robin tournament: every pair once, in one round less than nodes, or as many where their number is odd."""
    return tuple(_round(nodes, number) for number in range(len(nodes) - 1 + len(nodes) % 2)) if len(nodes) > 1 else ()


def quick(nodes: Sequence[str]) -> tuple[Round, ...]:
    """Some rounds of that tournament, log2 of the nodes rounded up, after which all nodes are connected.

    The first two are neighbours, whose pairs together make one cycle through all nodes (of an odd number: one path).
    The distances between the others double, so that from any node to any other it is few meetings.
    """
    rounds = math.ceil(math.log2(len(nodes))) if len(nodes) > 1 else 0
    return tuple(_round(nodes, 2**number - 1) for number in range(rounds))


def _round(nodes: Sequence[str], number: int) -> Round:
    """Round `number` of the circle method: one node stands in the middle, the others turn by one place a round.

    Source: E. Lucas, Recreations mathematiques, 1883; https://en.wikipedia.org/wiki/Round-robin_tournament
    """
    seats = len(nodes) + len(nodes) % 2
    turning = seats - 1
    pairs = [(turning, number % turning)]
    pairs += [((number + k) % turning, (number - k) % turning) for k in range(1, seats // 2)]
    present = [(a, b) for a, b in pairs if a < len(nodes) and b < len(nodes)]
    return tuple((nodes[a], nodes[b]) if (a + b) % 2 else (nodes[min(a, b)], nodes[max(a, b)]) for a, b in present)


def ports(rules: Rules, most_pairs: int) -> Iterator[Iterator[int]]:
    """For each step of a run one after the other, the ports of its pairs.

    A step's ports are not those of the step before, so that a client which comes late meets no other pair's server. In
    one step ports differ from pair to pair as far as there are enough, though a node has one pair only.
    """
    width = max(1, min(most_pairs, rules.ports // 2))
    blocks = rules.ports // width
    for step in count():
        first = rules.base_port + step % blocks * width
        yield (first + pair % width for pair in count())


# --- what the meetings say ----------------------------------------------------------------------------------


class Met(Record):
    """How one pair did. `value` is what is compared, more is better; None: the test failed."""

    client: Name
    server: Name
    value: NonNegativeFloat | None

    @property
    def nodes(self) -> frozenset[str]:
        return frozenset((self.client, self.server))


class Verdict(Record):
    """The nodes and links to look after. `undecided`: nodes that failed, without enough good partners to say why."""

    bad: tuple[Name, ...] = ()
    links: tuple[tuple[Name, Name], ...] = ()
    undecided: tuple[Name, ...] = ()


def failing(outcomes: Sequence[Met], slow: float = 0.5) -> tuple[Met, ...]:
    """The pairs that failed, or whose value is less than `slow` times the median of all."""
    wanted = least(outcomes, slow)
    return tuple(each for each in outcomes if each.value is None or each.value < wanted)


def least(outcomes: Sequence[Met], slow: float = 0.5) -> float:
    """The value that a pair needs not to be slow; 0 where none has any."""
    values = [each.value for each in outcomes if each.value is not None]
    return slow * median(values) if values else 0.0


def isolation(
    outcomes: Sequence[Met], known_good: Collection[str] = (), partners: int = 2, slow: float = 0.5
) -> tuple[Round, ...]:
    """The rounds that test each suspect again, each time with another partner that is good.

    Good are the nodes that are known to be, and those of more passing than failing pairs; suspects are the other nodes
    of failing pairs. No rounds where there is no suspect, or no good node to test it with.
    """
    good, suspects = _sides(outcomes, known_good, slow)
    rounds = []
    for turn in range(min(partners, len(good))):
        for first in range(0, len(suspects), len(good)):
            some = suspects[first : first + len(good)]
            rounds.append(tuple((node, good[(i + turn) % len(good)]) for i, node in enumerate(some)))
    return tuple(rounds)


def verdict(
    outcomes: Sequence[Met], again: Sequence[Met], known_good: Collection[str] = (), slow: float = 0.5
) -> Verdict:
    """What a run and its re-tests say together.

    A suspect is bad when more of its pairs with good nodes fail than pass, cleared when fewer do, else undecided. A
    failing pair of two nodes that are good or cleared is a bad link. What is slow is measured against both together.
    """
    good, suspects = _sides(outcomes, known_good, slow)
    every = (*outcomes, *again)
    failed = frozenset(failing(every, slow))
    balance = _balances(frozenset(good), every, failed)
    fine = {*good, *(node for node in suspects if balance[node] < 0)}
    return Verdict(
        bad=tuple(node for node in suspects if balance[node] > 0),
        links=tuple(sorted({_ordered(each) for each in failed if each.nodes <= fine})),
        undecided=tuple(node for node in suspects if balance[node] == 0),
    )


def _sides(outcomes: Sequence[Met], known_good: Collection[str], slow: float) -> tuple[list[str], list[str]]:
    """The good nodes, those that are known to be first, and the suspects."""
    failed = frozenset(failing(outcomes, slow))
    nodes = frozenset(node for each in outcomes for node in each.nodes)
    balance = _balances(nodes, outcomes, failed)
    passing = {node for node in nodes if balance[node] < 0}
    good = [*sorted(known_good), *sorted(passing - set(known_good))]
    return good, sorted({node for each in failed for node in each.nodes} - set(good))


def _balances(partners: frozenset[str], every: Sequence[Met], failed: frozenset[Met]) -> Counter[str]:
    """For each node, how many more of its pairs with these partners fail than pass."""
    balance: Counter[str] = Counter()
    for each in every:
        for node, partner in ((each.client, each.server), (each.server, each.client)):
            if partner in partners:
                balance[node] += 1 if each in failed else -1
    return balance


def _ordered(met: Met) -> tuple[str, str]:
    return min(met.nodes), max(met.nodes)
