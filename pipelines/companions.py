"""Tools that watch while another runs, such as `dcgmi dmon`: each in a thread, and ended with what it stands beside."""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from pipelines import process_groups
from pipelines.records import Job, RawOutput

_STARTING_S = 30.0  # that the other tool is kept waiting
_ENDING_S = 5.0  # for its last line, before it is killed

Measure = Callable[[Job, Callable[[int], None]], RawOutput]
"""Runs a job to its end; tells the tool's process group once it has been started."""


class Companion:
    """One job beside another. Nothing that it does is raised."""

    def __init__(self, job: Job, measure: Measure) -> None:
        self.job = job
        self._measure = measure
        self._group: int | None = None
        self._stopped = False
        self._under_way = threading.Event()
        self._raw: RawOutput | None = None
        self._thread = threading.Thread(target=self._run, name=f"companion {job.benchmark}", daemon=True)

    def start(self) -> None:
        """Return once its tool runs, or will not."""
        self._thread.start()
        self._under_way.wait(_STARTING_S)

    def stop(self) -> RawOutput | None:
        """End its tool and give its raw output, whose facts say what it stood beside, and whether it ended with that.

        None where there is none: it failed in a way that nobody foresaw, or it does not end.
        """
        ended_with = {}
        self._stopped = True
        for how in (signal.SIGTERM, signal.SIGKILL):
            if self._thread.is_alive() and self._group is not None:
                process_groups.send(self._group, how)
                ended_with = {"ended_with": self.job.beside or ""}
            self._thread.join(_ENDING_S)
        if self._raw is None:
            return None
        facts = {**self._raw.facts, "beside": self.job.beside or "", **ended_with}
        return self._raw.model_copy(update={"facts": facts})

    def _run(self) -> None:
        try:
            self._raw = self._measure(self.job, self._started)
        finally:
            self._under_way.set()

    def _started(self, group: int) -> None:
        self._group = group
        self._under_way.set()
        if self._stopped:  # so late that nobody waits for it any more, and another job may have begun
            process_groups.send(group, signal.SIGKILL)


@contextmanager
def watching(jobs: Sequence[Job], measure: Measure) -> Iterator[dict[str, RawOutput | None]]:
    """These jobs run during the block; what it is given has the raw output of each by job id, once it has ended."""
    ended: dict[str, RawOutput | None] = {}
    companions = [Companion(job, measure) for job in jobs]
    for companion in companions:
        companion.start()
    try:
        yield ended
    finally:
        ended.update({companion.job.job_id: companion.stop() for companion in companions})
