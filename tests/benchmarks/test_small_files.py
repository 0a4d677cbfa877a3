"""small_files: the probe on a real directory, and what the parser makes of what it printed."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines import benchmark, process
from pipelines.benchmark import Workplace
from pipelines.probes import small_files as probe
from pipelines.records import Outcome, RawOutput
from tests import make

SMALL_FILES = benchmark.get("small_files")
FOLDER = Path(__file__).parents[1] / "samples/small_files"


def raw(stdout: str, **fields: Any) -> RawOutput:
    job = make.job(benchmark="small_files", case="4096B-w1", params={})
    return make.raw(job, **{"tool": SMALL_FILES.tool, "stdout": stdout, **fields})


def sample(name: str) -> str:
    return (FOLDER / f"0.1.0-{name}.json").read_text()


@pytest.mark.parametrize(
    ("name", "read_from"),
    [("all", ["cold", "warm"]), ("data_cold", ["data_cold", "warm"]), ("warm", ["warm"])],
)
def test_every_phase_is_a_rate_and_a_read_says_from_where(name: str, read_from: list[str]) -> None:
    parsed = SMALL_FILES.parse(raw(sample(name)))
    assert (parsed.outcome, parsed.reason) == (Outcome.OK, "")
    assert SMALL_FILES.required(SMALL_FILES.params()) <= {each.metric for each in parsed.measurements}
    assert [each.labels["cache"] for each in parsed.measurements if each.metric == "read_rate"] == read_from
    keys = [(each.metric, tuple(each.labels.items())) for each in parsed.measurements]
    assert len(keys) == len(set(keys))
    for each in parsed.measurements:
        metric = SMALL_FILES.metric(each.metric)
        assert metric.low <= each.value <= metric.high
        assert each.unit == metric.unit


def test_what_a_filesystem_may_have_kept_in_memory_is_labelled_with_it() -> None:
    for filesystem, label in (("tmpfs", "tmpfs"), ("xfs", None)):
        measured = SMALL_FILES.parse(raw(sample("warm"), facts={"filesystem": filesystem})).measurements
        assert {each.labels.get("filesystem") for each in measured} == {label}


def test_a_rate_is_all_workers_files_over_the_seconds_from_the_first_to_the_last() -> None:
    document = json.loads(sample("data_cold"))
    created = next(phase for phase in document["phases"] if phase["phase"] == "create")
    assert created["files"] == document["files"] * document["workers"]
    got = {each.metric: each.value for each in SMALL_FILES.parse(raw(sample("data_cold"))).measurements}
    assert got["create_rate"] == pytest.approx(created["files"] / created["seconds"])


def test_a_phase_that_is_missing_is_no_whole_measurement() -> None:
    document = json.loads(sample("warm"))
    document["phases"] = [phase for phase in document["phases"] if phase["phase"] != "unlink"]
    parsed = SMALL_FILES.parse(raw(json.dumps(document)))
    assert (parsed.outcome, parsed.reason) == (Outcome.TRUNCATED, "the document gives no unlink_rate")


@pytest.mark.parametrize("workers", [1, 3])
def test_the_probe_makes_and_removes_what_it_says_and_nothing_else(workers: int, tmp_path: Path) -> None:
    params = SMALL_FILES.checked_params({"files": 100, "size_bytes": 100, "workers": workers})
    place = Workplace(tmp_path, tmp_path / "o", True, "0.1.0")
    done = process.run(SMALL_FILES.command(params, place).argv, timeout_s=120, cwd=tmp_path)
    assert SMALL_FILES.parse(raw(done.stdout, exit_status=done.exit_status, stderr=done.stderr)).outcome is Outcome.OK
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(left) == workers * probe.durable_count(100)
    assert all(path.name.startswith("durable-") for path in left)
    most = workers * (100 + probe.durable_count(100)) * 4096
    assert most <= SMALL_FILES.cost(params).written_bytes


def test_a_worker_that_fails_fails_the_probe_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "worker-001").mkdir()
    params = SMALL_FILES.checked_params({"files": 100, "workers": 2})
    place = Workplace(tmp_path, tmp_path / "o", True, "0.1.0")
    done = process.run(SMALL_FILES.command(params, place).argv, timeout_s=120, cwd=tmp_path)
    parsed = SMALL_FILES.parse(raw(done.stdout, exit_status=done.exit_status, stderr=done.stderr))
    assert parsed.outcome is Outcome.TOOL_FAILED
    assert "File exists" in parsed.reason


def test_a_file_that_reads_back_with_other_bytes_is_no_measurement(tmp_path: Path) -> None:
    files = probe._Files(tmp_path, 3, b"content")
    files.create()
    files.read()
    (tmp_path / "0000001").write_bytes(b"contenT")
    with pytest.raises(OSError, match="has other bytes"):
        files.read()


@pytest.mark.parametrize(
    ("given", "case"),
    [({}, "4096B-w1"), ({"workers": 8, "files": 10_000, "forget": "all"}, "4096B-w8-n10000-all")],
)
def test_a_case_names_what_makes_the_load(given: dict[str, Any], case: str) -> None:
    assert SMALL_FILES.case(SMALL_FILES.checked_params(given)) == case
