"""A run over many nodes, whose tasks take no time: how long the control plane takes, and what it takes for that."""

import argparse
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from perf import footprint
from perf.controlplane import JOBS, WITHIN_S, groups, rows, running
from perf.footprint import Taken
from pipelines import console
from pipelines.embedded.api import Run
from tests.fleet import control
from tests.fleet.control import Fleet

SIZES = (100, 300, 1000)
_SETTLED_AFTER_S = 30.0
_LOOP = re.compile(r"Ran scheduling loop in ([\d.]+) ms")
_TIMES = """
SELECT task_id, map_index, state, queued_dttm, start_date, end_date FROM task_instance WHERE run_id = :run
"""


@dataclass(frozen=True)
class Times:
    """Of one run, in seconds."""

    nodes_done: float  # from the trigger to the end of the last node's task
    run_done: float
    queued_after: tuple[float, ...]  # of each task of a node: from when it could have been queued
    started_after: tuple[float, ...]  # ... and from then to its beginning
    control: Mapping[str, float]  # what the other tasks took
    control_queued_after: float  # the longest that one of them waited to be queued
    loops: tuple[float, ...]  # the scheduler's


@dataclass(frozen=True)
class Size:
    """What was measured with so many nodes."""

    nodes: int
    parse_s: float
    times: Times
    taken: Mapping[str, Taken]
    requests: int


@dataclass(frozen=True)
class Idle:
    """A fleet that waits, for a second."""

    nodes: int
    requests: float
    cpu: Mapping[str, float]


def main(sizes: Sequence[int] = SIZES, lasts_s: float = 0.0, idle_s: float = 60.0) -> None:
    if not Path("/usr/lib/postgresql").is_dir():
        print("PostgreSQL is not installed here; scale is left out", file=sys.stderr)
        return
    seen, idle = [], None
    for count in sizes:
        folder = Path(tempfile.mkdtemp(prefix="fleetmark-scale-"))
        try:
            with control.postgres() as database, running(folder, count, database, lasts_s) as fleet:
                if count == max(sizes) and idle_s:
                    idle = _idle(fleet, count, database, idle_s)
                seen.append(_measured(fleet, count, database))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        _say(seen[-1])
    _show(seen)
    if idle:
        _show_idle(idle)


def _idle(fleet: Fleet, count: int, database: str, idle_s: float) -> Idle:
    """What it takes that nothing happens, when every node has had its first polls."""
    time.sleep(_SETTLED_AFTER_S)
    console.say(f"  {count} nodes wait for {idle_s:.0f} s")
    control_plane = {name: each for name, each in groups(fleet, database).items() if not name.startswith("nodes-")}
    asked = _since(fleet.components["api-server"].log)
    begun = time.monotonic()
    with footprint.watched(control_plane) as taken:
        time.sleep(idle_s)
        lasted = time.monotonic() - begun
    requests = asked().count("request finished") / lasted
    return Idle(count, requests, {name: each.cpu_s / lasted for name, each in taken.items()})


def _measured(fleet: Fleet, count: int, database: str) -> Size:
    (parsing,) = rows(database, "SELECT last_parse_duration FROM dag WHERE dag_id = 'fleet_benchmark'")[0]
    logs = [_since(fleet.components[name].log) for name in ("scheduler", "api-server")]
    console.say(f"  {count} nodes: a run")
    with footprint.watched(groups(fleet, database)) as taken:
        begun = time.time()
        run = fleet.ended(fleet.trigger(suite="five"), WITHIN_S)
        ended = time.time()
    said, asked = (log() for log in logs)
    loops = tuple(float(each) / 1000 for each in _LOOP.findall(said))
    _require_complete(fleet, run, count)
    times = _times(database, run, begun, ended, loops)
    fakes = [taken.pop(name) for name in list(taken) if name.startswith("nodes-")]
    taken["nodes (fake)"] = Taken(sum(each.cpu_s for each in fakes), sum(each.pss_bytes for each in fakes))
    return Size(count, float(parsing), times, taken, asked.count("request finished"))


