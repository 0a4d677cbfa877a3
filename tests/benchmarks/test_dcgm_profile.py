"""dcgm_profile: each cell under its own header, absence as absence, and a summary and a series for each GPU."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import benchmark, process
from pipelines.benchmark import Workplace
from pipelines.benchmarks.dcgm_profile.fields import FIELDS
from pipelines.errors import UnknownOutput
from pipelines.records import Outcome, Parsed, RawOutput
from pipelines.tracks import MOST_SAMPLES
from tests import make
from tests.benchmarks.placed import damaged

PROFILE = benchmark.get("dcgm_profile")
SAMPLES = Path(__file__).parents[1] / "samples/dcgm_profile"
STANDINS = Path(__file__).parents[1] / "standins/dcgm"
NAMES = sorted(path.name for path in SAMPLES.iterdir())
BUSY = {"GRACT": 0.981, "SMACT": 0.912, "SMOCC": 0.401, "TENSO": 0.512, "DRAMA": 0.644, "PCITX": 1843200.0}
BUSY |= {"PCIRX": 921600.0, "NVLTX": 18446744000.0, "NVLRX": 18446744010.0, "POWER": 611.512, "TMPTR": 64.0}


def _raw(stdout: str, version: str = "4.1.0", seconds: int = 2, **fields: Any) -> RawOutput:
    params = PROFILE.checked_params({"seconds": seconds})
    job = make.job(benchmark="dcgm_profile", case=PROFILE.case(params), params=params.model_dump(mode="json"))
    return make.raw(job, **{"tool": "dcgmi", "tool_version": version, "stdout": stdout, **fields})


def _sample(name: str, **fields: Any) -> Parsed:
    return PROFILE.parse(_raw((SAMPLES / name).read_text(), name.partition("-")[0], **fields))


def _values(parsed: Parsed, statistic: str = "mean") -> dict[tuple[str, str], float]:
    chosen = (each for each in parsed.measurements if each.labels["statistic"] == statistic)
    return {(each.labels["device"], each.metric): each.value for each in chosen}


def _run(folder: Path, seconds: int = 2, **state: str) -> process.Completed:
    """The benchmark's own command with the stand-in."""
    for name, text in state.items():
        (folder / name).write_text(text)
    params = PROFILE.checked_params({"seconds": seconds, "interval_ms": 100})
    command = PROFILE.command(params, Workplace(folder, folder / "o", True, "4.1.0"))
    environ = {"PATH": f"{STANDINS}:{os.environ['PATH']}", "TMPDIR": str(folder)}
    return process.run(command.argv, timeout_s=60, environ=environ)


@pytest.mark.parametrize("version", ["3.3.9", "4.1.0", "4.6.0"])
def test_every_field_of_every_gpu_is_read_whatever_the_width_of_the_columns(version: str) -> None:
    parsed = _sample(f"{version}-two_gpus.txt")
    assert (parsed.outcome, parsed.reason, parsed.notes) == (Outcome.OK, "", ())
    wanted = {(gpu, FIELDS[name].metric.name): BUSY[name] for gpu in ("gpu0", "gpu1") for name in FIELDS}
    for statistic in ("mean", "p10", "p90", "max"):
        assert _values(parsed, statistic) == pytest.approx(wanted)
    for each in parsed.measurements:
        assert each.unit == PROFILE.metric(each.metric).unit
        assert PROFILE.metric(each.metric).low <= each.value <= PROFILE.metric(each.metric).high


def test_a_series_has_the_time_of_each_sample_and_no_sample_where_there_was_no_value() -> None:
    parsed = _sample("4.1.0-two_gpus.txt")
    counts = {(each.labels["device"], each.metric): each.count for each in parsed.series}
    assert counts["gpu0", "power"] == 16
    assert counts["gpu0", "sm_active"] == 15  # the first row has none
    (series,) = (each for each in parsed.series if each.metric == "sm_active" and each.labels["device"] == "gpu1")
    assert (series.source, series.seconds, series.samples) == ("dcgm", (1.0, 15.0), (0.912, 0.912))


