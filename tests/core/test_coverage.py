"""Rolling coverage: every node within so many nights, the busy ones first the night after."""

import random
from collections import defaultdict
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import coverage
from pipelines.coverage import History, Overdue, Turn
from pipelines.records import Node
from pipelines.storage import Store
from pipelines.tables import land
from tests import make
from tests.tables import nights

FIRST = date(2026, 11, 1)


def fleet(size: int) -> tuple[Node, ...]:
    return tuple(make.node(f"n{number:03}") for number in range(size))


def after(days: int) -> date:
    return FIRST + timedelta(days=days)


def turn(days: int, second: int = 0) -> Turn:
    night = after(days)
    return Turn(night=night, started_at=datetime.combine(night, time(2), UTC) + timedelta(seconds=second))


def names(nodes: tuple[Node, ...]) -> list[str]:
    return [node.name for node in nodes]


class Nights:
    """Night after night over a fleet of which some nodes are not free."""

    def __init__(self, size: int, within: int) -> None:
        self.nodes, self.within = fleet(size), within
        self.history = History(suite="nightly")
        self.taken: dict[str, list[int]] = defaultdict(list)
        self.covered: dict[str, list[int]] = defaultdict(list)
        self.widths: list[int] = []

    def pass_one(self, number: int, busy: frozenset[str]) -> tuple[Node, ...]:
        taken = coverage.tonight(self.nodes, self.history, after(number), self.within)
        free = [node.name for node in taken if node.name not in busy]
        self.widths.append(len(taken))
        for node in taken:
            self.taken[node.name].append(number)
        for name in free:
            self.covered[name].append(number)
        self.history = History(
            suite="nightly",
            begun=FIRST,
            covered={**self.history.covered, **{name: turn(number, at) for at, name in enumerate(free)}},
        )
        return taken


def test_nodes_never_covered_come_first_then_the_least_recently_covered() -> None:
    covered = {"n000": turn(3), "n001": turn(1, 9), "n003": turn(2), "n004": turn(1, 5)}
    assert names(coverage.order(fleet(6), covered)) == ["n002", "n005", "n004", "n001", "n003", "n000"]


