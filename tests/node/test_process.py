"""The door to processes: how a tool ends, what it sees, and that nothing of it stays behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from pipelines import process, process_groups
from pipelines.errors import ToolNotFound, ToolNotStarted
from tests.node.waiting import runs, until

CHILD_THAT_IGNORES_SIGTERM = """(trap "" TERM; exec sleep 300) & echo $!"""


def test_exit_status_and_signal_are_told_apart() -> None:
    left = process.run(("sh", "-c", "echo out; echo err >&2; exit 7"), timeout_s=10)
    killed = process.run(("sh", "-c", "kill -9 $$"), timeout_s=10)
    assert (left.exit_status, left.signal, left.stdout, left.stderr) == (7, None, "out\n", "err\n")
    assert (killed.exit_status, killed.signal, killed.timed_out) == (None, 9, False)


def test_timeout_ends_the_group_with_a_grandchild_that_ignores_sigterm() -> None:
    done = process.run(("sh", "-c", f"{CHILD_THAT_IGNORES_SIGTERM}; exec sleep 300"), timeout_s=0.3)
    assert (done.timed_out, done.signal) == (True, signal.SIGTERM)
    assert done.duration_s < 3
    until(lambda: not runs(int(done.stdout)), "the grandchild to end")


def test_tool_that_ignores_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_groups, "_GRACE_S", 0.1)
    done = process.run(("sh", "-c", "trap '' TERM; while :; do read x < /dev/zero; done"), timeout_s=0.2)
    assert (done.timed_out, done.signal) == (True, signal.SIGKILL)


def test_what_a_tool_says_after_sigterm_is_kept() -> None:
    script = "trap 'echo interrupted; kill $child; exit 3' TERM; sleep 300 & child=$!; wait"
    done = process.run(("sh", "-c", script), timeout_s=0.3)
    assert (done.timed_out, done.exit_status, done.stdout) == (True, 3, "interrupted\n")


def test_child_that_outlives_its_tool_is_ended() -> None:
    done = process.run(("sh", "-c", CHILD_THAT_IGNORES_SIGTERM), timeout_s=10)
    assert done.exit_status == 0
    until(lambda: not runs(int(done.stdout)), "the child to end")


def test_tool_has_no_terminal_and_no_input() -> None:
    done = process.run(("sh", "-c", "for d in 0 1 2; do test -t $d && echo $d; done; cat"), timeout_s=10)
    assert (done.exit_status, done.stdout) == (0, "")


def test_secrets_of_the_environment_do_not_reach_the_tool() -> None:
    given = {"PATH": os.environ["PATH"], "AWS_SECRET_ACCESS_KEY": "s3cret", "FLEETMARK_STORE": "s3://a", "LANG": "C"}
    done = process.run(("env",), timeout_s=10, environ=given)
    usual = {"PATH": given["PATH"], "LANG": "C", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert dict(line.split("=", 1) for line in done.stdout.splitlines()) == usual


def test_open_files_do_not_reach_the_tool(tmp_path: Path) -> None:
    with (tmp_path / "held").open("w") as held:
        os.set_inheritable(held.fileno(), True)
        done = process.run(("sh", "-c", "ls -l /proc/$$/fd"), timeout_s=10)
    assert done.exit_status == 0
    assert "held" not in done.stdout


def test_path_of_the_given_environment_finds_the_tool(tmp_path: Path) -> None:
    tool = tmp_path / "fio"
    tool.write_text("#!/bin/sh\necho mine\n")
    tool.chmod(0o755)
    assert process.run(("fio",), timeout_s=10, environ={"PATH": str(tmp_path)}).stdout == "mine\n"


def test_garbage_bytes_become_replacement_characters() -> None:
    done = process.run(("printf", r"a\377\000\303b"), timeout_s=10)
    assert done.stdout == "a\ufffd\x00\ufffdb"


def test_output_beyond_the_cap_is_read_and_dropped() -> None:
    done = process.run(("head", "-c", "40000000", "/dev/zero"), timeout_s=60)
    assert (done.exit_status, len(done.stdout)) == (0, 16 * 2**20)


def test_tool_that_never_stops_printing_ends_at_its_timeout() -> None:
    done = process.run(("cat", "/dev/zero"), timeout_s=0.3)
    assert (done.timed_out, len(done.stdout)) == (True, 16 * 2**20)
    assert done.duration_s < 3


def test_missing_tool_is_named() -> None:
    with pytest.raises(ToolNotFound, match="no-such-tool is not installed"):
        process.run(("no-such-tool",), timeout_s=10)


def test_file_that_cannot_be_executed_is_no_missing_tool(tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_bytes(b"\x7fELF of another machine")
    tool.chmod(0o755)
    with pytest.raises(ToolNotStarted, match="Exec format error"):
        process.run((str(tool),), timeout_s=10)


def test_working_directory_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(ToolNotStarted, match="No such file or directory"):
        process.run(("true",), timeout_s=10, cwd=tmp_path / "gone")


def test_descriptors_are_closed_however_it_ends() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    process.run(("true",), timeout_s=10)
    with pytest.raises(ToolNotFound):
        process.run(("no-such-tool",), timeout_s=10)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


class _Interrupted(Exception):
    pass


@pytest.fixture
def alarm() -> Iterator[Callable[[], object]]:
    """Sets off what Airflow does at a task's time-out: an exception out of a signal handler, in a moment."""

    def interrupt(*_: object) -> None:
        raise _Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    yield partial(signal.setitimer, signal.ITIMER_REAL, 0.2)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_exception_out_of_a_signal_handler_ends_the_tool(alarm: Callable[[], object]) -> None:
    groups: list[int] = []

    def started(group: int) -> None:
        groups.append(group)
        alarm()

    with pytest.raises(_Interrupted):
        process.run(("sleep", "300"), timeout_s=60, started=started)
    assert not runs(groups[0])


