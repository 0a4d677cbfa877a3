"""Following a run to its end: what is new since the last look, a line each."""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipelines import keys, stages
from pipelines.embedded.api import Airflow, Run, Task
from pipelines.embedded.instance import Say
from pipelines.errors import Unknown
from pipelines.records import Plan, Record
from pipelines.storage import Store

_POLL_S = 1.0  # each look costs the API server some 30 ms of a CPU that is being measured
_SHOWN = {"running", "success", "failed", "up_for_retry", "upstream_failed"}  # what is skipped is no news
_TAIL = 15


class Seen(Record):
    """What was known of a run at one look."""

    states: Mapping[str, str] = {}
    jobs: frozenset[str] = frozenset()  # jobs whose raw output is in the store


def follow(airflow: Airflow, store: Store, run: Run, run_id: str, say: Say) -> tuple[Run, tuple[Task, ...]]:
    """Say what happens until the run has ended. Returns it and its tasks as they ended."""
    plan: Plan | None = None
    seen = Seen()
    while True:
        run = airflow.run(run)
        tasks = airflow.tasks(run)
        plan = plan or _plan(store, run_id)
        now = look(tasks, _measured(store, run_id) if plan else frozenset())
        for line in news(seen, now, tasks, plan):
            say(line)
        if run.ended:
            return run, tasks
        seen = now
        time.sleep(_POLL_S)


def look(tasks: tuple[Task, ...], jobs: frozenset[str]) -> Seen:
    """Pure: the tasks' states by the name that people see, which one of a node's has a moment after it runs."""
    named = [task for task in tasks if task.state != "running" or task.map_index < 0 or task.node is not None]
    return Seen(states={_title(task): task.state for task in named if task.state in _SHOWN}, jobs=jobs)


def news(before: Seen, now: Seen, tasks: tuple[Task, ...], plan: Plan | None) -> Iterator[str]:
    """Pure: a line for each job and each task that is further than it was."""
    for job in plan.jobs if plan else ():
        if job.job_id in now.jobs - before.jobs and plan:
            mine = {each.job_id for each in plan.jobs_of(job.node)}
            yield f"  {job.node}: {job.benchmark} {job.case} #{job.repeat} done, {len(mine & now.jobs)} of {len(mine)}"
    for task in sorted(tasks, key=lambda task: (task.state == "running", task.name)):
        title = _title(task)
        if now.states.get(title) not in {None, before.states.get(title)}:
            took = f" after {task.duration_s:.1f} s" if task.duration_s and task.state != "running" else ""
            again = f" (try {task.try_number})" if task.try_number > 1 else ""
            yield f"{title}: {task.state}{took}{again}"


def log_of(logs: Path, run: Run, task: Task) -> Path:
    """The file with the log of a task's latest try."""
    folder = logs / f"dag_id={run.dag}" / f"run_id={run.run_id}" / f"task_id={task.name}"
    if task.map_index >= 0:
        folder /= f"map_index={task.map_index}"
    return folder / f"attempt={task.try_number}.log"


def tail(log: Path) -> tuple[str, ...]:
    """The last lines of a task's log, which holds a JSON object a line, with the error's sentence last."""
    if not log.exists():
        return ()
    lines: list[str] = []
    for text in log.read_text(errors="replace").splitlines():
        try:
            event = json.loads(text)
            if event["level"] != "debug" and not str(event["event"]).startswith(
                "::"
            ):  # ::group:: folds lines in the UI
                lines.append(f"{event['level']}: {event['event']}")
            lines.extend(f"{error['exc_type']}: {error['exc_value']}" for error in event.get("error_detail", ())[:1])
        except (ValueError, TypeError, KeyError):
            lines.append(text)
    return tuple(lines[-_TAIL:])


def _title(task: Task) -> str:
    if task.node is not None:
        return f"{task.name} {task.node}"
    return task.name if task.map_index < 0 else f"{task.name} [{task.map_index}]"


def _plan(store: Store, run_id: str) -> Plan | None:
    try:
        return stages.load_plan(store, run_id)
    except Unknown:
        return None


def _measured(store: Store, run_id: str) -> frozenset[str]:
    """raw/<date>/<run>/<node>/<job>/<attempt>.json"""
    return frozenset(key.split("/")[-2] for key in store.keys_under(keys.raw_prefix(run_id)))
