"""A run over many nodes: how long the control plane takes, and what of processor, memory and requests.

The control plane is real: PostgreSQL, api-server, scheduler and dag-processor with the options of
infra/airflow/fleet.cfg. The nodes are `perf.nodes`, whose tasks take no time. The store is a directory: an object
store's own work would be done on the same cores and counted with the control plane's.
"""

import argparse
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import sqlalchemy

from perf import footprint
from perf.footprint import Group, Taken
from pipelines import console, servers
from pipelines.embedded.api import Airflow, Run
from pipelines.settings import load
from tests import servers as test_servers
from tests.fleet import control
from tests.fleet.control import Fleet
from tests.fleet.machines import Network
from tests.following import wait_for

SIZES = (100, 300, 1000)
_NODE = """
[[nodes]]
name = "gpu-{number:05d}"
queue = "gpu-{number:05d}"
scratch = "/mnt/nvme"
labels = {{ sku = "{sku}", rack = "r{rack}" }}
"""
_JOBS = ("seq_read", "seq_write", "rand_read", "rand_write", "mixed")  # profiles of fio of which there are samples
_SUITE = 'description = "Five jobs a node"\n' + "".join(
    '[[benchmarks]]\nbenchmark = "fio"\n'
    f'params = {{ profile = "{profile}", size_bytes = 16777216, runtime_s = 0.5, ramp_s = 0.2 }}\n'
    for profile in _JOBS
)
_PROCESSES = 2  # of nodes
_WITHIN_S = 1800.0
_SETTLED_AFTER_S = 30.0
_LOOP = re.compile(r"Ran scheduling loop in ([\d.]+) ms")
_DEBUG = {"logging": {"namespace_levels": "airflow.jobs.scheduler_job_runner=DEBUG"}}  # it tells how long a loop took
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
            with control.postgres() as database, _fleet(folder, count, database, lasts_s) as fleet:
                if count == max(sizes) and idle_s:
                    idle = _idle(fleet, count, database, idle_s)
                seen.append(_measured(fleet, count, database))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        _say(seen[-1])
    _show(seen)
    if idle:
        _show_idle(idle)


@contextmanager
def _fleet(folder: Path, count: int, database: str, lasts_s: float) -> Iterator[Fleet]:
    """The control plane with its nodes, every one of them registered."""
    (folder / "suites").mkdir()
    (folder / "suites/five.toml").write_text(_SUITE)
    made = (_NODE.format(number=n, sku=("h100", "h200")[n % 2], rack=n // 16) for n in range(count))
    (folder / "fleet.toml").write_text("".join(made))
    ours = {
        "FLEETMARK_HOME": str(folder / "home"),
        "FLEETMARK_STORE": f"file://{folder}/store",
        "FLEETMARK_INVENTORY": str(folder / "fleet.toml"),
        "FLEETMARK_SUITES": str(folder / "suites"),
        "FLEETMARK_NODE_EXECUTOR": "edge",
        **dict.fromkeys(("FLEETMARK_NIGHTLY", "FLEETMARK_WEEKLY", "FLEETMARK_SCRUB"), ""),
    }
    host, port = "127.0.0.1", test_servers.free_port()
    url = f"http://{host}:{port}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW__", "FLEETMARK_"))}
    options = control.options(folder, url, port, host, database, _DEBUG)
    given = {name: value for name, value in os.environ.items() if name.startswith("AIRFLOW__")}
    airflow = Airflow(url, "admin", control.PASSWORD, str(folder))
    fleet = Fleet(folder, Network(host, ()), load(ours, folder), {**kept, **options, **ours, **given}, airflow)
    try:
        migrate = (sys.executable, "-m", "airflow", "db", "migrate")
        migrating = servers.start("migrate", migrate, log=folder / "migrate.log", environ=fleet.environ)
        assert servers.first_to_end((migrating,), _WITHIN_S), "airflow db migrate did not end"
        for name in ("api-server", "scheduler", "dag-processor"):
            fleet.start_component(name)
        wait_for(lambda: (airflow.is_up() and airflow.has_dag("fleet_benchmark")) or None, _WITHIN_S)
        fleet.ended(fleet.trigger(suite="five", dry_run=True), _WITHIN_S)  # its first task has Airflow build its API
        _start_nodes(fleet, count, database, lasts_s)
        yield fleet
    finally:
        servers.stop([*fleet.workers.values(), *fleet.components.values()], grace_s=5.0)


