"""Lanes: limits on racks and power domains hold with one-slot pools and nothing else."""

import re
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from hypothesis import given
from hypothesis import strategies as st

from pipelines import lanes
from pipelines.inventory import Inventory
from tests import make

Labels = Mapping[str, str]


def fleet(labels: Sequence[Labels], limits: Mapping[str, int] | None = None) -> Inventory:
    nodes = tuple(make.node(f"n{number:05}", labels=each) for number, each in enumerate(labels))
    known = {key: limit for key, limit in (limits or {}).items() if any(key in each for each in labels)}
    return Inventory(nodes=nodes, limits=known)


def nested(racks: int, nodes_per_rack: int, racks_per_domain: int) -> list[Labels]:
    return [
        {"rack": f"r{rack}", "power_domain": f"p{rack // racks_per_domain}"}
        for rack in range(racks)
        for _ in range(nodes_per_rack)
    ]


def most_at_once(inventory: Inventory, key: str) -> dict[str, int]:
    """For each value of a label in how many lanes its nodes are."""
    found = lanes.of(inventory)
    of_value: dict[str, set[str]] = defaultdict(set)
    for node in inventory.nodes:
        if key in node.labels:
            of_value[node.labels[key]].add(found[node.name])
    return {value: len(names) for value, names in of_value.items()}


def sizes(inventory: Inventory) -> list[int]:
    return sorted(Counter(lanes.of(inventory).values()).values())


values = st.sampled_from(["a", "b", "c", "p-1", "r 1/ü", ""])
some_labels = st.lists(
    st.dictionaries(st.sampled_from(["rack", "power_domain", "row", "node", "a-b"]), values, max_size=4),
    min_size=1,
    max_size=40,
)
some_limits = st.dictionaries(
    st.sampled_from(["rack", "power_domain", "row", "node", "a-b"]), st.integers(1, 5), max_size=5
)


@given(some_labels, some_limits)
def test_every_limit_holds_whatever_the_labels_are(labels: list[Labels], limits: dict[str, int]) -> None:
    inventory = fleet(labels, limits)
    for key, limit in inventory.limits.items():
        assert max(most_at_once(inventory, key).values()) <= limit


@given(some_labels, some_limits)
def test_every_node_is_in_one_lane_and_the_same_one_each_time(labels: list[Labels], limits: dict[str, int]) -> None:
    inventory = fleet(labels, limits)
    assert tuple(lanes.of(inventory)) == inventory.names
    assert lanes.of(inventory) == lanes.of(inventory)


@given(some_labels, some_limits)
def test_a_lane_has_a_name_that_airflow_takes_for_a_pool(labels: list[Labels], limits: dict[str, int]) -> None:
    for name in lanes.of(fleet(labels, limits)).values():
        assert re.fullmatch(r"[A-Za-z0-9_.-]{1,256}", name)


@given(some_labels, some_limits)
def test_a_node_under_no_limit_shares_its_lane_with_nobody(labels: list[Labels], limits: dict[str, int]) -> None:
    inventory = fleet(labels, limits)
    found = lanes.of(inventory)
    shared = Counter(found.values())
    for node in inventory.nodes:
        if not inventory.limits.keys() & node.labels.keys():
            assert (found[node.name], shared[found[node.name]]) == (f"node-{node.name}", 1)


@given(some_labels, some_limits)
def test_nodes_share_a_lane_only_where_they_share_a_limit_or_a_chain_of_them(
    labels: list[Labels], limits: dict[str, int]
) -> None:
    inventory = fleet(labels, limits)
    together: dict[str, list[set[tuple[str, str]]]] = defaultdict(list)
    for node in inventory.nodes:
        own = {(key, value) for key, value in node.labels.items() if key in inventory.limits}
        together[lanes.of(inventory)[node.name]].append(own)
    for left in together.values():
        reached = set(left.pop())
        while grown := [own for own in left if own & reached]:
            left[:] = [own for own in left if not own & reached]
            reached.update(*grown)
        assert not left