def test_a_real_capture_of_an_idle_gpu_is_zero_where_dcgm_says_zero_and_absent_where_it_says_nothing() -> None:
    parsed = _sample("3.3.9-real_idle.txt")
    assert parsed.outcome is Outcome.OK
    assert _values(parsed) == {("gpu0", metric): 0.0 for metric in ("gr_engine_active", "sm_active", "dram_active")}


def test_columns_in_another_order_and_unknown_ones_are_told_apart_by_their_names() -> None:
    parsed = _sample("4.1.0-other_fields.txt")
    assert _values(parsed)["gpu1", "tensor_active"] == 0.512
    assert {metric for _, metric in _values(parsed)} == {
        "temperature", "power", "gr_engine_active", "tensor_active", "dram_active", "nvlink_rx",
    }  # fmt: skip
    assert parsed.outcome is Outcome.NOT_MEASURED
    assert "no GPU has a value of sm_active" in parsed.reason


def test_a_blank_cell_is_absent() -> None:
    assert {gpu for gpu, metric in _values(_sample("4.1.0-no_nvlink.txt")) if metric == "nvlink_tx"} == {"gpu0"}
    assert _values(_sample("4.1.0-no_nvlink.txt"))["gpu1", "power"] == 611.512


def test_a_row_of_an_old_dcgmi_that_lacks_a_value_is_left_out_since_the_others_are_shifted() -> None:
    parsed = _sample("3.3.9-no_nvlink.txt")
    assert {gpu for gpu, _ in _values(parsed)} == {"gpu0"}
    assert parsed.notes == ("4 rows lack a value, and this dcgmi does not say which: they are left out",)


def test_a_table_that_was_cut_is_truncated_and_its_last_line_is_not_read() -> None:
    text = (SAMPLES / "4.1.0-two_gpus.txt").read_text()
    parsed = PROFILE.parse(_raw(text[: text.rindex("0.98") + 3], seconds=16))
    assert (parsed.outcome, parsed.reason) == (Outcome.OK, "")  # 15 of 16: within what an interval takes longer
    parsed = PROFILE.parse(_raw(text, seconds=60))
    assert (parsed.outcome, parsed.reason) == (Outcome.TRUNCATED, "it printed 16 of 60 samples")


def test_one_that_was_ended_with_what_it_stood_beside_is_whole() -> None:
    text = (SAMPLES / "4.1.0-two_gpus.txt").read_text()
    beside = {"facts": {"ended_with": "job-2"}, "seconds": 600}
    stopped = f"{text}\n\ndmon was stopped due to receiving a signal\n"
    assert PROFILE.parse(_raw(stopped, **beside)).outcome is Outcome.OK
    assert PROFILE.parse(_raw(stopped, exit_status=130, **beside)).outcome is Outcome.OK
    assert PROFILE.parse(_raw(text, exit_status=None, signal=15, **beside)).outcome is Outcome.OK
    assert PROFILE.parse(_raw(text, exit_status=None, signal=15, seconds=600)).outcome is Outcome.TRUNCATED


def test_one_that_was_ended_before_its_first_sample_is_truncated_and_a_whole_table_without_one_is_unknown() -> None:
    """DCGM prints the head, and then sets its watches."""
    head = "".join((SAMPLES / "4.1.0-two_gpus.txt").read_text().splitlines(keepends=True)[:2])
    for printed in ("", head):
        parsed = PROFILE.parse(_raw(printed, exit_status=None, signal=15, facts={"ended_with": "job-2"}))
        assert (parsed.outcome, parsed.reason) == (Outcome.TRUNCATED, "it was ended before it printed a sample")
        with pytest.raises(UnknownOutput):
            PROFILE.parse(_raw(printed))


