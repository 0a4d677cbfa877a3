"""The node's shell with the real fio: every planned job ends as one raw output, whatever happens to its tool."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from pipelines import benchmark, keys, lease, node, plan, storage
from pipelines.errors import StoreUnreachable, Unknown, WrongNode
from pipelines.records import Environment, Job, Node, Outcome, Plan, RawOutput, Scalar, Suite, SuiteEntry
from pipelines.settings import Settings, load
from pipelines.spool import Spool
from pipelines.storage import Store
from tests import make, processes, servers
from tests.node.conftest import Mount
from tests.node.waiting import runs, until

ROOT = Path(__file__).parents[2]
SMALL: dict[str, Scalar] = {"profile": "rand_read", "size_bytes": 2**20, "runtime_s": 0.1, "ramp_s": 0.0}
MINUTES: dict[str, Scalar] = {**SMALL, "runtime_s": 300.0}
WRITES: dict[str, Scalar] = {"profile": "seq_write", "size_bytes": 16 * 2**20, "runtime_s": 0.1, "ramp_s": 0.0}
NODE = make.node(free_floor_bytes=0)


def _plan(*params: dict[str, Scalar], place: Node = NODE, run_id: str = make.RUN_ID, **job: Any) -> Plan:
    entries = tuple(SuiteEntry(benchmark="fio", params=each) for each in params or (SMALL,))
    suite = Suite(name="test", description="", entries=entries)
    made = plan.make(suite, (place,), run_id=run_id, created_at=make.AT, trigger="cli")
    return made.model_copy(update={"jobs": tuple(each.model_copy(update=job) for each in made.jobs)})


def _run(settings: Settings, store: Store, made: Plan, attempt: int = 1) -> tuple[list[RawOutput], list[str]]:
    said: list[str] = []
    stored = node.run_jobs(settings, store, made, "gpu-01", attempt, said.append)
    return [RawOutput.model_validate_json(store.read(key)) for key in stored], said


def _refusal(raw: RawOutput) -> tuple[Outcome, str]:
    assert raw.refusal is not None
    assert (raw.argv, raw.exit_status, raw.output) == ((), None, None)
    return raw.refusal.outcome, raw.refusal.reason


def _leftovers(settings: Settings) -> list[Path]:
    return list((settings.home / "scratch").iterdir())


def test_jobs_run_in_plan_order_and_each_raw_output_has_the_evidence(settings: Settings, store: Store) -> None:
    made = _plan(SMALL, WRITES)
    stored = node.run_jobs(settings, store, made, "gpu-01", 1, lambda _: None)
    assert stored == tuple(keys.raw_key(made.run_id, "gpu-01", job.job_id, 1) for job in made.jobs)
    first, second = (RawOutput.model_validate_json(store.read(key)) for key in stored)
    assert (first.job, second.job) == made.jobs
    assert first.started_at < second.started_at
    assert (first.exit_status, first.signal, first.timed_out, first.refusal, first.simulated) == (
        0,
        None,
        False,
        None,
        False,
    )
    assert first.argv[0] == "fio"
    assert f'"fio version" : "fio-{first.tool_version}"' in (first.output or "")
    assert first.duration_s >= 0.1
    assert {"filesystem", "direct_io", "block_size"} <= set(first.facts)
    assert [benchmark.get("fio").parse(raw).outcome for raw in (first, second)] == [Outcome.OK, Outcome.OK]
    assert _leftovers(settings) == []


def test_environment_of_a_raw_output_is_in_the_store(settings: Settings, store: Store) -> None:
    (raw,), _ = _run(settings, store, _plan())
    kept = Environment.model_validate_json(store.read(keys.environment_key(raw.environment_id)))
    assert kept.environment_id == raw.environment_id
    tools = kept.facts["tools"]
    assert isinstance(tools, tuple)
    assert {"name": "fio", "version": raw.tool_version} in tools


def test_progress_is_said_before_and_after_each_job(settings: Settings, store: Store) -> None:
    made = _plan(SMALL, WRITES)
    _, said = _run(settings, store, made)
    assert len(said) == 4
    assert said[2] == f"2/2 fio {made.jobs[1].case} repeat 1: about 0 s"
    assert said[3].startswith(f"2/2 fio {made.jobs[1].case} repeat 1: exit 0, ")


def test_retry_runs_only_what_is_missing(settings: Settings, store: Store) -> None:
    made = _plan(SMALL, {**SMALL, "iodepth": 2}, {**SMALL, "iodepth": 3})
    first, _ = _run(settings, store, made)
    store.delete(keys.raw_key(made.run_id, "gpu-01", made.jobs[1].job_id, 1))
    again, said = _run(settings, store, made, attempt=2)
    assert [raw.attempt for raw in again] == [1, 2, 1]
    assert (again[0], again[2]) == (first[0], first[2])
    assert all(line.startswith("2/3 ") for line in said)


def test_complete_run_needs_no_lease(settings: Settings, store: Store) -> None:
    done, _ = _run(settings, store, _plan())
    with lease.held(settings.lease_dir, "other", "gpu-01", 0.0, lambda _: None):
        assert _run(settings, store, _plan(), attempt=2) == (done, [])


def test_node_that_is_not_in_the_plan_is_unknown(settings: Settings, store: Store) -> None:
    with pytest.raises(Unknown, match="gpu-07"):
        node.run_jobs(settings, store, _plan(), "gpu-07", 1, lambda _: None)


def test_one_job_runs_without_a_store(settings: Settings) -> None:
    (job,) = _plan().jobs
    raw = node.run_once(settings, NODE, job, say=lambda _: None)
    assert benchmark.get("fio").parse(raw).outcome is Outcome.OK
    assert not (settings.home / "store").exists()


@pytest.fixture
def bin_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on the PATH besides the system's shell; empty, so fio is not installed."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def _executable(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.usefixtures("bin_dir")
def test_missing_fio_is_not_measured(settings: Settings, store: Store) -> None:
    (raw,), _ = _run(settings, store, _plan())
    outcome, reason = _refusal(raw)
    assert outcome is Outcome.NOT_MEASURED
    assert "apt-get install fio" in reason
    assert benchmark.get("fio").parse(raw).outcome is Outcome.NOT_MEASURED


def test_fio_that_is_too_old_is_not_started(settings: Settings, store: Store, bin_dir: Path) -> None:
    _executable(bin_dir / "fio", "echo fio-2.1")
    (raw,), _ = _run(settings, store, _plan())
    assert _refusal(raw) == (Outcome.CONFIG, "fio 2.1 is too old; 3.16 or later is needed: apt-get install fio")
    assert raw.tool_version == "2.1"


def test_stand_in_for_a_tool_makes_a_simulated_row(settings: Settings, store: Store, bin_dir: Path) -> None:
    _executable(bin_dir / "fio", "echo fio-3.33; echo fleetmark-simulated")
    (raw,), _ = _run(settings, store, _plan())
    assert (raw.simulated, raw.exit_status) == (True, 0)


def test_tool_that_disappears_between_jobs_is_a_raw_output(settings: Settings, store: Store, bin_dir: Path) -> None:
    _executable(bin_dir / "fio", f"echo fio-3.33; /bin/rm {bin_dir}/fio")
    (raw,), _ = _run(settings, store, _plan())
    assert _refusal(raw) == (Outcome.NOT_MEASURED, "fio is not installed on this node, or not on its PATH")


def test_output_file_is_kept_to_a_cap(settings: Settings, store: Store, bin_dir: Path) -> None:
    answer = "case $1 in --version) echo fio-3.33;; *) /usr/bin/head -c 20000000 /dev/zero > output.json;; esac"
    _executable(bin_dir / "fio", answer)
    (raw,), _ = _run(settings, store, _plan())
    assert len(raw.output or "") == 16 * 2**20
    assert raw.facts["output_truncated"] == "true"


def test_link_in_place_of_the_output_is_not_read(settings: Settings, store: Store, bin_dir: Path) -> None:
    _executable(bin_dir / "fio", "echo fio-3.33; test $1 = --version || /bin/ln -s /etc/passwd output")
    (raw,), _ = _run(settings, store, _plan())
    assert raw.output is None


def test_fio_that_hangs_ends_at_its_timeout(settings: Settings, store: Store) -> None:
    (raw,), said = _run(settings, store, _plan(MINUTES, timeout_s=0.5))
    assert raw.timed_out
    assert raw.duration_s < 10
    assert "timed out" in said[-1]
    assert benchmark.get("fio").parse(raw).outcome is Outcome.TRUNCATED
    assert _leftovers(settings) == []


def test_disk_that_fills_up_is_a_raw_output_with_fios_words(settings: Settings, store: Store, mount: Mount) -> None:
    place = make.node(scratch=str(mount("full", "size=4m")), free_floor_bytes=0)
    (raw,), _ = _run(settings, store, _plan(WRITES, place=place, written_bytes=1))
    parsed = benchmark.get("fio").parse(raw)
    assert raw.exit_status != 0
    assert parsed.outcome is Outcome.TOOL_FAILED
    assert "No space left on device" in parsed.reason
    assert list(Path(place.scratch).iterdir()) == []


def test_disk_without_room_is_refused_before_anything_is_written(
    settings: Settings, store: Store, mount: Mount
) -> None:
    place = make.node(scratch=str(mount("small", "size=4m")), free_floor_bytes=0)
    (raw,), _ = _run(settings, store, _plan(WRITES, place=place))
    outcome, reason = _refusal(raw)
    assert (outcome, "free some space" in reason) == (Outcome.CONFIG, True)


def test_more_than_the_nodes_cap_is_refused(settings: Settings, store: Store) -> None:
    place = make.node(scratch_cap_bytes=2**20, free_floor_bytes=0)
    (raw,), _ = _run(settings, store, _plan(WRITES, place=place))
    assert "scratch_cap_bytes" in _refusal(raw)[1]


def test_read_only_scratch_is_refused(settings: Settings, store: Store, mount: Mount) -> None:
    place = make.node(scratch=str(mount("ro", "size=4m,ro")), free_floor_bytes=0)
    (raw,), _ = _run(settings, store, _plan(place=place))
    assert _refusal(raw) == (
        Outcome.CONFIG,
        f"scratch directory {place.scratch}: its filesystem is mounted read-only",
    )


def test_scratch_that_is_gone_is_refused_for_each_job(settings: Settings, store: Store, tmp_path: Path) -> None:
    place = make.node(scratch=str(tmp_path / "gone"))
    raws, _ = _run(settings, store, _plan(SMALL, WRITES, place=place))
    assert [_refusal(raw)[0] for raw in raws] == [Outcome.CONFIG, Outcome.CONFIG]
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("change", [{"benchmark": "fio9"}, {"params": {"profile": "shuffle"}}])
def test_job_this_version_does_not_know_is_refused(settings: Settings, store: Store, change: dict[str, Any]) -> None:
    (raw,), _ = _run(settings, store, _plan(**change))
    assert _refusal(raw)[0] is Outcome.CONFIG


def test_lease_that_stays_held_contends_every_job(settings: Settings, store: Store) -> None:
    impatient = settings.model_copy(update={"lease_wait_s": 0.1})
    with lease.held(settings.lease_dir, "nightly", "gpu-01", 0.0, lambda _: None):
        raws, _ = _run(impatient, store, _plan(SMALL, WRITES))
    assert [_refusal(raw)[0] for raw in raws] == [Outcome.CONTENDED, Outcome.CONTENDED]
    assert f"held by run nightly (pid {os.getpid()})" in _refusal(raws[0])[1]
    assert raws[0].lease_wait_s >= 0.1


def test_lease_folder_that_is_missing_is_a_matter_of_set_up(settings: Settings, store: Store, tmp_path: Path) -> None:
    (raw,), _ = _run(settings.model_copy(update={"lease_dir": tmp_path / "none"}), store, _plan())
    outcome, reason = _refusal(raw)
    assert (outcome, "FLEETMARK_LEASE_DIR" in reason) == (Outcome.CONFIG, True)


@contextmanager
def _runner(settings: Settings, made: Plan, attempt: int = 1) -> Iterator["subprocess.Popen[str]"]:
    """A node in a process of its own, whose lines are read from its stdout."""
    for name, record in (("settings", settings), (made.run_id, made)):
        (settings.home / f"{name}.json").write_text(record.model_dump_json())
    files = (settings.home / "settings.json", settings.home / f"{made.run_id}.json")
    command = (sys.executable, "-m", "tests.node.runner", *files, str(attempt))
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as runner:
        try:
            yield runner
        finally:
            runner.kill()


def _tool(settings: Settings) -> int:
    """The process that works in the scratch directory now."""

    def look() -> int | None:
        for owner in settings.home.glob("scratch/*/.owner.json"):
            found = [int(word) for word in owner.read_text().replace(",", " ").split() if word.isdigit()]
            return found[0] if found else None
        return None

    return until(look, "fio to start")


def test_fio_killed_in_mid_run_is_a_raw_output(settings: Settings, store: Store) -> None:
    made = _plan(MINUTES, SMALL)
    with _runner(settings, made) as runner:
        os.kill(_tool(settings), signal.SIGKILL)
        assert runner.wait(30) == 0
    killed, following = _run(settings, store, made, attempt=2)[0]
    assert (killed.attempt, killed.signal, killed.exit_status) == (1, signal.SIGKILL, None)
    assert benchmark.get("fio").parse(killed).outcome is not Outcome.OK
    assert (following.attempt, following.exit_status) == (1, 0)


def test_runner_killed_in_mid_run_loses_only_the_job_it_was_in(settings: Settings, store: Store) -> None:
    made = _plan(SMALL, MINUTES, WRITES)
    with _runner(settings, made) as runner:
        first = keys.raw_key(made.run_id, "gpu-01", made.jobs[0].job_id, 1)
        until(lambda: store.exists(first), "the first job's raw output")
        running = f"fleetmark-{made.jobs[1].job_id}"
        until(lambda: list(settings.home.glob(f"scratch/{running}/rand_read*")), "the second job's file")
        tool = _tool(settings)
        runner.kill()
        runner.wait()
    until(lambda: not runs(tool), "fio to end with its runner")
    assert [path.name for path in _leftovers(settings)] == [running]

    shorter = made.model_copy(update={"jobs": tuple(_short(job) for job in made.jobs)})
    raws, said = _run(settings, store, shorter, attempt=2)
    assert [(raw.attempt, raw.exit_status) for raw in raws[::2]] == [(1, 0), (2, 0)]
    assert (raws[1].attempt, raws[1].timed_out) == (2, True)
    assert said[0] == f"reclaimed {settings.home}/scratch/{running}"
    assert _leftovers(settings) == []


def _short(job: Job) -> Job:
    return job.model_copy(update={"timeout_s": 2.0})


def test_second_run_on_the_node_waits_says_so_and_then_runs(settings: Settings, store: Store) -> None:
    slow = _plan({**SMALL, "runtime_s": 1.0}, run_id="20261121T020000Z-aaaaaa")
    late = _plan(run_id="20261121T020000Z-bbbbbb")
    with _runner(settings, slow) as first:
        _tool(settings)
        with _runner(settings, late) as second:
            assert second.stdout is not None
            waiting = second.stdout.readline()
            assert (first.wait(30), second.wait(30)) == (0, 0)
    assert waiting.startswith(f"waiting for the lease of node gpu-01, held by run {slow.run_id} (pid {first.pid})")
    (before,), (after,) = _run(settings, store, slow)[0], _run(settings, store, late)[0]
    assert (before.exit_status, after.exit_status) == (0, 0)
    assert after.lease_wait_s > 0.0 == before.lease_wait_s
    assert (after.started_at - before.started_at).total_seconds() >= before.duration_s


def test_work_for_another_node_is_refused_before_anything_is_done(settings: Settings, store: Store) -> None:
    elsewhere = settings.model_copy(update={"node": "gpu-02"})
    with pytest.raises(WrongNode, match="for node gpu-01, and this machine is node gpu-02") as failure:
        _run(elsewhere, store, _plan())
    assert failure.value.retryable
    assert not store.keys_under("raw")
    assert not (settings.home / "scratch").exists()


def test_work_for_the_node_that_this_machine_is_runs(settings: Settings, store: Store) -> None:
    (raw,), _ = _run(settings.model_copy(update={"node": "gpu-01"}), store, _plan())
    assert raw.exit_status == 0


def test_machine_without_a_name_of_its_own_runs_the_work_of_any_node() -> None:
    assert load({}).node is None
    load({}).require_node("gpu-01")
    assert load({}).node_name == "localhost"


def _attempt(settings: Settings, made: Plan, number: int) -> None:
    node.run_jobs(settings, storage.open_store(settings), made, "gpu-01", number, lambda _: None)


def test_runner_killed_at_any_moment_leaves_no_half_result_and_no_tool(settings: Settings) -> None:
    made = _plan(SMALL, {**SMALL, "numjobs": 4}, WRITES)
    places = [settings.model_copy(update={"home": settings.home / str(number)}) for number in range(13)]
    span_s = processes.duration_s(_attempt, places[0], made, 1)
    met_a_job = 0
    for place, moment in zip(places[1:], processes.moments(6, 12, span_s), strict=True):
        store = storage.open_store(place)
        processes.kill_after(moment, _attempt, place, made, 1)
        before = store.keys_under("raw")
        assert [RawOutput.model_validate_json(store.read(key)).exit_status for key in before] == [0] * len(before)
        met_a_job += any(place.home.glob("scratch/fleetmark-*"))
        until(lambda place=place: not _working_in(place.home), "the tool to end with its runner")  # type: ignore[misc]
        raws, _ = _run(place, store, made, attempt=2)
        assert [raw.exit_status for raw in raws] == [0, 0, 0]
        assert set(before) < set(store.keys_under("raw")) or len(before) == 3
        assert len(store.keys_under("raw")) == 3
        assert _leftovers(place) == []
    assert met_a_job > 0, "no kill met a job: the test has proved nothing"


def _working_in(home: Path) -> list[int]:
    """The processes whose working directory lies in a directory."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and (entry / "cwd").readlink().is_relative_to(home) and runs(int(entry.name)):
                found.append(int(entry.name))
    return found


def test_store_that_goes_away_and_stays_away_raises_and_leaves_the_evidence_in_the_spool(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as serving:
        (tmp_path / "s3").mkdir()
        server = serving.enter_context(servers.moto(tmp_path / "s3"))
        for name, value in server.environ.items():
            monkeypatch.setenv(name, value)
        url = {"store": f"s3://{server.new_bucket()}", "s3_endpoint": server.endpoint}
        on_s3 = settings.model_copy(update={**url, "store_retry_s": 0.3, "spool_wait_s": 0.3})
        made = _plan(SMALL, {**SMALL, "iodepth": 2})
        said: list[str] = []

        def say(line: str) -> None:
            said.append(line)
            if line.startswith("2/2") and "exit" in line:
                serving.close()

        second = keys.raw_key(made.run_id, "gpu-01", made.jobs[1].job_id, 1)
        with pytest.raises(StoreUnreachable, match=second):
            node.run_jobs(on_s3, storage.open_store(on_s3), made, "gpu-01", 1, say)
    assert Spool.of(on_s3, storage.open_store(on_s3)).waiting() == [second]
    assert "is kept in" in said[4]
    assert _leftovers(settings) == []
    assert lease.holder(settings.lease_dir / "fleetmark.lock") is None
