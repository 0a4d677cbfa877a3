"""The executor of a fleet's control tasks: planning, parsing, landing. Nodes' tasks have one of their own."""

from typing import Any

from airflow.configuration import conf
from airflow.executors.local_executor import LocalExecutor

_WORKERS = 8


class ControlExecutor(LocalExecutor):
    """A LocalExecutor with few workers: `[core] parallelism` counts the whole fleet's tasks, and it would fork as many.

    How many is `[fleetmark] control_workers`.
    """

    def __init__(self, parallelism: int | None = None, **kwargs: Any) -> None:
        workers = conf.getint("fleetmark", "control_workers", fallback=_WORKERS)
        super().__init__(parallelism=parallelism or workers, **kwargs)  # type: ignore[no-untyped-call]
