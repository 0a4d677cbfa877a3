"""What is made of real outputs of fio, of damaged ones, and of text that fio never printed."""

import json
import math
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines import histograms
from pipelines.errors import UnknownOutput
from pipelines.records import Outcome, Parsed
from tests.benchmarks import fio_samples as samples
from tests.benchmarks.fio_samples import FIO

WHOLE = ("seq_read", "seq_write", "rand_read", "rand_write", "mixed", "checkpoint", "numjobs2")


def _values(parsed: Parsed) -> dict[str, float]:
    return {measurement.metric: measurement.value for measurement in parsed.measurements}


def _json(name: str) -> dict[str, Any]:
    """A sample that is one document and no more."""
    found: dict[str, Any] = json.loads(samples.raw(name).output or "")
    return found


def _printed(document: dict[str, Any]) -> str:
    """As fio prints it: the outer braces alone on their lines."""
    return json.dumps(document, indent=2) + "\n"


def _parse_changed(name: str, document: dict[str, Any], **fields: Any) -> Parsed:
    return FIO.parse(samples.raw(name, output=_printed(document), **fields))


# --- whole documents ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mixed", "checkpoint"])
def test_a_real_output_gives_exactly_the_golden_result(name: str) -> None:
    golden = (samples.FOLDER / f"3.33-{name}.golden.json").read_text()
    assert FIO.parse(samples.raw(name)) == Parsed.model_validate_json(golden)


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_run_is_ok_and_every_value_lies_in_its_honest_range(name: str) -> None:
    parsed = FIO.parse(samples.raw(name))
    assert (parsed.outcome, parsed.reason) == (Outcome.OK, "")
    for measurement in parsed.measurements:
        metric = FIO.metric(measurement.metric)
        assert metric.low <= measurement.value <= metric.high
        assert metric.unit == measurement.unit


@pytest.mark.parametrize("name", samples.NAMES)
def test_percentiles_from_bins_are_the_ones_fio_prints(name: str) -> None:
    for kind in _printed_latencies(samples.text(name)):
        bins = histograms.merged([{int(value): count for value, count in kind["bins"].items()}])
        printed = {float(p): value for p, value in kind["percentile"].items()}
        assert histograms.percentiles(bins, tuple(printed)) == tuple(printed.values())


def _printed_latencies(text: str) -> list[dict[str, Any]]:
    documents = re.findall(r"^\{$.*?^\}$", text, re.MULTILINE | re.DOTALL)
    jobs = [job for document in documents for job in json.loads(document)["jobs"]]
    kinds = [job[verb]["clat_ns"] for job in jobs for verb in ("read", "write")] + [
        job["sync"]["lat_ns"] for job in jobs
    ]
    return [kind for kind in kinds if "bins" in kind]


def test_percentiles_are_printed_in_the_samples_at_all() -> None:
    assert sum(len(_printed_latencies(samples.text(name))) for name in samples.NAMES) > 15


@pytest.mark.parametrize("name", ["seq_read", "rand_write", "mixed"])
def test_rates_are_fios_bytes_and_requests_per_second_and_not_its_kibibytes(name: str) -> None:
    values = _values(FIO.parse(samples.raw(name)))
    (job,) = _json(name)["jobs"]
    for verb in ("read", "write"):
        if job[verb]["total_ios"]:
            assert values[f"{verb}_bandwidth"] == pytest.approx(job[verb]["bw_bytes"], abs=1)
            assert values[f"{verb}_iops"] == pytest.approx(job[verb]["iops"], abs=1e-3)


def test_jobs_are_summed_over_the_longest_of_their_runtimes() -> None:
    values = _values(FIO.parse(samples.raw("numjobs2")))
    one, other = _json("numjobs2")["jobs"]
    runtime_s = max(one["write"]["runtime"], other["write"]["runtime"]) / 1000
    assert values["write_bandwidth"] == (one["write"]["io_bytes"] + other["write"]["io_bytes"]) / runtime_s
    assert values["write_iops"] == (one["write"]["total_ios"] + other["write"]["total_ios"]) / runtime_s


