"""The plan of a run: suite x nodes -> jobs. Pure: the same input gives the same jobs with the same ids."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path, PurePath

from pipelines import benchmark, keys, suites
from pipelines.errors import Unknown
from pipelines.records import Job, Node, Plan, Scalar, Suite, SuiteEntry

_SLACK = 3.0  # a job may take this many times its expected seconds ...
_SLACK_S = 30.0  # ... and this much more, before it counts as hung


def make(
    suite: Suite,
    nodes: tuple[Node, ...],
    *,
    run_id: str,
    created_at: datetime,
    trigger: str,
    note: str = "",
    overrides: Mapping[str, Scalar] | None = None,
    repeats: int | None = None,
    datasets: Mapping[str, str] | None = None,
) -> Plan:
    """Every job of the run, node by node, in the order in which they will run.

    `overrides` replaces parameters wherever a benchmark of the suite has them; `repeats` replaces the suite's.
    `datasets` is, for each dataset that the suite names (NAME@TAG), the version that this is now (NAME@ID).

    Raises:
        Unknown: a benchmark that does not exist, or a dataset that `datasets` does not have.
        BadParameter: a parameter that its benchmark refuses, or an override that no benchmark of the suite takes.
    """
    overrides = overrides or {}
    _check_overrides(suite, overrides)
    jobs = {
        job.job_id: job  # once, where an override makes combinations of a matrix the same
        for node in nodes
        for entry in suite.entries
        for job in jobs_of_entry(run_id, node.name, entry, overrides, repeats, datasets)
    }
    return Plan(
        run_id=run_id,
        suite=suite.name,
        created_at=created_at,
        trigger=trigger,
        note=note,
        nodes=nodes,
        jobs=tuple(jobs.values()),
    )


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


def _version(named: str, datasets: Mapping[str, str]) -> str:
    if named not in datasets:
        raise Unknown("dataset", named, tuple(datasets))
    return datasets[named]


def preview(job: Job, scratch: Path) -> tuple[str, ...]:
    """The command the job will run, as far as it is known before the node has looked at its scratch directory."""
    descriptor = benchmark.get(job.benchmark)
    own = scratch / f"fleetmark-{job.job_id}"
    place = benchmark.Workplace(scratch=own, output=own / "output", direct_io=True, tool_version="")
    if job.dataset:  # its folder is named when it is made
        place = replace(place, dataset=PurePath(job.dataset))
    return descriptor.command(descriptor.params_of(job), place).argv
