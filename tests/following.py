"""Following what a real Airflow does."""

import time
from collections.abc import Callable
from datetime import UTC
from typing import TypeVar

from pipelines import keys
from pipelines.embedded.api import Run

T = TypeVar("T")


def run_id_of(run: Run) -> str:
    """Fleetmark's id of a DAG run."""
    return keys.run_id(run.run_after.astimezone(UTC), run.run_id)


def wait_for(look: Callable[[], T | None], timeout_s: float = 120.0) -> T:
    """What `look` sees, once it sees anything."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if (found := look()) is not None:
            return found
        time.sleep(0.3)  # a REST API has nothing to wait on
    raise TimeoutError(f"not seen within {timeout_s} s")