def test_percentiles_of_several_jobs_are_those_of_all_their_requests() -> None:
    values = _values(FIO.parse(samples.raw("numjobs2")))
    bins = [job["read"]["clat_ns"]["bins"] for job in _json("numjobs2")["jobs"]]
    requests = sorted(int(value) for part in bins for value, count in part.items() for _ in range(count))
    assert values["read_latency_p50"] == requests[math.ceil(len(requests) / 2) - 1] / 1e9
    assert values["read_latency_max"] == max(j["read"]["clat_ns"]["max"] for j in _json("numjobs2")["jobs"]) / 1e9
    assert values["read_latency_mean"] == pytest.approx(sum(requests) / len(requests) / 1e9, rel=0.02)


def test_histograms_hold_every_request_in_seconds() -> None:
    (histogram,) = FIO.parse(samples.raw("rand_read")).histograms
    clat = _json("rand_read")["jobs"][0]["read"]["clat_ns"]
    assert (histogram.metric, histogram.unit) == ("read_latency", "s")
    assert sum(count for _, count in histogram.bins) == clat["N"]
    assert {round(value * 1e9): count for value, count in histogram.bins} == {
        int(k): v for k, v in clat["bins"].items()
    }


def test_a_direction_without_requests_gives_no_rows() -> None:
    assert not [
        metric for metric in _values(FIO.parse(samples.raw("seq_read"))) if metric.startswith(("write", "sync"))
    ]


def test_a_checkpoint_says_what_its_fsyncs_took() -> None:
    values = _values(FIO.parse(samples.raw("checkpoint")))
    lat_ns = _json("checkpoint")["jobs"][0]["sync"]["lat_ns"]
    assert values["sync_latency_max"] == lat_ns["max"] / 1e9
    assert values["sync_latency_p99"] == lat_ns["percentile"]["99.000000"] / 1e9


@pytest.mark.parametrize(("name", "direct"), [("rand_read", "true"), ("checkpoint", "false")])
def test_every_measurement_says_whether_its_io_was_direct(name: str, direct: str) -> None:
    parsed = FIO.parse(samples.raw(name))
    assert {row.labels["direct"] for row in parsed.measurements} == {direct}
    assert {row.labels["direct"] for row in parsed.histograms} == {direct}


def test_labels_are_the_parameters_that_vary() -> None:
    assert FIO.parse(samples.raw("mixed")).measurements[0].labels == {
        "block_size": "4096",
        "iodepth": "32",
        "numjobs": "1",
        "size": "16777216",
        "engine": "libaio",
        "direct": "true",
    }


# --- other versions -----------------------------------------------------------------------------------------


def test_a_document_of_an_older_version_reads_the_same() -> None:
    """fio 3.16 counts no requests beside a latency and prints zero percentiles where there were none."""
    document = _json("rand_read")
    (job,) = document["jobs"]
    for latency in (job["read"]["clat_ns"], job["write"]["clat_ns"], job["sync"]["lat_ns"]):
        del latency["N"]
    job["write"]["clat_ns"]["percentile"] = dict.fromkeys(job["read"]["clat_ns"]["percentile"], 0)
    assert _parse_changed("rand_read", document) == FIO.parse(samples.raw("rand_read"))


def test_a_document_of_a_newer_version_reads_the_same() -> None:
    document = _json("rand_read")
    (job,) = document["jobs"]
    job |= {"job_start": 1795256219000, "latency_target_ns": 0, "zone_resets": 0}
    document["disk_util"][0] |= {"read_sectors": 1, "write_sectors": 1}
    assert _parse_changed("rand_read", document) == FIO.parse(samples.raw("rand_read"))


# --- lines around the document ------------------------------------------------------------------------------


def test_a_note_before_the_document_is_kept_and_the_document_read() -> None:
    parsed = FIO.parse(samples.raw("note_on_stdout"))
    assert parsed.outcome is Outcome.OK
    assert parsed.notes == (
        "note: both iodepth >= 1 and synchronous I/O engine are selected, queue depth will be capped at 1",
    )


def test_a_document_on_stdout_is_read_where_there_is_no_file() -> None:
    printed = samples.raw("rand_read").output
    assert FIO.parse(samples.raw("rand_read", output=None, stdout=printed)) == FIO.parse(samples.raw("rand_read"))


def test_the_document_of_the_file_counts_and_what_stdout_says_is_noted() -> None:
    parsed = FIO.parse(samples.raw("rand_read", stdout="note: one\n", stderr="\nfio: two\nnote: one\n"))
    assert parsed.outcome is Outcome.OK
    assert parsed.notes == ("note: one", "fio: two")


