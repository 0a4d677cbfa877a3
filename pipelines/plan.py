"""The plan of a run: suite x nodes -> jobs, some in pairs. Pure: equal input gives equal jobs with equal ids."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path, PurePath

from pipelines import benchmark, keys, suites, tournament
from pipelines.errors import BadParameter, BadSelection, Unknown
from pipelines.records import Job, Node, Plan, Scalar, Suite, SuiteEntry

_SLACK = 3.0  # a job may take this many times its expected seconds ...
_SLACK_S = 30.0  # ... and this much more, before it counts as hung
_LONGEST_NAME = 63
_ROUND_SLACK = 1.5  # a round lasts this many times what its tests do ...
_ROUND_SLACK_S = 5.0  # ... and this much more for each: to find each other, and for what the store takes


def make(
    suite: Suite,
    nodes: tuple[Node, ...],
    *,
    run_id: str,
    created_at: datetime,
    trigger: str,
    tenant: str = "default",
    note: str = "",
    overrides: Mapping[str, Scalar] | None = None,
    repeats: int | None = None,
    datasets: Mapping[str, str] | None = None,
    rules: tournament.Rules | None = None,
) -> Plan:
    """Every job of the run in the order in which they will run: node by node, then the pairs, round by round.

    `overrides` replaces parameters wherever a benchmark of the suite has them; `repeats` replaces the suite's.
    `datasets` is, for each dataset that the suite names (NAME@TAG), the version that this is now (NAME@ID).

    Raises:
        Unknown: a benchmark that does not exist, or a dataset that `datasets` does not have.
        BadParameter: a parameter that its benchmark refuses, or an override that no benchmark of the suite takes.
        BadSelection: nothing of the suite can be done by these nodes.
    """
    overrides = overrides or {}
    _check_overrides(suite, overrides)
    jobs = {
        job.job_id: job  # once, where an override makes combinations of a matrix the same
        for node in nodes
        for entry in suite.entries
        if not _is_pair(entry) and not _lacking(node, entry)
        for alone in _with_devices(node, jobs_of_entry(run_id, node.name, entry, overrides, repeats, datasets))
        for job in (alone, *_watchers(run_id, node, entry, alone))
    }
    entries = [entry.model_copy(update={"repeats": repeats or entry.repeats}) for entry in suite.entries]
    jobs |= {job.job_id: job for job in _paired(run_id, nodes, entries, overrides, rules or tournament.Rules())}
    if not jobs:
        raise BadSelection(" ".join(node.name for node in nodes), next(_left_out(suite, nodes)))
    asked = {name for job in jobs.values() for name in (job.node, job.peer)}
    return Plan(
        run_id=run_id,
        suite=suite.name,
        created_at=created_at,
        trigger=trigger,
        tenant=tenant,
        note=note,
        nodes=tuple(node for node in nodes if node.name in asked),
        jobs=tuple(jobs.values()),
        left_out=tuple(_left_out(suite, nodes)),
    )


def _with_devices(node: Node, jobs: Iterable[Job]) -> Iterator[Job]:
    """The jobs, each with the disk that it writes to as a whole; with none where the inventory lists not so many."""
    for job in jobs:
        descriptor = benchmark.get(job.benchmark)
        if descriptor.device and (left := node.devices[descriptor.device(descriptor.params_of(job)) :]):
            yield job.model_copy(update={"device": left[0]})
        else:
            yield job


def _watchers(run_id: str, node: Node, entry: SuiteEntry, job: Job) -> Iterator[Job]:
    """A job for each benchmark that stands beside this one, named after it. It takes no time of its own."""
    for name in entry.beside:
        descriptor = benchmark.get(name)
        if descriptor.companion is None or job.device:
            problem = "it writes to a disk, and is run alone" if job.device else f"{name} does not watch others"
            raise BadParameter(entry.benchmark, "beside", problem)
        if _lacking(node, SuiteEntry(benchmark=name)):
            continue
        params = descriptor.checked_params(descriptor.companion(job.timeout_s))
        body = [run_id, node.name, name, job.job_id]
        yield Job(
            job_id=keys.content_id(body),
            node=node.name,
            benchmark=name,
            case=f"{job.benchmark}-{job.case}"[:_LONGEST_NAME],
            params=params.model_dump(mode="json", exclude_none=True),
            repeat=job.repeat,
            timeout_s=job.timeout_s + _SLACK_S,
            seconds=0.0,
            written_bytes=0,
            beside=job.job_id,
        )


def _lacking(node: Node, entry: SuiteEntry) -> tuple[str, ...]:
    """The features that the node would need to be asked for this, and does not have."""
    return tuple(sorted({*entry.needs, *benchmark.get(entry.benchmark).needs} - set(node.features)))


def _left_out(suite: Suite, nodes: Sequence[Node]) -> Iterator[str]:
    """A sentence for each benchmark and feature that some nodes lack for it, and for each that finds no two nodes."""
    watchers = [SuiteEntry(benchmark=name) for entry in suite.entries for name in entry.beside]
    asked = (*suite.entries, *watchers)
    wanted = dict.fromkeys(
        (entry.benchmark, need) for entry in asked for node in nodes for need in _lacking(node, entry)
    )
    for name, need in wanted:
        without = [node.name for node in nodes if need not in node.features]
        few = ", ".join(without[:3]) + (f" and {len(without) - 3} more" if len(without) > 3 else "")
        yield f"{name} is not run on {few}: the inventory does not give it the feature {need}"
    able = {
        entry.benchmark: [node.name for node in nodes if not _lacking(node, entry)]
        for entry in filter(_is_pair, suite.entries)
    }
    for name, alone in able.items():
        if len(alone) == 1:
            yield f"{name} is not run on {alone[0]}: it measures between two nodes, and there is no other for it"


def _check_overrides(suite: Suite, overrides: Mapping[str, Scalar]) -> None:
    takers = [benchmark.get(entry.benchmark) for entry in suite.entries]
    for name, value in overrides.items():
        if not any(name in taker.params.model_fields for taker in takers):
            takers[0].checked_params({name: value})  # raises, with the names that are known


def jobs_of_entry(
    run_id: str,
    node: str,
    entry: SuiteEntry,
    overrides: Mapping[str, Scalar] | None = None,
    repeats: int | None = None,
    datasets: Mapping[str, str] | None = None,
) -> Iterator[Job]:
    """The jobs of one entry of a suite on one node: every combination of its matrix, every repeat.

    Raises:
        Unknown: there is no such benchmark, or a dataset that `datasets` does not have.
        BadParameter: a parameter that the benchmark refuses.
    """
    descriptor = benchmark.get(entry.benchmark)
    dataset = _version(entry.dataset, datasets or {}) if entry.dataset else None
    taken = {name: value for name, value in (overrides or {}).items() if name in descriptor.params.model_fields}
    for given in suites.parameter_sets(entry):
        params = descriptor.checked_params({**given, **taken})
        cost = descriptor.cost(params)
        complete = params.model_dump(mode="json", exclude_none=True)
        for repeat in range(1, (repeats or entry.repeats) + 1):
            yield Job(
                job_id=keys.content_id(
                    [run_id, node, descriptor.name, complete, repeat, *([dataset] if dataset else [])]
                ),
                node=node,
                benchmark=descriptor.name,
                case=descriptor.case(params),
                params=complete,
                repeat=repeat,
                timeout_s=entry.timeout_s or cost.seconds * _SLACK + _SLACK_S,
                seconds=cost.seconds,
                written_bytes=cost.written_bytes,
                dataset=dataset,
            )


def takes(suite: Suite) -> benchmark.Cost:
    """The seconds that a suite is planned to hold a node, and the most bytes that it has on its disk at a time.

    Of tests between two nodes those with one other node count.
    """
    versions = {name: f"{name.partition('@')[0]}@{'0' * 32}" for name in suites.datasets(suite)}
    jobs = [job for entry in suite.entries for job in jobs_of_entry("any", "any", entry, datasets=versions)]
    return benchmark.Cost(
        seconds=sum(job.seconds for job in jobs), written_bytes=max(job.written_bytes for job in jobs)
    )


def _is_pair(entry: SuiteEntry) -> bool:
    pair = benchmark.get(entry.benchmark).pair is not None
    if entry.beside and pair:
        raise BadParameter(entry.benchmark, "beside", "it is measured between two nodes; nothing stands beside that")
    if entry.pairs and not pair:
        raise BadParameter(
            entry.benchmark, "pairs", "it is measured on one node; only a benchmark between two has pairs"
        )
    return pair


def _paired(
    run_id: str,
    nodes: Sequence[Node],
    entries: Iterable[SuiteEntry],
    overrides: Mapping[str, Scalar],
    rules: tournament.Rules,
) -> Iterator[Job]:
    """Each pair entry's tournament, one after the other."""
    timetable = Timetable(rules, len(nodes) // 2)
    for entry in filter(_is_pair, entries):
        names = [node.name for node in nodes if not _lacking(node, entry)]
        rounds = (tournament.everyone if entry.pairs == "all" else tournament.quick)(names)
        if rounds:
            tests = {job.job_id: job for job in jobs_of_entry(run_id, names[0], entry, overrides)}
            yield from timetable.jobs(run_id, rounds, tuple(tests.values()))


class Timetable:
    """When the rounds of one run are over, and on which ports they meet: one tournament after the other.

    A round is over at a time that the plan fixes, so that what is lost with a node that is down does not add up.
    """

    def __init__(self, rules: tournament.Rules, most_pairs: int, after_round: int = 0) -> None:
        self._ports = tournament.ports(rules, most_pairs)
        self._round = after_round
        self._closes_s = rules.wait_s

    def jobs(self, run_id: str, rounds: Iterable[tournament.Round], tests: Sequence[Job]) -> Iterator[Job]:
        """The jobs of these rounds, in each of which every pair does all of the tests."""
        for meetings in rounds:
            self._round += 1
            self._closes_s += sum(test.seconds * _ROUND_SLACK + _ROUND_SLACK_S for test in tests)
            for test in tests:
                for (client, server), port in zip(meetings, next(self._ports), strict=False):
                    body = [run_id, client, server, test.benchmark, dict(test.params), test.repeat]
                    found = {"job_id": keys.content_id(body), "node": client, "peer": server}
                    when = {"round": self._round, "port": port, "closes_s": self._closes_s}
                    yield test.model_copy(update={**found, **when})


def _version(named: str, datasets: Mapping[str, str]) -> str:
    if named not in datasets:
        raise Unknown("dataset", named, tuple(datasets))
    return datasets[named]


def preview(job: Job, scratch: Path) -> tuple[str, ...]:
    """The command the job will run, as far as it is known before the node has looked at its scratch directory."""
    descriptor = benchmark.get(job.benchmark)
    own = scratch / f"fleetmark-{job.job_id}"
    place = benchmark.Workplace(scratch=own, output=own / "output.json", direct_io=True, tool_version="")
    if job.peer and job.port:
        place = replace(place, peer=benchmark.Peer(job.peer, job.port))
    if descriptor.device:  # its path is looked up by the serial number when it is opened
        place = replace(place, device=PurePath(job.device or "DEVICE"))
    if job.dataset:  # its folder is named when it is made
        place = replace(place, files=PurePath(job.dataset))
    return descriptor.command(descriptor.params_of(job), place).argv
