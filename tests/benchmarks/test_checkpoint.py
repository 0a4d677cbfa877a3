"""checkpoint: the probe on a real directory, and what the parser makes of what it printed."""

import os
from pathlib import Path
from typing import Any

import pytest

from pipelines import benchmark, page_cache, process
from pipelines.benchmark import Workplace
from pipelines.records import Outcome, RawOutput
from tests import make

CHECKPOINT = benchmark.get("checkpoint")
FOLDER = Path(__file__).parents[1] / "samples/checkpoint"
MIB = 2**20


def raw(stdout: str, **fields: Any) -> RawOutput:
    job = make.job(benchmark="checkpoint", case="w2", params={"writers": 2})
    return make.raw(job, **{"tool": CHECKPOINT.tool, "stdout": stdout, **fields})


def run(folder: Path, **given: Any) -> process.Completed:
    place = Workplace(folder, folder / "o", True, "0.1.0")
    params = CHECKPOINT.checked_params({"writers": 2, "size_bytes": 5 * MIB + 1, **given})
    return process.run(CHECKPOINT.command(params, place).argv, timeout_s=120, cwd=folder)


@pytest.mark.parametrize(("name", "cache"), [("dropped", "dropped"), ("warm", "warm")])
def test_bandwidths_are_all_shards_bytes_over_the_seconds_and_a_restore_says_where_it_read(
    name: str, cache: str
) -> None:
    parsed = CHECKPOINT.parse(raw((FOLDER / f"0.1.0-{name}.json").read_text()))
    assert parsed.outcome is Outcome.OK
    got = {each.metric: each for each in parsed.measurements}
    assert CHECKPOINT.required(CHECKPOINT.params()) <= set(got)
    total = int(got["save_time"].labels["writers"]) * int(got["save_time"].labels["size"])
    for way in ("save", "restore"):
        assert got[f"{way}_bandwidth"].value == pytest.approx(total / got[f"{way}_time"].value)
    assert got["restore_bandwidth"].labels["cache"] == cache
    assert "cache" not in got["save_bandwidth"].labels
    for each in parsed.measurements:
        metric = CHECKPOINT.metric(each.metric)
        assert metric.low <= each.value <= metric.high
        assert each.unit == metric.unit


def test_what_a_filesystem_may_have_kept_in_memory_is_labelled_with_it() -> None:
    document = (FOLDER / "0.1.0-warm.json").read_text()
    for filesystem, label in (("tmpfs", "tmpfs"), ("xfs", None)):
        measured = CHECKPOINT.parse(raw(document, facts={"filesystem": filesystem})).measurements
        assert {each.labels.get("filesystem") for each in measured} == {label}


def test_a_save_leaves_whole_shards_under_their_last_name_that_no_drive_can_store_once(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.exit_status == 0, done.stderr
    shards = sorted((tmp_path / "checkpoint").iterdir())
    assert [path.stat().st_size for path in shards] == [5 * MIB + 1] * 2
    assert list(tmp_path.iterdir()) == [tmp_path / "checkpoint"]
    blocks = [path.read_bytes()[at : at + 4096] for path in shards for at in range(0, 5 * MIB, 4096)]
    assert len(set(blocks)) == len(blocks)
    assert CHECKPOINT.parse(raw(done.stdout)).outcome is Outcome.OK


def test_a_checkpoint_in_memory_is_labelled_warm() -> None:
    import tempfile

    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        done = run(Path(folder), size_bytes=MIB)
    got = {each.metric: each.labels for each in CHECKPOINT.parse(raw(done.stdout)).measurements}
    assert got["restore_bandwidth"]["cache"] == "warm"


def test_a_full_disk_is_a_failure_of_the_tool(tmp_path: Path) -> None:
    limit = f'ulimit -f {MIB // 512}; exec "$@"'  # a file may have 1 MiB
    params = CHECKPOINT.checked_params({"writers": 1, "size_bytes": 2 * MIB})
    argv = CHECKPOINT.command(params, Workplace(tmp_path, tmp_path / "o", False, "0.1.0")).argv
    done = process.run(("sh", "-c", limit, "sh", *argv), timeout_s=60, cwd=tmp_path, environ=_with_own_programs())
    parsed = CHECKPOINT.parse(raw(done.stdout, exit_status=done.exit_status, signal=done.signal, stderr=done.stderr))
    assert parsed.outcome is Outcome.TOOL_FAILED
    assert "File too large" in parsed.reason


def test_a_shard_that_was_restored_with_another_byte_is_no_measurement(tmp_path: Path) -> None:
    from pipelines.probes import checkpoint

    shard = checkpoint._Shard("s", MIB, memoryview(os.urandom(20 * MIB)))
    path = tmp_path / "s"
    checkpoint._write(path, shard)
    assert checkpoint._is_right(shard, path)
    with path.open("r+b") as file:
        file.seek(MIB - 1)
        last = file.read(1)[0]
        file.seek(MIB - 1)
        file.write(bytes([last ^ 1]))
    assert not checkpoint._is_right(shard, path)


def test_the_page_cache_says_what_is_in_memory(tmp_path: Path) -> None:
    if process_filesystem(tmp_path) in {"tmpfs", "ramfs", "overlay"}:
        pytest.skip("a filesystem in memory forgets nothing")
    path = tmp_path / "file"
    path.write_bytes(os.urandom(MIB))
    assert page_cache.resident([path]) == 1
    page_cache.drop([path])
    assert page_cache.resident([path]) == 0
    (tmp_path / "empty").touch()
    assert page_cache.resident([tmp_path / "empty"]) == 0


def test_the_floor_of_saving_is_500_megabytes_a_second() -> None:
    (floor,) = CHECKPOINT.floors(CHECKPOINT.params())
    assert (floor.metric, floor.minimum, floor.unit) == ("save_bandwidth", 500_000_000, "B/s")


@pytest.mark.parametrize(
    ("given", "case"),
    [({}, "w4"), ({"writers": 8, "size_bytes": 2**32}, "w8-4096MiB"), ({"size_bytes": MIB + 1}, "w4-1048577B")],
)
def test_a_case_names_writers_and_size(given: dict[str, Any], case: str) -> None:
    assert CHECKPOINT.case(CHECKPOINT.checked_params(given)) == case


def process_filesystem(path: Path) -> str:
    from pipelines import mounts

    mount = mounts.of(path)
    return mount.filesystem if mount else "unknown"


def _with_own_programs() -> dict[str, str]:
    import sys

    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