def test_the_last_of_several_documents_counts() -> None:
    values = _values(FIO.parse(samples.raw("status_interval")))
    documents = [
        json.loads(each) for each in re.findall(r"^\{$.*?^\}$", samples.text("3.33-status_interval.json"), re.M | re.S)
    ]
    assert len(documents) == 3
    assert values["read_iops"] == pytest.approx(documents[-1]["jobs"][0]["read"]["iops"], abs=1e-3)


# --- runs that did not end well -----------------------------------------------------------------------------


def test_a_run_ended_by_sigterm_is_truncated_although_its_document_is_whole_and_without_error() -> None:
    assert _json_after_line("sigterm")["jobs"][0]["error"] == 0
    parsed = FIO.parse(samples.raw("sigterm"))
    assert parsed.outcome is Outcome.TRUNCATED
    assert parsed.reason == "fio ended early, on a signal (exit status 128)"
    assert "fio: terminating on signal 15" in parsed.notes


def test_a_run_shorter_than_asked_is_truncated_whatever_the_exit_status() -> None:
    parsed = FIO.parse(samples.raw("sigterm", exit_status=0))
    assert parsed.outcome is Outcome.TRUNCATED
    assert re.fullmatch(r"[01]\.\d+ of 30 s were measured", parsed.reason)


def test_a_run_ended_in_its_ramp_has_requests_and_no_latency() -> None:
    parsed = FIO.parse(samples.raw("sigterm_in_ramp"))
    assert parsed.outcome is Outcome.TRUNCATED
    assert parsed.reason == "fio was ended after 60 s, the job's timeout"
    assert not [metric for metric in _values(parsed) if "latency" in metric]


def test_a_killed_run_without_a_document_is_truncated() -> None:
    parsed = FIO.parse(samples.raw("rand_read", output=None, exit_status=None, signal=9))
    assert parsed == Parsed(
        outcome=Outcome.TRUNCATED, reason="fio was ended by signal 9, before its document was written"
    )


def test_a_document_that_is_cut_off_is_truncated() -> None:
    parsed = FIO.parse(samples.raw("rand_read", output=(samples.raw("rand_read").output or "")[:4000]))
    assert parsed == Parsed(
        outcome=Outcome.TRUNCATED, reason="fio's document is cut off: part of the output is missing"
    )


def test_a_checkpoint_that_wrote_less_than_its_size_is_truncated() -> None:
    document = _json("checkpoint")
    document["jobs"][0]["write"]["io_bytes"] -= 2**20
    parsed = _parse_changed("checkpoint", document)
    assert (parsed.outcome, parsed.reason) == (Outcome.TRUNCATED, "267386880 of 268435456 B were written")


def test_a_job_that_did_not_report_is_missed() -> None:
    document = _json("numjobs2")
    del document["jobs"][1]
    parsed = _parse_changed("numjobs2", document)
    assert (parsed.outcome, parsed.reason) == (Outcome.TRUNCATED, "1 of 2 jobs reported")


def test_jobs_merged_into_one_by_group_reporting_are_not_taken_for_all_of_them() -> None:
    assert FIO.parse(samples.raw("randrw_grouped")).reason == "1 of 2 jobs reported"


def test_missing_percentiles_are_named() -> None:
    parsed = FIO.parse(samples.raw("no_percentiles"))
    assert parsed.outcome is Outcome.TRUNCATED
    assert "read_latency_p99" in parsed.reason
    assert not [metric for metric in _values(parsed) if "latency" in metric]


@pytest.mark.parametrize("name", ["enospc", "dev_full"])
def test_a_full_disk_is_a_failure_of_the_tool_that_says_so(name: str) -> None:
    parsed = FIO.parse(samples.raw(name))
    assert parsed.outcome is Outcome.TOOL_FAILED
    assert parsed.reason.startswith("ENOSPC (No space left on device): fio: ")
    assert not parsed.measurements


def test_a_block_size_that_direct_io_does_not_take_is_a_matter_of_configuration() -> None:
    parsed = FIO.parse(samples.raw("direct_einval"))
    assert parsed.outcome is Outcome.CONFIG
    assert parsed.reason.startswith("EINVAL (Invalid argument) with direct I/O")


