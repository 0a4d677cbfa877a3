"""Doing something as another user of the machine."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

import pytest

NOBODY = 65534
T = TypeVar("T")


def as_nobody(act: Callable[..., T], *args: object) -> T:
    """What `act` gives or raises for a user without rights. Forked: that user may not read this interpreter's files."""
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, mp_context=fork, initializer=os.setuid, initargs=(NOBODY,)) as pool:
        return pool.submit(act, *args).result()
