"""Rolling coverage: which nodes the nightly run takes, so that it comes to each within so many nights. Pure, but for
`read`.

A node that is busy or down when its turn comes is not covered by that, and so stands first the night after.
"""

from collections.abc import Mapping, Sequence
from datetime import date, timedelta

from pydantic import AwareDatetime

from pipelines.records import Node, Record
from pipelines.storage import Store

_NEVER_PLANNED = "no run has planned it yet"
_NOT_SINCE = "no run has planned it since"


class Turn(Record):
    """When a node was covered."""

    night: date  # UTC, of the run
    started_at: AwareDatetime  # on the node


class History(Record):
    """What the runs of a suite say of the nodes."""

    suite: str
    begun: date | None = None  # the first night of the suite
    covered: Mapping[str, Turn] = {}  # node -> the last time
    reasons: Mapping[str, str] = {}  # node -> why it was not covered since, the last time it was tried


class Overdue(Record):
    """A node that was not covered in time."""

    node: str
    covered: date | None  # the night; None: never
    nights: int  # since then, or since the suite began
    reason: str


def order(nodes: Sequence[Node], covered: Mapping[str, Turn]) -> tuple[Node, ...]:
    """The nodes in the order of their turns: those never covered as given, then the least recently covered.

    It is a queue: whoever is covered goes to its end, so that of two nodes that are always free neither is covered
    twice between two turns of the other.
    """
    never = [node for node in nodes if node.name not in covered]
    before = [node for node in nodes if node.name in covered]
    return (*never, *sorted(before, key=lambda node: (covered[node.name].night, covered[node.name].started_at)))


def tonight(nodes: Sequence[Node], history: History, night: date, within: int) -> tuple[Node, ...]:
    """The nodes that the run of this night takes, in the order of their turns.

    These are a `within`-th of all nodes (more, where more than that have their last night), and every overdue node
    beside them, so that nodes which are down for weeks take no other node's turn. Hence:

    - When no node is busy or down, each is covered at least once in any `within` nights.
    - A node whose `within` nights have passed is taken every night, so the first on which it is free covers it.
    """
    late = {each.node for each in overdue(nodes, history, night, within)}
    due = order([node for node in nodes if node.name not in late], history.covered)
    last_call = sum(_nights_since(node.name, history, night) >= within for node in due)
    share = -(-len(nodes) // within)
    taken = {node.name for node in due[: max(share, last_call)]}
    return tuple(node for node in order(nodes, history.covered) if node.name in taken | late)


def overdue(nodes: Sequence[Node], history: History, night: date, within: int) -> tuple[Overdue, ...]:
    """The nodes that more than `within` nights have not covered before this night, longest first, and why."""
    found = [
        Overdue(
            node=node.name,
            covered=turn.night if (turn := history.covered.get(node.name)) else None,
            nights=nights,
            reason=history.reasons.get(node.name, _NOT_SINCE if turn else _NEVER_PLANNED),
        )
        for node in nodes
        if (nights := _nights_since(node.name, history, night)) > within
    ]
    return tuple(sorted(found, key=lambda each: -each.nights))


def _nights_since(node: str, history: History, night: date) -> int:
    """Nights since the node was covered; since the eve of the suite's first night, where it never was."""
    turn = history.covered.get(node)
    last = turn.night if turn else (history.begun or night) - timedelta(days=1)
    return (night - last).days


def read(store: Store, suite: str) -> History:
    """The history of a suite in the landed runs, whoever started them.

    A run has covered a node when something of it was measured there and most of its jobs were begun: not all, for one
    node that is down must not leave every other uncovered that was to be tested with it.

    Raises:
        StoreUnreachable, StoreRefused: the tables cannot be read.
    """
    from pipelines.tables.engine import quoted
    from pipelines.tables.query import open_reader

    sql = f"""
        WITH visits AS (
            SELECT node, run_id, any_value(night) AS night, min(started_at) AS started_at,
                   bool_or(outcome = 'ok') AND 2 * count(attempt) > count(*) AS covered,
                   arg_max(outcome || ': ' || reason, coalesce(started_at, landed_at)) FILTER (outcome <> 'ok')
                       AS reason
            FROM runs WHERE suite = {quoted(suite)} GROUP BY node, run_id
        ), placed AS (
            SELECT *, max(run_id) FILTER (covered) OVER (PARTITION BY node) AS last FROM visits
        )
        SELECT node, min(night), max(night) FILTER (run_id = last), max(started_at) FILTER (run_id = last),
               arg_max(reason, run_id) FILTER (last IS NULL OR run_id > last)
        FROM placed GROUP BY node
    """  # noqa: S608
    with open_reader(store) as reader:
        found = reader.query(sql).rows
    return History(
        suite=suite,
        begun=min((first for _, first, *_ in found), default=None),
        covered={node: Turn(night=night, started_at=at) for node, _, night, at, _ in found if night is not None},
        reasons={node: reason for node, *_, reason in found if reason is not None},
    )
