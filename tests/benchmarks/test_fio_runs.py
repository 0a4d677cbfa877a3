"""fio itself, on a real directory: what the command makes it do, and what the parser makes of that."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines import process
from pipelines.benchmark import Workplace
from pipelines.benchmarks.fio.params import DEFAULTS
from pipelines.records import Outcome, RawOutput
from tests import make
from tests.benchmarks.fio_samples import FIO

MIB = 2**20
SHORT: dict[str, Any] = {"size_bytes": 4 * MIB, "runtime_s": 0.2, "ramp_s": 0.1}
CHECKPOINT: dict[str, Any] = {"profile": "checkpoint", "size_bytes": 16 * MIB, "fsync_bytes": 4 * MIB}


def _short(profile: str) -> dict[str, Any]:
    return CHECKPOINT if profile == "checkpoint" else {"profile": profile, **SHORT}


def _run(given: dict[str, Any], folder: Path, *, direct_io: bool = False, timeout_s: float = 30.0) -> RawOutput:
    """Run one job with `folder`/scratch as its directory; what fio wrote there stays."""
    params = FIO.checked_params(given)
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True, parents=True)
    place = Workplace(scratch=scratch, output=folder / "output", direct_io=direct_io, tool_version="3.33")
    command = FIO.command(params, place)
    ended = process.run(command.argv, timeout_s=timeout_s, cwd=folder)
    job = make.job(case=FIO.case(params), params=params.model_dump(mode="json", exclude_none=True), timeout_s=timeout_s)
    return make.raw(
        job,
        argv=ended.argv,
        exit_status=ended.exit_status,
        signal=ended.signal,
        timed_out=ended.timed_out,
        output=(folder / "output").read_text() if (folder / "output").exists() else None,
        stdout=ended.stdout,
        stderr=ended.stderr,
        duration_s=ended.duration_s,
    )


def _files(folder: Path) -> dict[Path, int]:
    return {path.relative_to(folder): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("profile", DEFAULTS)
def test_every_profile_runs_and_gives_all_that_it_requires_within_honest_ranges(profile: str, tmp_path: Path) -> None:
    raw = _run(_short(profile), tmp_path)
    parsed = FIO.parse(raw)
    assert (parsed.outcome, parsed.reason) == (Outcome.OK, "")
    assert FIO.required(FIO.params_of(raw.job)) <= {measurement.metric for measurement in parsed.measurements}
    for measurement in parsed.measurements:
        assert FIO.metric(measurement.metric).low <= measurement.value <= FIO.metric(measurement.metric).high


@pytest.mark.parametrize("profile", ["rand_write", "checkpoint"])
def test_fio_never_writes_outside_its_scratch_directory_nor_more_than_its_cost_says(
    profile: str, tmp_path: Path
) -> None:
    given: dict[str, Any] = {**_short(profile), "numjobs": 2}
    _run(given, tmp_path)
    files = _files(tmp_path)
    assert {path.parts[0] for path in files} == {"scratch", "output"}
    assert 0 < sum(files.values()) <= FIO.cost(FIO.checked_params(given)).written_bytes


def test_a_directory_name_that_fio_would_read_as_two_is_one(tmp_path: Path) -> None:
    folder = tmp_path / "a:b c,$pagesize${HOME}\\d=1"
    assert FIO.parse(_run(CHECKPOINT, folder)).outcome is Outcome.OK
    assert set(_files(tmp_path)) == {
        Path(folder.name) / "scratch/checkpoint.0.0",
        Path(folder.name) / "output",
    }


def test_the_label_direct_is_what_the_filesystem_took(tmp_path: Path) -> None:
    taken = _takes_direct_io(tmp_path)
    parsed = FIO.parse(_run(_short("rand_read"), tmp_path, direct_io=taken))
    assert parsed.outcome is Outcome.OK
    assert {measurement.labels["direct"] for measurement in parsed.measurements} == {"true" if taken else "false"}


def _takes_direct_io(folder: Path) -> bool:
    try:
        os.close(os.open(folder / "probe", os.O_CREAT | os.O_WRONLY | os.O_DIRECT))
    except OSError as e:
        assert e.errno == errno.EINVAL  # noqa: PT017  the answer of a filesystem without it, see open(2)
        return False
    return True


def test_two_jobs_are_both_counted(tmp_path: Path) -> None:
    raw = _run({**CHECKPOINT, "numjobs": 2}, tmp_path)
    parsed = FIO.parse(raw)
    assert parsed.outcome is Outcome.OK
    (writes,) = [histogram for histogram in parsed.histograms if histogram.metric == "write_latency"]
    assert sum(count for _, count in writes.bins) == 2 * 16


def test_the_bandwidth_of_a_checkpoint_includes_making_it_durable(tmp_path: Path) -> None:
    """Bytes over bandwidth is the time measured; the timed fsyncs alone are part of it."""
    parsed = FIO.parse(_run(CHECKPOINT, tmp_path))
    values = {measurement.metric: measurement.value for measurement in parsed.measurements}
    (syncs,) = [histogram for histogram in parsed.histograms if histogram.metric == "sync_latency"]
    measured_s = 16 * MIB / values["write_bandwidth"]
    assert measured_s >= 0.95 * values["sync_latency_mean"] * sum(count for _, count in syncs.bins)


def test_a_run_that_hangs_is_ended_and_truncated(tmp_path: Path) -> None:
    raw = _run({"profile": "rand_read", "size_bytes": 4 * MIB, "runtime_s": 60}, tmp_path, timeout_s=1.0)
    assert raw.duration_s < 10
    parsed = FIO.parse(raw)
    assert (parsed.outcome, parsed.reason) == (Outcome.TRUNCATED, "fio was ended after 1 s, the job's timeout")


def test_a_scratch_directory_that_is_gone_is_a_failure_that_names_it(tmp_path: Path) -> None:
    params = FIO.checked_params(CHECKPOINT)
    place = Workplace(scratch=tmp_path / "gone", output=tmp_path / "output", direct_io=False, tool_version="3.33")
    ended = process.run(FIO.command(params, place).argv, timeout_s=10)
    raw = make.raw(exit_status=ended.exit_status, stdout=ended.stdout, stderr=ended.stderr)
    parsed = FIO.parse(raw)
    assert parsed.outcome is Outcome.TOOL_FAILED
    assert f"{tmp_path / 'gone'} is not a directory" in parsed.reason
    assert not (tmp_path / "gone").exists()


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with 4 MiB of room, in a filesystem of its own; without the right to mount one, with no room at all."""
    folder = tmp_path / "small"
    (folder / "scratch").mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder / "scratch"], check=False, capture_output=True
    )
    if mounted.returncode:
        (folder / "scratch/checkpoint.0.0").symlink_to("/dev/full")
    yield folder
    if not mounted.returncode:
        subprocess.run(["umount", folder / "scratch"], check=True)


def test_a_disk_that_fills_up_is_a_failure_that_says_so(full_disk: Path) -> None:
    parsed = FIO.parse(_run(CHECKPOINT, full_disk))
    assert parsed.outcome is Outcome.TOOL_FAILED
    assert parsed.reason.startswith("ENOSPC (No space left on device)")
