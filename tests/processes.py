"""Real processes for races and kills, forked from a clean server that has imported everything: they start at once."""

import multiprocessing
import os
import random
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.preloaded"])
_ENDS_WITHIN_S = 120.0


def at_once(target: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> list[Any]:
    """What `target` gave for each task, every one in a process of its own, started together. Errors are raised here."""
    barrier = CONTEXT.Barrier(len(tasks))
    with_pipes = [(task, *CONTEXT.Pipe(duplex=False)) for task in tasks]
    started = [
        CONTEXT.Process(target=_run, args=(barrier, dict(os.environ), target, task, sending))
        for task, _, sending in with_pipes
    ]
    for process in started:
        process.start()
    answers = []
    try:
        for _, receiving, _ in with_pipes:
            assert receiving.poll(_ENDS_WITHIN_S), f"no answer within {_ENDS_WITHIN_S:.0f} s"
            answers.append(receiving.recv())
    finally:
        for process in started:
            process.join(1.0)
            process.kill()
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers


def _run(barrier: Any, environ: dict[str, str], target: Any, task: tuple[Any, ...], answer: Connection) -> None:
    os.environ.update(environ)
    barrier.wait(60)
    try:
        answer.send(target(*task))
    except Exception as e:  # noqa: BLE001 - raised again by at_once
        answer.send(e)


def duration_s(target: Callable[..., Any], *args: Any) -> float:
    """How long `target` takes in a process of its own, from the moment at which it could have been killed."""
    process, ready = _started(target, args)
    ready.recv()
    start = time.perf_counter()
    process.join(_ENDS_WITHIN_S)
    assert process.exitcode == 0
    return time.perf_counter() - start


def kill_after(delay_s: float, target: Callable[..., Any], *args: Any) -> bool:
    """Run `target` in a process of its own and end it by SIGKILL after `delay_s`; whether it was still running."""
    process, ready = _started(target, args)
    ready.recv()
    process.join(delay_s)
    running = process.exitcode is None
    process.kill()
    process.join()
    return running


def kill_when(condition: Callable[[], bool], target: Callable[..., Any], *args: Any) -> bool:
    """Run `target` in a process of its own and end it by SIGKILL once the condition holds; whether it still ran."""
    process, ready = _started(target, args)
    ready.recv()
    while not condition() and process.exitcode is None:
        pass
    running = process.exitcode is None
    process.kill()
    process.join()
    return running


def moments(seed: int, count: int, span_s: float) -> list[float]:
    """`count` points spread over a span, one at random in each of its equal parts."""
    chosen = random.Random(seed)
    return [span_s * (part + chosen.random()) / count for part in range(count)]


def _started(target: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, Connection]:
    ready, sending = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_signal_and_run, args=(dict(os.environ), sending, target, args))
    process.start()
    return process, ready


def _signal_and_run(environ: dict[str, str], ready: Connection, target: Any, args: tuple[Any, ...]) -> None:
    os.environ.update(environ)
    ready.send(True)
    target(*args)
