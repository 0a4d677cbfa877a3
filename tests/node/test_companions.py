"""A benchmark beside another: planned for each of its jobs, ended with it, with a row of its own, and harmless."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines import benchmark, companions, node, plan, process
from pipelines.errors import BadParameter
from pipelines.records import Job, Outcome, Plan, RawOutput, Scalar, Suite, SuiteEntry
from pipelines.settings import Settings
from pipelines.storage import Store
from tests import make

STANDINS = Path(__file__).parents[1] / "standins/dcgm"
LOAD: dict[str, Scalar] = {"profile": "rand_read", "size_bytes": 2**20, "runtime_s": 1.5, "ramp_s": 0.0}
GPU = make.node(free_floor_bytes=0, features=("gpu",))
BESIDE = SuiteEntry(benchmark="fio", params=LOAD, beside=("dcgm_profile",))


def _plan(entry: SuiteEntry = BESIDE, **fields: object) -> Plan:
    nodes = (GPU.model_copy(update=fields),)
    suite = Suite(name="test", description="", entries=(entry,))
    return plan.make(suite, nodes, run_id=make.RUN_ID, created_at=make.AT, trigger="cli")


def _run(settings: Settings, store: Store, made: Plan) -> tuple[RawOutput, RawOutput]:
    """The raw outputs of the job and of what stood beside it."""
    node.run_jobs(settings, store, made, "gpu-01", 1, lambda _: None)
    stored = node.stored_keys(store, made.run_id, "gpu-01")
    main, beside = (RawOutput.model_validate_json(store.read(stored[job.job_id])) for job in made.jobs)
    return main, beside


@pytest.fixture
def standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in of dcgmi on the PATH, and where a test tells it how to behave."""
    monkeypatch.setenv("PATH", f"{STANDINS}:{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / "version").write_text("4.6.0")
    return tmp_path


def test_each_job_of_an_entry_has_its_own_beside_it_named_after_it() -> None:
    made = _plan(BESIDE.model_copy(update={"repeats": 2}))
    assert [(job.benchmark, job.case, job.repeat) for job in made.jobs] == [
        ("fio", "rand_read-1MiB", 1),
        ("dcgm_profile", "fio-rand_read-1MiB", 1),
        ("fio", "rand_read-1MiB", 2),
        ("dcgm_profile", "fio-rand_read-1MiB", 2),
    ]
    first, watcher = made.jobs[:2]
    assert watcher.beside == first.job_id
    assert len({job.job_id for job in made.jobs}) == 4
    assert watcher.params["seconds"] >= first.timeout_s
    assert made.solo_jobs_of("gpu-01") == (first, made.jobs[2])
    assert made.seconds_by_node()["gpu-01"] == 2 * first.seconds


def test_on_a_node_without_its_feature_nothing_stands_beside_and_the_plan_says_so() -> None:
    made = _plan(features=())
    assert [job.benchmark for job in made.jobs] == ["fio"]
    assert made.left_out == ("dcgm_profile is not run on gpu-01: the inventory does not give it the feature gpu",)


@pytest.mark.parametrize(
    "entry",
    [
        SuiteEntry(benchmark="fio", beside=("iperf3",)),
        SuiteEntry(benchmark="iperf3", beside=("dcgm_profile",)),
    ],
)
def test_what_cannot_stand_beside_another_is_refused(entry: SuiteEntry) -> None:
    with pytest.raises(BadParameter):
        _plan(entry)


@pytest.mark.integration
def test_it_watches_while_the_other_runs_and_ends_with_it(settings: Settings, store: Store, standin: Path) -> None:
    made = _plan()
    main, beside = _run(settings, store, made)
    assert main.exit_status == 0
    assert beside.facts["beside"] == beside.facts["ended_with"] == main.job.job_id
    assert beside.started_at < main.started_at
    assert beside.signal == signal.SIGTERM
    parsed = benchmark.get("dcgm_profile").parse(beside)
    assert (parsed.outcome, parsed.reason) == (Outcome.OK, "")
    assert "sm_active" in {each.metric for each in parsed.measurements}
    assert not list((settings.home / "scratch").iterdir())


@pytest.mark.integration
def test_one_that_fails_says_so_in_its_own_row_and_the_other_is_whole(
    settings: Settings, store: Store, standin: Path
) -> None:
    (standin / "hostengine").write_text("down")
    main, beside = _run(settings, store, _plan(BESIDE.model_copy(update={"params": {**LOAD, "runtime_s": 0.1}})))
    assert main.exit_status == 0
    assert (beside.exit_status, "ended_with" in beside.facts) == (235, False)
    assert benchmark.get("dcgm_profile").parse(beside).outcome is Outcome.CONFIG


@pytest.mark.integration
def test_one_that_does_not_want_to_end_is_killed(
    settings: Settings, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(companions, "_ENDING_S", 0.3)
    tool = tmp_path / "dcgmi"
    version = "dcgmi  version: 4.6.0"
    tool.write_text(
        f"#!/bin/sh\n[ $1 = --version ] && echo '{version}' && exit\ntrap '' TERM\nwhile :; do sleep 1; done\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    main, beside = _run(settings, store, _plan(BESIDE.model_copy(update={"params": {**LOAD, "runtime_s": 0.1}})))
    assert main.exit_status == 0
    assert beside.signal == 9


def test_one_whose_tool_starts_after_the_others_end_is_killed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(companions, "_STARTING_S", 0.05)
    monkeypatch.setattr(companions, "_ENDING_S", 0.05)
    may_start, ended = threading.Event(), threading.Event()
    done: list[process.Completed] = []

    def measure(_job: Job, started: Callable[[int], None]) -> RawOutput:
        may_start.wait()
        done.append(process.run(("sleep", "600"), timeout_s=600, started=started))
        ended.set()
        return make.raw()

    with companions.watching((make.job(beside="job-2"),), measure) as found:
        pass
    assert found == {"job-1": None}
    may_start.set()
    assert ended.wait(60)
    assert done[0].signal == 9


def test_one_that_breaks_has_no_raw_output_and_nothing_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    broken: list[object] = []
    monkeypatch.setattr("threading.excepthook", broken.append)
    job = make.job(beside="job-2")
    with companions.watching((job,), lambda _job, _started: 1 / 0) as ended:  # type: ignore[arg-type,return-value]
        assert not ended
    assert ended == {"job-1": None}
    assert len(broken) == 1