def test_an_invalid_argument_without_direct_io_is_a_failure_of_the_tool() -> None:
    document = _json("checkpoint")
    document["jobs"][0]["error"] = 22
    assert _parse_changed("checkpoint", document, exit_status=1).outcome is Outcome.TOOL_FAILED


def test_an_engine_this_fio_does_not_have_is_a_matter_of_configuration() -> None:
    parsed = FIO.parse(samples.raw("engine_missing"))
    assert parsed.outcome is Outcome.CONFIG
    assert parsed.reason == "fio ended with exit status 1: fio: engine nosuch not loadable"


def test_another_exit_status_is_a_failure_even_with_a_document_without_error() -> None:
    parsed = FIO.parse(samples.raw("rand_read", exit_status=2))
    assert (parsed.outcome, parsed.reason) == (
        Outcome.TOOL_FAILED,
        "fio ended with exit status 2: it gave no reason",
    )


def test_parameters_of_another_benchmark_are_no_run_of_fio() -> None:
    raw = samples.raw("rand_read")
    job = raw.job.model_copy(update={"params": {"streams": 4}})
    with pytest.raises(UnknownOutput, match="parameters"):
        FIO.parse(raw.model_copy(update={"job": job}))


def _json_after_line(name: str) -> dict[str, Any]:
    text = samples.raw(name).output or ""
    found: dict[str, Any] = json.loads(text[text.index("{") :])
    return found


# --- damage -------------------------------------------------------------------------------------------------

PARSED = st.sampled_from(["rand_read", "mixed", "checkpoint", "numjobs2", "sigterm", "enospc", "status_interval"])
ENDED = st.fixed_dictionaries(
    {},
    optional={
        "exit_status": st.one_of(st.none(), st.integers(-1, 255)),
        "signal": st.one_of(st.none(), st.integers(1, 31)),
        "timed_out": st.booleans(),
    },
)
DAMAGE = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([]), st.just({}), st.just(2**70)
)
THOROUGH = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def _is_honest_or_unknown(raw: Any) -> None:
    """Whatever is parsed is finite, above zero where a zero could only stand for nothing, and has a reason."""
    try:
        parsed = FIO.parse(raw)
    except UnknownOutput:
        return
    assert (parsed.outcome is Outcome.OK) == (not parsed.reason)
    for metric, value in _values(parsed).items():
        assert math.isfinite(value)
        assert value > 0 or metric.startswith("cpu_")
        FIO.metric(metric)
    if parsed.outcome is Outcome.OK:
        assert FIO.required(FIO.params_of(raw.job)) <= set(_values(parsed))


@THOROUGH
@given(PARSED, st.data(), ENDED)
def test_a_damaged_text_is_parsed_honestly_or_refused(name: str, data: st.DataObject, ended: dict[str, Any]) -> None:
    text = samples.raw(name).output or ""
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 2000)))
    put = data.draw(st.one_of(st.just(""), st.just(text[start:end] * 2), st.text(max_size=20)))
    _is_honest_or_unknown(samples.raw(name, output=text[:start] + put + text[end:], **ended))


@THOROUGH
@given(PARSED, st.floats(0, 1), ENDED)
def test_a_text_cut_anywhere_is_parsed_honestly_or_refused(name: str, where: float, ended: dict[str, Any]) -> None:
    text = samples.raw(name).output or ""
    _is_honest_or_unknown(samples.raw(name, output=text[: int(where * len(text))], **ended))


@THOROUGH
@given(st.sampled_from(["rand_read", "mixed", "checkpoint", "numjobs2"]), st.data(), ENDED)
def test_a_document_with_a_wrong_value_is_parsed_honestly_or_refused(
    name: str, data: st.DataObject, ended: dict[str, Any]
) -> None:
    document = _json(name)
    at: Any = document
    while True:
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        if not isinstance(at[key], dict | list) or not at[key] or data.draw(st.integers(0, 9)) == 0:
            break
        at = at[key]
    if isinstance(at, dict) and data.draw(st.booleans()):
        del at[key]
    else:
        at[key] = data.draw(DAMAGE)
    _is_honest_or_unknown(samples.raw(name, output=_printed(document), **ended))


@THOROUGH
@given(st.text(), st.text(), ENDED)
def test_any_text_is_parsed_honestly_or_refused(output: str, stdout: str, ended: dict[str, Any]) -> None:
    _is_honest_or_unknown(samples.of({}, output=output, stdout=stdout, **ended))
