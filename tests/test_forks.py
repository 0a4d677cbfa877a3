import os
import signal
import time
from pathlib import Path

import pytest

from pipelines import forks, process_groups
from pipelines.errors import KeyNotFound, WorkerLost
from tests import processes


def test_answers_and_errors_come_back_and_what_was_closed_over_is_inherited() -> None:
    here = {"asked": "by the parent"}

    def call(number: int) -> str:
        if number == 3:
            raise KeyNotFound(f"s3://bucket/{number}")
        return f"{here['asked']}, {number}, {os.getpid()}"

    with forks.forked(call) as submit:
        futures = [submit(number) for number in range(5)]
        assert [futures[number].result().split(", ")[:2] for number in (0, 1, 2, 4)] == [
            ["by the parent", str(number)] for number in (0, 1, 2, 4)
        ]
        assert str(os.getpid()) not in {futures[number].result().split(", ")[2] for number in (0, 1, 2, 4)}
        with pytest.raises(KeyNotFound, match="s3://bucket/3"):
            futures[3].result()


def test_a_killed_fork_is_an_error_that_a_retry_may_help() -> None:
    with pytest.raises(WorkerLost, match="was killed") as lost, forks.forked(_kill_yourself) as submit:
        submit(0).result()
    assert lost.value.retryable


def test_forks_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    with_parent = processes.CONTEXT.Process(target=_work_for_ever, args=(tmp_path,))
    with_parent.start()
    forked = [int(path.name) for path in _appear(tmp_path, len(os.sched_getaffinity(0)))]
    with_parent.kill()
    with_parent.join()
    deadline = time.monotonic() + 30
    while any(process_groups.start_ticks_of(pid) is not None for pid in forked):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _kill_yourself(_number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _work_for_ever(folder: Path) -> None:
    def call(_number: int) -> None:
        (folder / str(os.getpid())).touch()
        signal.pause()

    with forks.forked(call) as submit:
        for number in range(len(os.sched_getaffinity(0))):
            submit(number)
        signal.pause()


def _appear(folder: Path, count: int) -> list[Path]:
    deadline = time.monotonic() + 60
    while len(found := list(folder.iterdir())) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found
