"""The quick suite on this machine, through Airflow's REST API, from the trigger to the end of the run."""

import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC

from pipelines import benchmark, keys, storage, suites
from pipelines.embedded import follow
from pipelines.embedded.api import Airflow, Run, Task
from pipelines.embedded.home import Home
from pipelines.embedded.instance import DAG, Say, client, running, ui
from pipelines.embedded.keeper import Instance
from pipelines.errors import AirflowFailed, FleetmarkError, ToolNotFound
from pipelines.records import Record
from pipelines.settings import Settings

_SUITE = "quick"


class Finished(Record):
    """A run that has landed and is reported, and where a person finds things, a line each."""

    run_id: str
    where: tuple[str, ...]


def demo(settings: Settings, say: Say) -> Finished:
    """Run the quick suite on this machine and wait for it.

    Raises:
        ToolNotFound: a benchmark's tool is missing; nothing was started.
        AirflowFailed: Airflow did not come up, or the run failed.
        TriggerRefused: the inventory does not have this machine's name.
    """
    _require_tools(settings, say)
    home = Home(settings)
    with _stop_on_sigterm(), running(settings, say) as (instance, stays):
        airflow = client(home, instance)
        run = airflow.trigger(DAG, {"suite": _SUITE, "nodes": [settings.node_name], "note": "demo"})
        run_id = keys.run_id(run.run_after.astimezone(UTC), run.run_id)
        say(f"run {run_id}: suite {_SUITE} on {settings.node_name}")
        with _failed_when_interrupted(airflow, run):
            run, tasks = follow.follow(airflow, storage.open_store(settings), run, run_id, say)
        if run.state != "success":
            raise _failure(home, run, tasks, say)
    return Finished(run_id=run_id, where=_where(home, instance, stays, run_id))


def _where(home: Home, instance: Instance, stays: bool, run_id: str) -> tuple[str, ...]:
    start = "" if stays else "`fleetmark up` (or `make up`), then "
    store_url = home.settings.store_url
    return (
        f"UI      {start}{ui(home, instance)}",
        f"tables  {store_url}/tables",
        f"report  {store_url}/{keys.report_key(run_id, 'index.html')}",
    )


def _require_tools(settings: Settings, say: Say) -> None:
    for entry in suites.load(settings.suites, _SUITE).entries:
        descriptor = benchmark.get(entry.benchmark)
        if shutil.which(descriptor.tool) is None:
            say(f"{descriptor.title} needs {descriptor.tool}; install it with: {descriptor.install_hint}")
            raise ToolNotFound(descriptor.tool)


@contextmanager
def _stop_on_sigterm() -> Iterator[None]:
    """SIGTERM and SIGHUP stop the demo as Ctrl-C does."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _failed_when_interrupted(airflow: Airflow, run: Run) -> Iterator[None]:
    """An interrupted run is over: the next Airflow here must not take it up again."""
    try:
        yield
    except KeyboardInterrupt:
        with suppress(FleetmarkError):
            airflow.fail(run)
        raise


def _failure(home: Home, run: Run, tasks: tuple[Task, ...], say: Say) -> AirflowFailed:
    """The first task that failed by itself, its log said and named."""
    failed = [task for task in tasks if task.state == "failed"]
    if not failed:
        return AirflowFailed(f"the run ended {run.state}", str(home.logs))
    log = follow.log_of(home.logs, run, failed[0])
    for line in follow.tail(log):
        say(f"  {line}")
    return AirflowFailed(f"the task {failed[0].name} failed", str(log))