@pytest.mark.integration
def test_the_command_ends_by_itself_and_its_table_is_read(tmp_path: Path) -> None:
    done = _run(tmp_path, version="4.6.0")
    params = {"seconds": 2, "interval_ms": 100}
    raw = _raw(done.stdout, "4.6.0", exit_status=done.exit_status)
    parsed = PROFILE.parse(raw.model_copy(update={"job": raw.job.model_copy(update={"params": params})}))
    assert (parsed.outcome, parsed.reason) == (Outcome.OK, "")
    assert {each.count for each in parsed.series} == {19, 20}
    assert max(each.seconds[-1] for each in parsed.series) == pytest.approx(1.9)


def test_without_a_host_engine_it_is_the_configuration(tmp_path: Path) -> None:
    done = _run(tmp_path, hostengine="down")
    parsed = PROFILE.parse(_raw(done.stdout, exit_status=done.exit_status))
    assert parsed.outcome is Outcome.CONFIG
    assert "unable to establish a connection" in parsed.reason


@pytest.mark.parametrize(
    ("status", "outcome"), [(220, Outcome.NOT_MEASURED), (218, Outcome.NOT_MEASURED), (222, Outcome.CONTENDED)]
)
def test_gpus_that_cannot_be_profiled_or_not_now_are_no_failure_of_the_tool(status: int, outcome: Outcome) -> None:
    said = (
        f"Error setting watches. Result: {status - 256}: Profiling is not supported for this group of GPUs or GPU.\n\n"
    )
    parsed = PROFILE.parse(_raw("", stderr=said, exit_status=status))
    assert (parsed.outcome, parsed.measurements) == (outcome, ())
    assert "Profiling is not supported" in parsed.reason


@pytest.mark.integration
def test_gpus_without_profiling_counters_are_not_measured_and_their_power_is_kept(tmp_path: Path) -> None:
    done = _run(tmp_path, dmon="unsupported")
    parsed = PROFILE.parse(_raw(done.stdout, exit_status=done.exit_status))
    assert parsed.outcome is Outcome.NOT_MEASURED
    assert {metric for _, metric in _values(parsed)} == {"power", "temperature"}


def test_of_a_long_watch_a_bounded_number_of_samples_is_kept() -> None:
    header, unit, *_, row = (SAMPLES / "4.1.0-two_gpus.txt").read_text().splitlines()
    parsed = PROFILE.parse(
        _raw("\n".join([header, unit, *(row.replace("0.912", f"0.{n:03d}") for n in range(999)), ""]))
    )
    (series,) = (each for each in parsed.series if each.metric == "sm_active")
    assert (series.count, series.minimum, series.maximum) == (999, 0.0, 0.998)
    assert len(series.samples) <= MOST_SAMPLES + 1


@pytest.mark.parametrize("cell", ["1e999", "nan", "12...", "<<<NOT_SUPPORTED>>>"])
def test_a_cell_that_is_no_number_is_an_unknown_output(cell: str) -> None:
    text = (SAMPLES / "4.1.0-two_gpus.txt").read_text().replace("611.512".ljust(9), cell[:16].ljust(9))
    with pytest.raises(UnknownOutput):
        PROFILE.parse(_raw(text))


@settings(max_examples=150)
@given(st.data())
def test_a_damaged_table_is_read_sensibly_or_refused(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(NAMES))
    text = data.draw(damaged((SAMPLES / name).read_text()))
    try:
        parsed = PROFILE.parse(_raw(text, name.partition("-")[0]))
    except UnknownOutput:
        return
    assert (parsed.outcome is Outcome.OK) == (not parsed.reason)
    for each in parsed.measurements:
        assert each.unit == PROFILE.metric(each.metric).unit
        assert re.fullmatch(r"(gpu|gpu-i|gpu-ci)\d+", each.labels["device"])
    for series in parsed.series:
        assert series.minimum <= series.mean <= series.maximum
