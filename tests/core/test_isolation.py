"""Which node is to blame: laws over fleets with one bad node or link, as a run and its re-tests see them."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import isolation, plan
from pipelines.isolation import UNANSWERED, Judgement, Results, Trial
from pipelines.records import Job, Outcome, Plan, Suite, SuiteEntry
from pipelines.tournament import Rules
from tests import make

GOOD, SLOW = 1e9, 1e8
Carries = Callable[[frozenset[str]], float | None]
"""What a pair of nodes measures."""


def planned(size: int, pairs: str = "quick", repeats: int = 1) -> Plan:
    entries = tuple(
        SuiteEntry(benchmark="iperf3", params={"streams": streams}, pairs=pairs, repeats=repeats)  # type: ignore[arg-type]
        for streams in (1, 8)
    )
    nodes = tuple(make.node(f"gpu-{number:02d}") for number in range(size))
    suite = Suite(name="network", description="", entries=entries)
    return plan.make(suite, nodes, run_id=make.RUN_ID, created_at=make.AT, trigger="cli")


def measured(jobs: tuple[Job, ...], carries: Carries) -> Results:
    return {job.job_id: carries(frozenset((job.node, job.peer or ""))) for job in jobs}


def judged(made: Plan, carries: Carries) -> tuple[Judgement, ...]:
    """What is said after the pairs of the plan and those that are tested again."""
    retest = isolation.retest(made, measured(made.jobs, carries), Rules())
    whole = made.model_copy(update={"jobs": (*made.jobs, *retest.jobs)})
    return tuple(isolation.judgements(whole, measured(whole.jobs, carries)))


@given(st.integers(4, 40), st.data(), st.sampled_from([SLOW, None]))
def test_one_bad_node_is_named_in_each_case_and_no_other(size: int, data: st.DataObject, value: float | None) -> None:
    bad = f"gpu-{data.draw(st.integers(0, size - 1)):02d}"
    found = judged(planned(size), lambda pair: value if bad in pair else GOOD)
    assert {each.node for each in found if each.verdict == "bad"} == {bad}
    assert {each.verdict for each in found if each.node != bad} == {"good"}
    assert {each.case for each in found if each.node == bad} == {"tcp", "tcp-j8"}


def test_a_bad_link_is_named_at_both_of_its_ends_and_neither_node_is_bad() -> None:
    ends = frozenset(("gpu-01", "gpu-02"))
    found = judged(planned(6, "all"), lambda pair: SLOW if pair == ends else GOOD)
    assert {each.node: each.bad_links for each in found if each.bad_links} == {
        "gpu-01": ("gpu-02",),
        "gpu-02": ("gpu-01",),
    }
    assert {each.verdict for each in found} == {"good"}


def test_two_nodes_that_fail_cannot_be_told_apart() -> None:
    found = judged(planned(2), lambda _: None)
    assert {each.verdict for each in found} == {"undecided"}


def test_where_all_do_well_nothing_is_tested_again() -> None:
    made = planned(9)
    assert isolation.retest(made, measured(made.jobs, lambda _: GOOD), Rules()).jobs == ()


def test_what_is_tested_again_has_rounds_ids_and_repeats_of_its_own() -> None:
    made = planned(8, repeats=2)
    results = measured(made.jobs, lambda pair: SLOW if "gpu-03" in pair else GOOD)
    again = isolation.retest(made, results, Rules()).jobs
    assert again
    assert all(job.again and job.repeat == 3 for job in again)
    assert min(job.round or 0 for job in again) == max(job.round or 0 for job in made.jobs) + 1
    assert not {job.job_id for job in again} & {job.job_id for job in made.jobs}
    assert isolation.retest(made, results, Rules()).jobs == again


def test_a_node_that_said_nothing_is_not_judged_by_what_others_missed_of_it() -> None:
    made = planned(6)
    results = measured(made.jobs, lambda _: GOOD)
    met = {job.job_id: results[job.job_id] for job in made.jobs if "gpu-02" not in (job.node, job.peer)}
    found = isolation.judgements(made, met)
    assert {each.node for each in found if each.verdict == "undecided"} == {"gpu-02"}


@pytest.mark.parametrize(
    ("outcome", "values", "facts", "result"),
    [
        (Outcome.OK, (3.0, 2.0), {}, {"job-1": 2.0}),
        (Outcome.TRUNCATED, (), {}, {"job-1": None}),
        (Outcome.TOOL_FAILED, (), {}, {"job-1": None}),
        (Outcome.NOT_MEASURED, (), {UNANSWERED: "Connection timed out"}, {"job-1": None}),
        (Outcome.NOT_MEASURED, (), {}, {}),
        (Outcome.CONTENDED, (), {}, {}),
        (Outcome.CONFIG, (), {}, {}),
    ],
)
def test_only_what_the_network_may_have_done_counts(
    outcome: Outcome, values: tuple[float, ...], facts: dict[str, str], result: Results
) -> None:
    assert isolation.results([Trial("job-1", outcome, values, facts)]) == result


def test_of_several_attempts_the_last_counts() -> None:
    attempts = [Trial("job-1", Outcome.TRUNCATED, (), {}), Trial("job-1", Outcome.OK, (1.0,), {})]
    assert isolation.results(attempts) == {"job-1": 1.0}
    assert isolation.results([*attempts, Trial("job-1", Outcome.CONTENDED, (), {})]) == {}
