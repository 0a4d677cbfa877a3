"""Runs of fio that did not end well: what each is called, and the reason that is given."""

import re

import pytest

from pipelines.errors import UnknownOutput
from pipelines.records import Outcome, Parsed
from tests.benchmarks import fio_samples as samples
from tests.benchmarks.fio_samples import FIO


def test_a_run_ended_by_sigterm_is_truncated_although_its_document_is_whole_and_without_error() -> None:
    assert samples.document("sigterm")["jobs"][0]["error"] == 0
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
    assert not [metric for metric in samples.values(parsed) if "latency" in metric]


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
    document = samples.document("checkpoint")
    document["jobs"][0]["write"]["io_bytes"] -= 2**20
    parsed = samples.parse_changed("checkpoint", document)
    assert (parsed.outcome, parsed.reason) == (Outcome.TRUNCATED, "267386880 of 268435456 B were written")


def test_a_job_that_did_not_report_is_missed() -> None:
    document = samples.document("numjobs2")
    del document["jobs"][1]
    parsed = samples.parse_changed("numjobs2", document)
    assert (parsed.outcome, parsed.reason) == (Outcome.TRUNCATED, "1 of 2 jobs reported")


def test_jobs_merged_into_one_by_group_reporting_are_not_taken_for_all_of_them() -> None:
    assert FIO.parse(samples.raw("randrw_grouped")).reason == "1 of 2 jobs reported"


def test_missing_percentiles_are_named() -> None:
    parsed = FIO.parse(samples.raw("no_percentiles"))
    assert parsed.outcome is Outcome.TRUNCATED
    assert "read_latency_p99" in parsed.reason
    assert not [metric for metric in samples.values(parsed) if "latency" in metric]


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
    document = samples.document("checkpoint")
    document["jobs"][0]["error"] = 22
    assert samples.parse_changed("checkpoint", document, exit_status=1).outcome is Outcome.TOOL_FAILED


def test_an_io_uring_that_the_node_forbids_is_a_matter_of_configuration() -> None:
    parsed = FIO.parse(samples.raw("io_uring_forbidden"))
    assert parsed.outcome is Outcome.CONFIG
    assert parsed.reason.startswith("EPERM (Operation not permitted) with io_uring")


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