@given(some_labels, some_limits, st.sampled_from([{}, {"rack": "a"}, {"rack": "b", "power_domain": "a", "row": "c"}]))
def test_those_who_share_a_lane_still_do_when_a_node_is_added_at_the_end(
    labels: list[Labels], limits: dict[str, int], last: Labels
) -> None:
    before, after = lanes.of(fleet(labels, limits)), lanes.of(fleet([*labels, last], limits))
    for name in set(before.values()):
        assert len({after[node] for node, lane in before.items() if lane == name}) == 1


@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))
def test_a_node_added_at_the_end_moves_no_other_where_racks_lie_in_one_power_domain(
    racks: int, nodes: int, per_domain: int, rack_limit: int, domain_limit: int
) -> None:
    labels = nested(racks, nodes, per_domain)
    limits = {"power_domain": domain_limit, "rack": rack_limit}
    before = lanes.of(fleet(labels, limits))
    after = lanes.of(fleet([*labels, labels[0]], limits))
    assert before == {node: after[node] for node in before}


@given(st.integers(1, 60), st.integers(1, 12))
def test_the_lanes_of_a_group_are_as_many_as_may_run_and_differ_by_a_node_at_most(nodes: int, limit: int) -> None:
    found = sizes(fleet([{"power_domain": "p1"}] * nodes, {"power_domain": limit}))
    assert len(found) == min(nodes, limit)
    assert found[-1] - found[0] <= 1


def test_racks_of_a_power_domain_share_its_lanes_evenly() -> None:
    inventory = fleet(nested(racks=4, nodes_per_rack=4, racks_per_domain=4), {"power_domain": 4, "rack": 2})
    assert sizes(inventory) == [4, 4, 4, 4]
    assert most_at_once(inventory, "rack") == {"r0": 2, "r1": 2, "r2": 2, "r3": 2}


def test_lanes_are_named_after_the_first_limit_that_a_node_is_under() -> None:
    labels = [{"power_domain": "p1", "rack": "r1"}] * 3 + [{"rack": "r7"}, {}, {"rack": "r 1/ü"}]
    found = lanes.of(fleet(labels, {"power_domain": 2, "rack": 3}))
    *named, odd = found.values()
    assert named == ["power_domain-p1-1", "power_domain-p1-2", "power_domain-p1-1", "rack-r7-1", "node-n00004"]
    assert re.fullmatch(r"lane-rack_r_1_-[0-9a-f]{10}-1", odd)


def test_racks_that_lie_across_power_domains_leave_fewer_lanes_and_break_no_limit() -> None:
    labels = [{"rack": "r1"}, {"rack": "r1"}, {"power_domain": "p1"}, {"power_domain": "p1"}]
    crossing = fleet([*labels, {"rack": "r1", "power_domain": "p1"}], {"rack": 2, "power_domain": 2})
    assert most_at_once(crossing, "rack") == {"r1": 2}
    assert most_at_once(crossing, "power_domain") == {"p1": 2}
    assert len(set(lanes.of(crossing).values())) == 3


def test_names_of_different_lanes_never_meet() -> None:
    labels = [{"a": "b-1"}, {"a-b": "1"}, {"a": "b"}, {"node": "n00004-1"}, {}]
    found = lanes.of(fleet(labels, {"a": 1, "a-b": 1, "node": 1}))
    assert len(set(found.values())) == len(labels)


def test_the_lanes_of_ten_thousand_nodes_are_found_in_well_under_a_second() -> None:
    inventory = fleet(nested(1250, 8, 10), {"power_domain": 8, "rack": 2})
    spent = []
    for _ in range(3):
        began = time.process_time()
        found = lanes.of(inventory)
        spent.append(time.process_time() - began)
    assert (len(found), len(set(found.values()))) == (10_000, 125 * 8)
    assert min(spent) < 0.5