def test_tool_ends_with_its_runner_when_that_is_killed() -> None:
    script = (
        "from pipelines import process\n"
        "process.run(('sleep', '300'), timeout_s=300, started=lambda group: print(group, flush=True))\n"
    )
    with subprocess.Popen((sys.executable, "-c", script), stdout=subprocess.PIPE, text=True) as runner:
        assert runner.stdout is not None
        tool = int(runner.stdout.readline())
        assert runs(tool)
        runner.kill()
    until(lambda: not runs(tool), "the tool to end with its runner")


def test_children_of_a_tool_end_with_the_killed_runner(tmp_path: Path) -> None:
    tool = f"{CHILD_THAT_IGNORES_SIGTERM.replace('echo $!', 'echo $! > child')}; exec sleep 300"
    script = f"from pipelines import process\nprocess.run(('sh', '-c', {tool!r}), timeout_s=300, cwd='.')"
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen((sys.executable, "-c", script), cwd=tmp_path, env=environ) as runner:
        child = int(until(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text(), "the child"))
        assert runs(child)
        runner.kill()
    until(lambda: not runs(child), "the child to end with the runner of its tool")


def test_no_process_of_ours_stays_when_a_tool_has_ended() -> None:
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    before = set(children.read_text().split())
    process.run(("true",), timeout_s=10)
    with pytest.raises(_Interrupted):
        process.run(("sleep", "300"), timeout_s=60, started=_interrupt)
    until(lambda: set(children.read_text().split()) <= before, "what was started to be gone")


def _interrupt(_group: int) -> None:
    raise _Interrupted


def test_group_left_behind_is_ended(tmp_path: Path) -> None:
    with subprocess.Popen(("sleep", "300"), process_group=0) as left:
        ticks = process_groups.start_ticks_of(left.pid)
        assert ticks is not None
        assert process_groups.end_left(left.pid, ticks, tmp_path)
        assert left.wait() == -signal.SIGTERM
    assert not process_groups.end_left(left.pid, ticks, tmp_path)


def test_later_process_with_the_same_id_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen(("sleep", "300"), process_group=0) as stranger:
        ticks = process_groups.start_ticks_of(stranger.pid)
        assert ticks is not None
        assert not process_groups.end_left(stranger.pid, ticks - 1, tmp_path)
        assert runs(stranger.pid)
        stranger.kill()


def test_children_whose_leader_is_gone_are_known_by_their_directory(tmp_path: Path) -> None:
    with subprocess.Popen(("sh", "-c", "sleep 300 & echo $!"), process_group=0, cwd=tmp_path, stdout=-1) as leader:
        assert leader.stdout is not None
        child = int(leader.stdout.readline())
        leader.wait()
        assert not process_groups.end_left(leader.pid, 1, tmp_path / "other")
        assert runs(child)
        assert process_groups.end_left(leader.pid, 1, tmp_path)
    until(lambda: not runs(child), "the child to end")


def test_waiting_costs_no_processor_time() -> None:
    before = time.process_time()
    process.run(("sleep", "1"), timeout_s=10)
    assert time.process_time() - before < 0.1