def _start_nodes(fleet: Fleet, count: int, database: str, lasts_s: float) -> None:
    environ = {name: value for name, value in fleet.environ.items() if "SQL_ALCHEMY" not in name}
    environ |= {"AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(fleet.folder / "logs-of-nodes")}
    environ |= {"AIRFLOW_HOME": str(fleet.folder / "airflow-of-nodes")}
    bounds = [count * part // _PROCESSES for part in range(_PROCESSES + 1)]
    for first, last in pairwise(bounds):
        argv = (sys.executable, "-m", "perf.nodes", str(first), str(last), str(lasts_s))
        log = fleet.folder / f"nodes-{first}.log"
        fleet.workers[f"nodes-{first}"] = servers.start("nodes", argv, log=log, environ=environ)
    registered = "SELECT count(*) FROM edge_worker WHERE state = 'idle'"
    wait_for(lambda: _rows(database, registered)[0][0] >= count or None, _WITHIN_S)


def _groups(fleet: Fleet, database: str) -> dict[str, Group]:
    postgres = Path(database.partition("?host=")[2]) / "data/postmaster.pid"
    scheduler = fleet.components["scheduler"].pid
    fakes = {name: Group(server.pid) for name, server in fleet.workers.items()}
    return {
        "scheduler": Group(scheduler, children=False),
        "control tasks": Group(scheduler, itself=False),
        "api-server": Group(fleet.components["api-server"].pid),
        "dag-processor": Group(fleet.components["dag-processor"].pid),
        "PostgreSQL": Group(int(postgres.read_text().split()[0])),
        **fakes,
    }


def _idle(fleet: Fleet, count: int, database: str, idle_s: float) -> Idle:
    """What it takes that nothing happens, when every node has had its first polls."""
    time.sleep(_SETTLED_AFTER_S)
    console.say(f"  {count} nodes wait for {idle_s:.0f} s")
    groups = {name: group for name, group in _groups(fleet, database).items() if not name.startswith("nodes-")}
    asked = _since(fleet.components["api-server"].log)
    begun = time.monotonic()
    with footprint.watched(groups) as taken:
        time.sleep(idle_s)
        lasted = time.monotonic() - begun
    requests = asked().count("request finished") / lasted
    return Idle(count, requests, {name: each.cpu_s / lasted for name, each in taken.items()})


def _measured(fleet: Fleet, count: int, database: str) -> Size:
    (parsing,) = _rows(database, "SELECT last_parse_duration FROM dag WHERE dag_id = 'fleet_benchmark'")[0]
    logs = [_since(fleet.components[name].log) for name in ("scheduler", "api-server")]
    console.say(f"  {count} nodes: a run")
    with footprint.watched(_groups(fleet, database)) as taken:
        begun = time.time()
        run = fleet.ended(fleet.trigger(suite="five"), _WITHIN_S)
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
    assert found == (("ok", True, count * len(_JOBS)),), found


def _times(database: str, run: Run, begun: float, ended: float, loops: tuple[float, ...]) -> Times:
    found = _rows(database, _TIMES, run=run.run_id)
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


def _rows(database: str, sql: str, **given: str) -> list[tuple[Any, ...]]:
    engine = sqlalchemy.create_engine(database, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(sqlalchemy.text(sql), given)]


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
    rows: dict[str, Callable[[Size], str]] = {
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
        [(name, *(show(size) for size in seen)) for name, show in rows.items()],
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
