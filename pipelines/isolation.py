"""Whose fault it is that pairs of nodes did badly: some are tested again with partners that are good. Pure.

A pair does badly that failed, or that carried less than half of what the median pair of its case does. What is not the
network's doing is no failure: a node that was busy, misconfigured, or never stood in its rounds, is not judged.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from statistics import median
from typing import Literal, NamedTuple

from pipelines import tournament
from pipelines.plan import Timetable
from pipelines.records import Job, Labels, Name, Outcome, Plan, Record
from pipelines.tournament import Met

_PARTNERS = 2  # a suspect is tested with so many others: one of them may have been called good by chance
_SLOW = 0.5  # times the median

UNANSWERED = "unanswered"
"""The fact of a raw output whose peer stood in the round and did not answer; what the client was told."""

Case = tuple[str, str]
Results = Mapping[str, float | None]
"""For each test that says something of the network, what it measured of `Pair.compared`; None: it failed."""


class Retest(Record):
    """The tests that a run does again, decided once, before they begin."""

    run_id: Name
    jobs: tuple[Job, ...]


class Judgement(Record):
    """What the pairs of one case say of a node. `undecided`: there is not enough to tell it from its partners."""

    node: Name
    benchmark: Name
    case: Name
    verdict: Literal["good", "bad", "undecided"]
    bad_links: tuple[Name, ...]  # partners, as good as it is, with which it did badly
    meetings: tuple[Met, ...]
    least: float  # below it a pair does badly


class Trial(NamedTuple):
    """How one attempt at a test between two nodes ended, and what it measured in each direction."""

    job_id: str
    outcome: Outcome
    values: Collection[float]  # of the benchmark's compared metric
    facts: Labels


def results(tests: Iterable[Trial]) -> Results:
    """What tests say of the network; of several attempts the last."""
    found: dict[str, float | None] = {}
    for test in tests:
        found.pop(test.job_id, None)
        if test.outcome == Outcome.OK and test.values:
            found[test.job_id] = min(test.values)
        elif test.outcome in {Outcome.TOOL_FAILED, Outcome.TRUNCATED} or UNANSWERED in test.facts:
            found[test.job_id] = None
    return found


def retest(made: Plan, results: Results, rules: tournament.Rules) -> Retest:
    """The tests that tell bad nodes from their partners: none where all pairs did well, or there is no good node."""
    rounds = tournament.isolation(_overall(made, results), partners=_PARTNERS, slow=_SLOW)
    paired = [job for job in made.jobs if job.peer and not job.again]
    after = max((job.round or 0 for job in paired), default=0)
    timetable = Timetable(rules, max(map(len, rounds), default=1), after_round=after)
    jobs = timetable.jobs(made.run_id, rounds, tuple(_tests(paired)))
    return Retest(run_id=made.run_id, jobs=tuple(job.model_copy(update={"again": True}) for job in jobs))


def _tests(paired: Iterable[Job]) -> Iterator[Job]:
    """One repeat more of each case."""
    last: dict[Case, Job] = {}
    for job in paired:
        case = (job.benchmark, job.case)
        if case not in last or job.repeat > last[case].repeat:
            last[case] = job
    for job in last.values():
        yield job.model_copy(update={"repeat": job.repeat + 1})


def judgements(made: Plan, results: Results) -> Iterator[Judgement]:
    """What is to be said of every node of the plan's pairs, case by case, from all tests together."""
    again = _by_case(made, results, again=True)
    for (name, case), outcomes in _by_case(made, results).items():
        retested = again.get((name, case), ())
        every = (*outcomes, *retested)
        found = tournament.verdict(outcomes, retested, slow=_SLOW)
        links = [frozenset(link) for link in found.links]
        own: dict[str, list[Met]] = {node: [] for node in made.paired_nodes()}
        for met in every:
            for node in met.nodes:
                own[node].append(met)
        for node, meetings in own.items():
            is_undecided = node in found.undecided or not meetings
            yield Judgement(
                node=node,
                benchmark=name,
                case=case,
                verdict="bad" if node in found.bad else "undecided" if is_undecided else "good",
                bad_links=tuple(sorted(other for link in links if node in link for other in link - {node})),
                meetings=tuple(meetings),
                least=tournament.least(every, _SLOW),
            )


def _by_case(made: Plan, results: Results, *, again: bool = False) -> Mapping[Case, tuple[Met, ...]]:
    """How each pair did in each case. Of several repeats the median counts; a pair fails when most of them do."""
    tested: dict[Case, dict[tuple[str, str], list[float | None]]] = {}
    for job in made.jobs:
        if job.peer and job.again == again:
            pairs = tested.setdefault((job.benchmark, job.case), {})
            if job.job_id in results:
                pairs.setdefault((job.node, job.peer), []).append(results[job.job_id])
    return {
        case: tuple(
            Met(client=client, server=server, value=_of_most(values)) for (client, server), values in pairs.items()
        )
        for case, pairs in tested.items()
    }


def _of_most(values: list[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    return median(measured) if 2 * len(measured) > len(values) else None


def _overall(made: Plan, results: Results) -> tuple[Met, ...]:
    """Each pair once, with its worst case: the share of that case's median."""
    worst: dict[tuple[str, str], float | None] = {}
    for outcomes in _by_case(made, results).values():
        values = [met.value for met in outcomes if met.value is not None]
        usual = median(values) if values else 0.0
        for met in outcomes:
            share = met.value / usual if met.value is not None and usual else met.value
            before = worst.get((met.client, met.server), share)
            worst[met.client, met.server] = None if share is None or before is None else min(share, before)
    return tuple(Met(client=client, server=server, value=value) for (client, server), value in worst.items())
