"""Tournaments and what they say, as laws over any number of nodes and as tables of truth."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations, islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import plan, tournament
from pipelines.errors import BadParameter, BadSelection
from pipelines.records import Plan, Suite, SuiteEntry
from pipelines.tournament import Met, Round, Rules, Verdict
from tests import make

SIZES = st.integers(min_value=2, max_value=130)


def names(size: int) -> list[str]:
    return [f"gpu-{number:03d}" for number in range(size)]


def each_once(rounds: Sequence[Round]) -> bool:
    return all(max(Counter(node for pair in pairs for node in pair).values()) == 1 for pairs in rounds)


def pairs_of(rounds: Sequence[Round]) -> list[frozenset[str]]:
    return [frozenset(pair) for pairs in rounds for pair in pairs]


@given(SIZES)
def test_in_a_whole_tournament_each_pair_meets_once_and_no_node_twice_in_a_round(size: int) -> None:
    rounds = tournament.everyone(names(size))
    assert sorted(map(sorted, pairs_of(rounds))) == [list(pair) for pair in combinations(names(size), 2)]
    assert each_once(rounds)
    assert len(rounds) == (size if size % 2 else size - 1)


@given(SIZES)
def test_a_quick_tournament_connects_all_nodes_in_log2_rounds_without_meeting_anyone_twice(size: int) -> None:
    rounds = tournament.quick(names(size))
    pairs = pairs_of(rounds)
    assert len(rounds) == math.ceil(math.log2(size))
    assert each_once(rounds)
    assert len(set(pairs)) == len(pairs)
    reached = {names(size)[0]}
    while grown := {node for pair in pairs if pair & reached for node in pair} - reached:
        reached |= grown
    assert reached == set(names(size))


@given(SIZES)
def test_a_node_sits_out_one_round_of_a_quick_tournament_at_most(size: int) -> None:
    rounds = tournament.quick(names(size))
    met = Counter(node for pair in pairs_of(rounds) for node in pair)
    assert all(met[node] >= len(rounds) - size % 2 for node in names(size))


def test_one_node_meets_nobody() -> None:
    assert tournament.everyone(["a"]) == tournament.quick(["a"]) == ()


@given(pairs=st.integers(1, 3000), ports=st.integers(2, 5000))
def test_a_port_is_in_its_range_and_not_one_of_the_step_before(pairs: int, ports: int) -> None:
    rules = Rules(base_port=20_000, ports=ports)
    steps = [set(islice(step, pairs)) for step in islice(tournament.ports(rules, pairs), 5)]
    assert all(20_000 <= port < 20_000 + ports for step in steps for port in step)
    assert not any(one & other for one, other in pairwise(steps))
    assert all(len(step) == min(pairs, max(1, ports // 2)) for step in steps)


# --- plans --------------------------------------------------------------------------------------------------


def planned(size: int, *entries: SuiteEntry, **asked: object) -> Plan:
    suite = Suite(name="network", description="", entries=entries or (SuiteEntry(benchmark="iperf3"),))
    nodes = tuple(make.node(name) for name in names(size))
    return plan.make(suite, nodes, run_id=make.RUN_ID, created_at=make.AT, trigger="cli", **asked)  # type: ignore[arg-type]


@given(st.integers(2, 20))
def test_a_plan_has_no_node_twice_in_a_test_of_a_round_and_rounds_that_follow_each_other(size: int) -> None:
    both = {"protocol": ("tcp", "udp")}
    made = planned(size, SuiteEntry(benchmark="iperf3", matrix=both, pairs="all", repeats=2))
    steps = Counter((job.round, job.case, job.repeat, node) for job in made.jobs for node in (job.node, job.peer))
    assert set(steps.values()) == {1}
    assert [job.round for job in made.jobs] == sorted(job.round or 0 for job in made.jobs)
    assert len(made.jobs) == len({job.job_id for job in made.jobs}) == size * (size - 1) // 2 * 4
    closes = {job.round: job.closes_s for job in made.jobs}
    assert list(closes.values()) == sorted(closes.values())  # type: ignore[type-var]
    assert Plan.model_validate_json(made.model_dump_json()) == made


def test_a_round_ends_after_the_wait_and_the_time_of_all_tests_up_to_it() -> None:
    made = planned(4, rules=Rules(wait_s=100.0))
    assert made.jobs[0].seconds == 7.0
    assert [job.closes_s for job in made.jobs] == [115.5, 115.5, 131.0, 131.0]


def test_a_node_knows_the_jobs_it_does_alone_from_those_in_which_it_is_one_of_two() -> None:
    made = planned(2, SuiteEntry(benchmark="iperf3"), SuiteEntry(benchmark="fio"))
    for name in names(2):
        assert [job.benchmark for job in made.solo_jobs_of(name)] == ["fio"]
        assert [job.benchmark for job in made.pair_jobs_of(name)] == ["iperf3"]


def test_a_suite_of_pairs_on_one_node_is_refused() -> None:
    with pytest.raises(BadSelection, match="measures between two nodes"):
        planned(1)
    assert {job.benchmark for job in planned(1, SuiteEntry(benchmark="iperf3"), SuiteEntry(benchmark="fio")).jobs} == {
        "fio"
    }


def test_pairs_of_a_benchmark_on_one_node_are_refused() -> None:
    with pytest.raises(BadParameter, match="parameter 'pairs'"):
        planned(2, SuiteEntry(benchmark="fio", pairs="all"))


# --- verdicts -----------------------------------------------------------------------------------------------


def met(*pairs: str) -> list[Met]:
    """`ab` passed, `ab!` failed, `ab~` was slow."""
    values = {"": 10.0, "!": None, "~": 2.0}
    return [Met(client=pair[0], server=pair[1], value=values[pair[2:]]) for pair in pairs]


@pytest.mark.parametrize(
    ("first", "again", "expected"),
    [
        (met("ab", "cd", "bc", "da"), [], Verdict()),
        # e fails with everyone: its partners pass with more than they fail with, so they are good
        (met("ab", "cd", "ac", "bd", "ae!", "be!", "ad", "bc"), [], Verdict(bad=("e",))),
        (met("ab", "cd", "ac", "bd", "ae~", "be~", "ad", "bc"), [], Verdict(bad=("e",))),
        # a quick tournament: one pass and one failure decide nothing, the re-tests do
        (met("ab!", "cd", "bc", "da", "ef", "fc", "ed"), met("ac", "ad", "bc", "bd"), Verdict(links=(("a", "b"),))),
        (met("ab!", "cd", "bc", "da", "ef", "fc", "ed"), met("ac", "ad", "bc!", "bd!"), Verdict(bad=("b",))),
        (met("ab!", "cd", "bc", "da", "ef", "fc", "ed"), met("ac!", "ad!", "bc!", "bd!"), Verdict(bad=("a", "b"))),
        (met("ab!", "cd", "bc", "da", "ef", "fc", "ed"), [], Verdict(links=(("a", "b"),))),
        (met("ab!"), [], Verdict(undecided=("a", "b"))),
    ],
)
def test_outcomes_name_the_bad_nodes_and_links(first: list[Met], again: list[Met], expected: Verdict) -> None:
    assert tournament.verdict(first, again) == expected


def test_a_node_known_to_be_good_decides_where_the_run_alone_does_not() -> None:
    first = met("ab!")
    assert tournament.isolation(first, known_good=("g",)) == ((("a", "g"),), (("b", "g"),))
    assert tournament.verdict(first, met("ag", "bg!"), known_good=("g",)) == Verdict(bad=("b",))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))
def test_each_suspect_is_tested_again_with_other_good_nodes_once_a_round(bad: int, good: int, partners: int) -> None:
    suspects, fine = [f"s{i}" for i in range(bad)], [f"g{i}" for i in range(good)]
    outcomes = [Met(client=node, server="other", value=None) for node in suspects]
    rounds = tournament.isolation(outcomes, fine, partners)
    assert each_once(rounds)
    tested = [pair for pairs in rounds for pair in pairs]
    assert len(set(tested)) == len(tested)
    assert {Counter(node for node, _ in tested)[node] for node in suspects} == {min(partners, good)}
    assert {partner for _, partner in tested} <= set(fine)


@given(st.data(), st.integers(6, 24))
def test_one_bad_node_of_a_whole_tournament_is_named_and_no_other(data: st.DataObject, size: int) -> None:
    bad = data.draw(st.sampled_from(names(size)))
    rounds = tournament.everyone(names(size))
    outcomes = [Met(client=a, server=b, value=None if bad in (a, b) else 1.0) for pairs in rounds for a, b in pairs]
    assert tournament.verdict(outcomes, []) == Verdict(bad=(bad,))


@given(st.data(), st.integers(6, 40))
def test_one_bad_node_of_a_quick_tournament_is_named_after_its_re_tests(data: st.DataObject, size: int) -> None:
    bad = data.draw(st.sampled_from(names(size)))

    def play(rounds: Sequence[Round]) -> list[Met]:
        return [Met(client=a, server=b, value=None if bad in (a, b) else 1.0) for pairs in rounds for a, b in pairs]

    first = play(tournament.quick(names(size)))
    assert tournament.verdict(first, play(tournament.isolation(first))) == Verdict(bad=(bad,))
