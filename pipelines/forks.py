"""Work on every core in forks of this process, for what Python's one running thread would hold up.

A fork has everything that its parent has, so that only numbers go to it and answers come back. It has none of its
parent's threads: nothing that uses a client with threads (obstore, s3fs, pyarrow) belongs here.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from pipelines import process
from pipelines.errors import WorkerLost

T = TypeVar("T")
_inherited: list[Callable[[int], Any]] = []


@contextmanager
def forked(call: Callable[[int], T]) -> Iterator[Callable[[int], Future[T]]]:
    """Gives what submits `call(number)` to one of as many forks as there are cores. They end with this process.

    Answers and errors are pickled.

    Raises:
        WorkerLost: a fork was killed.
    """
    context = multiprocessing.get_context("fork")
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(cores, context, initializer=_begin, initargs=(call,)) as pool:
        try:
            yield lambda number: pool.submit(_call, number)
        except BrokenProcessPool as e:
            raise WorkerLost(os.getpid()) from e


def _begin(call: Callable[[int], Any]) -> None:
    process.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the parent says what it means
    _inherited.append(call)


def _call(number: int) -> Any:
    return _inherited[-1](number)
