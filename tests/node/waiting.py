"""Waiting for what another process does, and telling whether one still runs."""

import time
from collections.abc import Callable
from typing import TypeVar

from pipelines import process_groups

T = TypeVar("T")
_LIMIT_S = 30.0


def until(look: Callable[[], T | None], what: str) -> T:
    """The first answer of `look` that is not empty."""
    deadline = time.monotonic() + _LIMIT_S
    while time.monotonic() < deadline:
        if seen := look():
            return seen
        time.sleep(0.005)
    raise AssertionError(f"waited {_LIMIT_S} s for {what}")


def runs(pid: int) -> bool:
    """Whether a process is there and has not ended; nobody may be there to reap an orphan that has."""
    return process_groups.start_ticks_of(pid) is not None