@given(st.integers(1, 60), st.integers(1, 12))
def test_a_free_fleet_is_covered_in_time_by_an_equal_share_each_night(size: int, within: int) -> None:
    fleet_nights = Nights(size, within)
    for number in range(4 * within):
        fleet_nights.pass_one(number, frozenset())
    assert set(fleet_nights.widths) == {-(-size // within)}
    for name in names(fleet_nights.nodes):
        turns = fleet_nights.covered[name]
        assert turns[0] < within
        assert max((later - earlier for earlier, later in pairwise(turns)), default=0) <= within


def test_every_node_every_night_is_the_rule_unless_another_is_given() -> None:
    fleet_nights = Nights(7, 1)
    assert names(fleet_nights.pass_one(0, frozenset())) == names(fleet_nights.nodes)
    assert names(fleet_nights.pass_one(1, frozenset({"n003"}))) == names(fleet_nights.nodes)
    assert names(fleet_nights.pass_one(2, frozenset()))[0] == "n003"


def test_a_node_that_was_busy_at_its_turn_is_taken_first_the_next_night() -> None:
    fleet_nights = Nights(20, 5)
    fleet_nights.pass_one(0, frozenset({"n002"}))
    assert names(fleet_nights.pass_one(1, frozenset())) == ["n002", "n004", "n005", "n006"]


@pytest.mark.parametrize("seed", range(5))
def test_whoever_is_free_at_a_turn_in_time_is_covered_in_time_and_the_turns_are_fair(seed: int) -> None:
    """100 nodes, each busy on its own share of the nights, from hardly ever to almost always."""
    chance, within, last = random.Random(seed), 7, 120
    fleet_nights = Nights(100, within)
    often = {name: chance.choice((0.0, 0.1, 0.3, 0.6, 0.95)) for name in names(fleet_nights.nodes)}
    busy_on: dict[int, frozenset[str]] = {}
    for number in range(last):
        busy_on[number] = frozenset(name for name, share in often.items() if chance.random() < share)
        fleet_nights.pass_one(number, busy_on[number])
    for name in names(fleet_nights.nodes):
        begun = [-1, *fleet_nights.covered[name], last]
        for earlier, later in pairwise(begun):
            in_time = range(earlier + within, later)  # from its last night on it is taken every night ...
            assert set(in_time) <= set(fleet_nights.taken[name])
            assert all(name in busy_on[number] for number in in_time)  # ... and only being busy delays it further
    always_free = [len(fleet_nights.covered[name]) for name, share in often.items() if share == 0.0]
    assert max(always_free) - min(always_free) <= 1


def test_nodes_that_are_down_for_weeks_take_no_other_nodes_turn() -> None:
    fleet_nights, down = Nights(100, 10), frozenset(f"n{number:03}" for number in range(40))
    for number in range(60):
        fleet_nights.pass_one(number, down)
    up = [turns for name, turns in fleet_nights.covered.items() if name not in down]
    assert len(up) == 60
    assert max(later - earlier for turns in up for earlier, later in pairwise(turns)) <= 10
    assert fleet_nights.widths[-1] == 10 + 40


def test_an_overdue_node_is_named_with_its_last_reason_the_longest_first() -> None:
    history = History(
        suite="nightly",
        begun=FIRST,
        covered={"n000": turn(9), "n001": turn(1), "n002": turn(3)},
        reasons={"n001": "contended: busy with job 4711", "n000": "old"},
    )
    assert coverage.overdue(fleet(4), history, after(10), within=7) == (
        Overdue(node="n003", covered=None, nights=11, reason="no run has planned it yet"),
        Overdue(node="n001", covered=after(1), nights=9, reason="contended: busy with job 4711"),
    )
    assert coverage.overdue(fleet(4), history, after(10), within=11) == ()


def test_nobody_is_overdue_before_the_first_night() -> None:
    assert coverage.overdue(fleet(3), History(suite="nightly"), FIRST, within=1) == ()


# --- from the tables ----------------------------------------------------------------------------------------


def landed(store: Store, night: date, node: str, *outcomes: str, suite: str = "quick", attempted: bool = True) -> None:
    """A run of one node with a job for each outcome."""
    rows = nights.rows(night, values=(1.0,) * len(outcomes), node=node)["runs"].to_pylist()
    made = [
        {
            **row,
            "run_id": f"{row['run_id']}-{node}",
            "suite": suite,
            "outcome": outcome,
            "reason": "" if outcome == "ok" else f"because {outcome}",
            **({} if attempted or outcome == "ok" else {"attempt": None, "started_at": None}),
        }
        for row, outcome in zip(rows, outcomes, strict=True)
    ]
    run = made[0]["run_id"]
    land.land_table(store, "runs", pa.Table.from_pylist(made, schema=land.TABLES["runs"].schema), f"{run}.001-a", run)


def test_the_tables_say_when_a_node_was_covered_and_why_it_was_not(store: Store) -> None:
    landed(store, after(0), "n000", "ok", "ok")
    landed(store, after(1), "n000", "ok", "tool_failed")
    landed(store, after(2), "n000", "contended", "contended")
    landed(store, after(1), "n001", "tool_failed")
    landed(store, after(3), "n001", "not_measured", attempted=False)
    landed(store, after(4), "n002", "ok", "not_measured", attempted=False)
    landed(store, after(2), "n003", "contended")
    landed(store, after(4), "n003", "ok", "ok", "not_measured", attempted=False)
    landed(store, after(5), "n000", "ok", suite="another")
    assert coverage.read(store, "quick") == History(
        suite="quick",
        begun=after(0),
        covered={"n000": turn(1, 60), "n003": turn(4, 60)},
        reasons={
            "n000": "contended: because contended",
            "n001": "not_measured: because not_measured",
            "n002": "not_measured: because not_measured",
        },
    )


def test_a_store_without_runs_has_no_history(store: Store) -> None:
    assert coverage.read(store, "quick") == History(suite="quick")
