"""What is made of real outputs of fio, of damaged ones, and of text that fio never printed."""

import json
import math
import re
from typing import Any

import pytest

from pipelines import histograms
from pipelines.records import Outcome, Parsed
from tests.benchmarks import fio_samples as samples
from tests.benchmarks.fio_samples import FIO

WHOLE = ("seq_read", "seq_write", "rand_read", "rand_write", "mixed", "checkpoint", "numjobs2")
OTHER_VERSIONS = ("3.25-mixed", "3.39-mixed", "3.39-checkpoint")


# --- whole documents ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mixed", "checkpoint"])
def test_a_real_output_gives_exactly_the_golden_result(name: str) -> None:
    golden = (samples.FOLDER / f"3.33-{name}.golden.json").read_text()
    assert FIO.parse(samples.raw(name)) == Parsed.model_validate_json(golden)


@pytest.mark.parametrize("name", [*WHOLE, *OTHER_VERSIONS])
def test_a_whole_run_is_ok_and_every_value_lies_in_its_honest_range(name: str) -> None:
    parsed = FIO.parse(samples.raw(name))
    assert (parsed.outcome, parsed.reason) == (Outcome.OK, "")
    for measurement in parsed.measurements:
        metric = FIO.metric(measurement.metric)
        assert metric.low <= measurement.value <= metric.high
        assert metric.unit == measurement.unit


@pytest.mark.parametrize(("filesystem", "label"), [("ext4", None), ("tmpfs", "tmpfs"), ("zfs", "zfs")])
def test_what_may_have_come_from_memory_although_it_was_direct_is_labelled(filesystem: str, label: str | None) -> None:
    parsed = FIO.parse(samples.raw("mixed", facts={"filesystem": filesystem}))
    assert parsed.outcome is Outcome.OK
    for each in (*parsed.measurements, *parsed.histograms):
        assert (each.labels["direct"], each.labels.get("filesystem")) == ("true", label)


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


def test_every_sample_has_a_run_that_gave_it() -> None:
    assert {path.name for path in samples.FOLDER.iterdir() if ".golden" not in path.name} == set(samples.NAMES)


def test_percentiles_are_printed_in_the_samples_at_all() -> None:
    assert sum(len(_printed_latencies(samples.text(name))) for name in samples.NAMES) > 15


@pytest.mark.parametrize("name", ["seq_read", "rand_write", "mixed"])
def test_rates_are_fios_bytes_and_requests_per_second_and_not_its_kibibytes(name: str) -> None:
    values = samples.values(FIO.parse(samples.raw(name)))
    (job,) = samples.document(name)["jobs"]
    for verb in ("read", "write"):
        if job[verb]["total_ios"]:
            assert values[f"{verb}_bandwidth"] == pytest.approx(job[verb]["bw_bytes"], abs=1)
            assert values[f"{verb}_iops"] == pytest.approx(job[verb]["iops"], abs=1e-3)


def test_jobs_are_summed_over_the_longest_of_their_runtimes() -> None:
    values = samples.values(FIO.parse(samples.raw("numjobs2")))
    one, other = samples.document("numjobs2")["jobs"]
    runtime_s = max(one["write"]["runtime"], other["write"]["runtime"]) / 1000
    assert values["write_bandwidth"] == (one["write"]["io_bytes"] + other["write"]["io_bytes"]) / runtime_s
    assert values["write_iops"] == (one["write"]["total_ios"] + other["write"]["total_ios"]) / runtime_s


def test_percentiles_of_several_jobs_are_those_of_all_their_requests() -> None:
    values = samples.values(FIO.parse(samples.raw("numjobs2")))
    kinds = [job["read"]["clat_ns"] for job in samples.document("numjobs2")["jobs"]]
    requests = sorted(int(value) for kind in kinds for value, count in kind["bins"].items() for _ in range(count))
    assert values["read_latency_p50"] == requests[math.ceil(len(requests) / 2) - 1] / 1e9
    assert values["read_latency_max"] == max(kind["max"] for kind in kinds) / 1e9
    assert values["read_latency_mean"] == pytest.approx(sum(requests) / len(requests) / 1e9, rel=0.02)


def test_histograms_hold_every_request_in_seconds() -> None:
    (histogram,) = FIO.parse(samples.raw("rand_read")).histograms
    clat = samples.document("rand_read")["jobs"][0]["read"]["clat_ns"]
    assert (histogram.metric, histogram.unit) == ("read_latency", "s")
    assert sum(count for _, count in histogram.bins) == clat["N"]
    assert {round(value * 1e9): count for value, count in histogram.bins} == {
        int(k): v for k, v in clat["bins"].items()
    }


def test_a_direction_without_requests_gives_no_rows() -> None:
    assert not [
        metric for metric in samples.values(FIO.parse(samples.raw("seq_read"))) if metric.startswith(("write", "sync"))
    ]


def test_a_checkpoint_says_what_its_fsyncs_took() -> None:
    values = samples.values(FIO.parse(samples.raw("checkpoint")))
    lat_ns = samples.document("checkpoint")["jobs"][0]["sync"]["lat_ns"]
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
    document = samples.document("rand_read")
    (job,) = document["jobs"]
    for latency in (job["read"]["clat_ns"], job["write"]["clat_ns"], job["sync"]["lat_ns"]):
        del latency["N"]
    job["write"]["clat_ns"]["percentile"] = dict.fromkeys(job["read"]["clat_ns"]["percentile"], 0)
    assert samples.parse_changed("rand_read", document) == FIO.parse(samples.raw("rand_read"))


def test_a_document_of_a_newer_version_reads_the_same() -> None:
    document = samples.document("rand_read")
    (job,) = document["jobs"]
    job |= {"job_start": 1795256219000, "latency_target_ns": 0, "zone_resets": 0}
    document["disk_util"][0] |= {"read_sectors": 1, "write_sectors": 1}
    assert samples.parse_changed("rand_read", document) == FIO.parse(samples.raw("rand_read"))


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
    values = samples.values(FIO.parse(samples.raw("status_interval")))
    documents = [
        json.loads(each) for each in re.findall(r"^\{$.*?^\}$", samples.text("3.33-status_interval.json"), re.M | re.S)
    ]
    assert len(documents) == 3
    assert values["read_iops"] == pytest.approx(documents[-1]["jobs"][0]["read"]["iops"], abs=1e-3)