def _require_complete(fleet: Fleet, run: Run, count: int) -> None:
    found = fleet.answer("SELECT outcome, simulated, count(*) FROM runs GROUP BY ALL")
    assert run.state == "success", run
    assert found == (("ok", True, count * len(JOBS)),), found


def _times(database: str, run: Run, begun: float, ended: float, loops: tuple[float, ...]) -> Times:
    found = rows(database, _TIMES, run=run.run_id)
    at = {
        (task, index): [each.timestamp() for each in times]
        for task, index, state, *times in found
        if state == "success"
    }
    of_nodes = [each for (task, _), each in at.items() if task == "measure"]
    others = {task: each for (task, index), each in at.items() if index < 0}
    planned, nodes_done = others["plan"][2], max(done for *_, done in of_nodes)
    ends = sorted([nodes_done, *(done for *_, done in others.values())])
    waits = [
        queued - max(done for done in ends if done <= queued) for queued, *_ in others.values() if queued > planned
    ]
    return Times(
        nodes_done=nodes_done - begun,
        run_done=ended - begun,
        queued_after=tuple(queued - planned for queued, *_ in of_nodes),
        started_after=tuple(started - queued for queued, started, _ in of_nodes),
        control={task: done - started for task, (_, started, done) in sorted(others.items(), key=lambda of: of[1])},
        control_queued_after=max(waits),
        loops=loops,
    )


def _since(log: Path) -> Callable[[], str]:
    """Reads what the log has got from now on."""
    begins = log.stat().st_size

    def read() -> str:
        with log.open() as file:
            file.seek(begins)
            return file.read()

    return read


def _say(size: Size) -> None:
    console.say(f"  {size.nodes} nodes: {size.times.nodes_done:.0f} s, the run {size.times.run_done:.0f} s")


def _show(seen: Sequence[Size]) -> None:
    print("\n## A run over a fleet, five jobs a node\n")
    lines: dict[str, Callable[[Size], str]] = {
        "trigger to the last node's end, s": lambda size: f"{size.times.nodes_done:.1f}",
        "trigger to the run's end, s": lambda size: f"{size.times.run_done:.1f}",
        "the same for each node, ms": lambda size: f"{size.times.run_done / size.nodes * 1000:.0f}",
        "a node's task: ready to queued, s": lambda size: _spread(size.times.queued_after),
        "a node's task: queued to begun, s": lambda size: _spread(size.times.started_after),
        "a control task: ready to queued, s, at most": lambda size: f"{size.times.control_queued_after:.1f}",
        "the scheduler's loop, s": lambda size: _spread(size.times.loops),
        **{
            f"{task}, s": lambda size, task=task: f"{size.times.control[task]:.1f}"  # type: ignore[misc]
            for task in seen[0].times.control
        },
        "requests to the api-server": lambda size: f"{size.requests:,}",
        **{
            f"{name}: CPU, s / memory, MB": lambda size, name=name: (  # type: ignore[misc]
                f"{size.taken[name].cpu_s:.1f} / {size.taken[name].pss_bytes / 1e6:.0f}"
            )
            for name in seen[0].taken
        },
        "reading the DAG file, s": lambda size: f"{size.parse_s:.2f}",
    }
    console.table(
        ("", *(f"{size.nodes} nodes" for size in seen)),
        [(name, *(show(size) for size in seen)) for name, show in lines.items()],
    )
    print("\nSpreads are median .. most.")


def _show_idle(idle: Idle) -> None:
    print(f"\n## {idle.nodes} nodes that wait\n")
    console.table(
        ("", "each second"),
        [
            ("requests", f"{idle.requests:.1f}"),
            *((f"{name}: CPU, s", f"{cpu_s:.3f}") for name, cpu_s in idle.cpu.items()),
        ],
    )


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} .. {max(values):.2f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--task-seconds", type=float, default=0.0, help="how long a task of a node lasts")
    parser.add_argument(
        "--idle-seconds", type=float, default=60.0, help="how long the largest fleet waits before its run"
    )
    asked = parser.parse_args()
    main(asked.nodes, asked.task_seconds, asked.idle_seconds)
