"""cpu: sysbench's report, and sysbench itself."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pipelines import benchmark
from pipelines.benchmark import Workplace
from pipelines.errors import UnknownOutput
from pipelines.node import run_once
from pipelines.records import Outcome, Parsed, RawOutput
from pipelines.settings import Settings
from tests import make
from tests.benchmarks.placed import assert_honest_or_unknown, damaged

FOLDER = Path(__file__).parents[1] / "samples/cpu"
CPU = benchmark.get("cpu")


def text(name: str) -> str:
    return (FOLDER / f"1.0.20-{name}.txt").read_text()


def raw(name: str, params: dict[str, Any] | None = None, **fields: Any) -> RawOutput:
    checked = CPU.checked_params({"duration_s": 1, "processors": "one" if name == "one" else "all", **(params or {})})
    job = make.job(benchmark="cpu", case=CPU.case(checked), params=checked.model_dump(mode="json"))
    return make.raw(job, **{"tool": "sysbench", "stdout": text(name), **fields})


def values(parsed: Parsed) -> dict[str, float]:
    return {each.metric: each.value for each in parsed.measurements}


def test_a_real_output_gives_exactly_the_golden_result() -> None:
    golden = Parsed.model_validate_json((FOLDER / "1.0.20-all.golden.json").read_text())
    assert golden.outcome is Outcome.OK
    assert CPU.parse(raw("all")) == golden


@pytest.mark.parametrize("name", ["one", "all"])
def test_every_value_lies_in_its_honest_range_in_its_metrics_unit(name: str) -> None:
    for each in CPU.parse(raw(name)).measurements:
        metric = CPU.metric(each.metric)
        assert metric.low <= each.value <= metric.high
        assert each.unit == metric.unit


def test_threads_that_did_less_than_others_are_a_spread_and_one_thread_has_none() -> None:
    assert "1781.0000/117.00" in text("all")
    assert values(CPU.parse(raw("all")))["thread_spread"] == pytest.approx(117 / 1781)
    assert "thread_spread" not in values(CPU.parse(raw("one")))


def test_times_are_milliseconds_and_one_too_short_to_be_printed_is_no_zero() -> None:
    shorter = text("all").replace(
        "avg:                                    0.56", "avg:                                    0.00"
    )
    assert values(CPU.parse(raw("all")))["event_time_mean"] == pytest.approx(0.56e-3)
    assert "event_time_mean" not in values(CPU.parse(raw("all", stdout=shorter)))


def test_the_report_of_sysbench_1_1_is_read_as_that_of_1_0() -> None:
    """sb_report_cumulative of 1.1 (src/sysbench.c) has a block "Throughput" where 1.0 has "General statistics"."""
    newer = re.sub(
        r"General statistics:\n +total time: +([\d.]+)s\n",
        r"Throughput:\n    events/s (eps):         3560.93\n    time elapsed:                        \1s\n",
        text("all"),
    )
    assert "time elapsed:" in newer
    assert CPU.parse(raw("all", stdout=newer)) == CPU.parse(raw("all"))


def test_a_run_shorter_than_asked_is_truncated() -> None:
    parsed = CPU.parse(raw("all", {"duration_s": 5}))
    assert (parsed.outcome, parsed.reason) == (Outcome.TRUNCATED, "1.0003 of 5 s were measured")


def test_a_run_that_was_ended_gives_nothing() -> None:
    parsed = CPU.parse(raw("terminated", exit_status=None, signal=15, timed_out=True))
    assert (parsed.outcome, parsed.measurements) == (Outcome.TRUNCATED, ())


def test_a_report_without_its_end_raises_the_one_documented_error() -> None:
    with pytest.raises(UnknownOutput):
        CPU.parse(raw("terminated"))


def test_a_rate_that_its_events_do_not_make_is_refused() -> None:
    with pytest.raises(UnknownOutput, match="events per second"):
        CPU.parse(raw("all", stdout=text("all").replace("events:              3562", "events:              7124")))


def test_all_processors_are_those_that_a_process_may_run_on() -> None:
    place = Workplace(Path("/s"), Path("/s/o"), True, "1.0.20", cpus=96)
    assert "--threads=96" in CPU.command(CPU.checked_params({}), place).argv
    assert "--threads=1" in CPU.command(CPU.checked_params({"processors": "one"}), place).argv


@pytest.mark.parametrize(
    ("params", "case"), [({}, "all"), ({"processors": "one", "max_prime": 20000}, "one-prime20000")]
)
def test_a_case_names_what_makes_the_load(params: dict[str, Any], case: str) -> None:
    assert CPU.case(CPU.checked_params(params)) == case


@hypothesis_settings(max_examples=150)
@given(st.sampled_from(["one", "all"]), st.sampled_from([0, 1, None]), st.data())
def test_a_damaged_report_is_parsed_honestly_or_refused(name: str, status: int | None, data: st.DataObject) -> None:
    assert_honest_or_unknown(CPU, raw(name, stdout=data.draw(damaged(text(name))), exit_status=status))


def test_sysbench_itself_runs_on_every_processor_and_gives_all_metrics_within_honest_ranges(
    settings: Settings,
) -> None:
    given = CPU.checked_params({"duration_s": 1}).model_dump(mode="json")
    job = make.job(benchmark="cpu", case="all", params=given, written_bytes=0)
    parsed = CPU.parse(run_once(settings, make.node(free_floor_bytes=0), job, say=lambda _: None))
    assert parsed.outcome is Outcome.OK, parsed.reason
    cpus = len(os.sched_getaffinity(0))
    assert {each.labels["threads"] for each in parsed.measurements} == {str(cpus)}
    assert {"thread_spread"} - set(values(parsed)) == (set() if cpus > 1 else {"thread_spread"})
    for metric, value in values(parsed).items():
        assert CPU.metric(metric).low <= value <= CPU.metric(metric).high
