"""Every benchmark keeps the contract: this module finds them as the program does, and knows none by name."""

import re
from itertools import groupby
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter

from pipelines import benchmark, plan, suites
from pipelines.benchmark import Benchmark, Workplace
from pipelines.errors import UnknownOutput
from pipelines.records import Job, Name, Outcome, Parsed, Refusal, SuiteEntry, Unit
from tests import make

ROOT = Path(__file__).parents[2]
SUITES = ROOT / "infra/suites"
EVERY = pytest.mark.parametrize("each", benchmark.discover().values(), ids=lambda each: each.name)
NAME = TypeAdapter(Name)


def _loads(each: Benchmark) -> list[Any]:
    """The benchmark's default parameters, and all that the project's own suites ask of it."""
    asked = [
        each.checked_params(given)
        for name in suites.names(SUITES)
        for entry in suites.load(SUITES, name).entries
        if entry.benchmark == each.name
        for given in suites.parameter_sets(entry)
    ]
    return [each.params(), *asked]


def test_there_is_a_benchmark() -> None:
    assert benchmark.discover()


@EVERY
def test_a_benchmark_has_a_test_and_samples_named_after_a_version_it_supports(each: Benchmark) -> None:
    assert list((ROOT / "tests/benchmarks").glob(f"test_{each.name}*.py"))
    samples = [path for path in (ROOT / "tests/samples" / each.name).iterdir() if ".golden" not in path.name]
    assert samples
    for sample in samples:
        version = re.match(r"(\d+(?:\.\d+)*)[^-]*-\w", sample.name)
        assert version, sample.name
        assert tuple(int(part) for part in version[1].split(".")) >= each.minimum_version


@EVERY
def test_a_metric_is_there_once_with_a_known_unit_and_a_range(each: Benchmark) -> None:
    names = [metric.name for metric in each.metrics]
    assert len(names) == len(set(names))
    for metric in each.metrics:
        NAME.validate_python(metric.name)
        assert metric.unit in get_args(Unit)
        assert metric.low < metric.high
        assert metric.meaning


@EVERY
def test_required_metrics_and_floors_are_metrics_of_the_descriptor(each: Benchmark) -> None:
    for params in _loads(each):
        assert each.required(params)
        assert each.required(params) <= {metric.name for metric in each.metrics}
        for floor in each.floors(params):
            assert floor.metric in each.required(params)
            assert floor.unit == each.metric(floor.metric).unit
            assert each.metric(floor.metric).low <= floor.minimum <= each.metric(floor.metric).high


@EVERY
def test_parameters_of_a_plan_read_back_as_they_were(each: Benchmark) -> None:
    for params in _loads(each):
        assert each.checked_params(params.model_dump(mode="json", exclude_none=True)) == params


@EVERY
def test_a_case_is_a_name_and_a_cost_is_positive(each: Benchmark) -> None:
    for params in _loads(each):
        NAME.validate_python(each.case(params))
        assert each.cost(params).seconds > 0
        assert (each.cost(params).written_bytes > 0) == each.writes


@EVERY
def test_a_command_is_its_tools_and_pure(each: Benchmark, tmp_path: Path) -> None:
    place = Workplace(scratch=tmp_path, output=tmp_path / "output", direct_io=True, tool_version="1.0")
    for params in _loads(each):
        command = each.command(params, place)
        assert command == each.command(params, place)
        assert command.argv[0] in {each.tool, *each.programs}
        assert not list(tmp_path.iterdir())


@EVERY
def test_a_refused_job_keeps_the_reason_of_its_refusal(each: Benchmark) -> None:
    refusal = Refusal(outcome=Outcome.NOT_MEASURED, reason="the tool is not installed")
    assert each.parse(_raw(each, exit_status=None, refusal=refusal)) == Parsed(
        outcome=Outcome.NOT_MEASURED, reason="the tool is not installed"
    )


@EVERY
def test_a_job_that_timed_out_without_output_is_truncated(each: Benchmark) -> None:
    parsed = each.parse(_raw(each, exit_status=None, signal=9, timed_out=True))
    assert parsed.outcome is Outcome.TRUNCATED
    assert parsed.reason
    assert not parsed.measurements


@EVERY
@pytest.mark.parametrize("text", ["", "garbage", "{}", "{\n}\n", "[]", "\0"])
def test_what_is_not_the_tools_output_raises_the_one_documented_error(each: Benchmark, text: str) -> None:
    with pytest.raises(UnknownOutput):
        each.parse(_raw(each, output=text, stdout=text))


@pytest.mark.parametrize("name", suites.names(SUITES))
def test_no_two_jobs_of_a_suite_are_repeats_of_the_same_case(name: str) -> None:
    every = tuple({need for entry in suites.load(SUITES, name).entries for need in _needs(entry)})
    nodes = tuple(make.node(name, features=every) for name in ("gpu-01", "gpu-02"))
    made = plan.make(suites.load(SUITES, name), nodes, run_id=make.RUN_ID, created_at=make.AT, trigger="cli", repeats=2)
    jobs = sorted(made.jobs, key=_case_of)
    for _, same in groupby(jobs, key=_case_of):
        assert len(list(same)) == 1


def _needs(entry: SuiteEntry) -> frozenset[str]:
    return benchmark.get(entry.benchmark).needs | set(entry.needs)


def _case_of(job: Job) -> tuple[str, str, str, int]:
    return job.node, job.benchmark, job.case, job.repeat


def _raw(each: Benchmark, **fields: Any) -> Any:
    params = each.params()
    job = make.job(
        benchmark=each.name, case=each.case(params), params=params.model_dump(mode="json", exclude_none=True)
    )
    return make.raw(job, tool=each.tool, **fields)
