"""The control plane of a fleet and its light nodes, for as long as a measurement takes.

All of it is real: PostgreSQL, api-server, scheduler and dag-processor with the options of infra/airflow/fleet.cfg, and
a key for each node. The nodes are `perf.nodes`. The store is a directory: an object store's own work would be done on
the same cores, and be counted with the control plane's.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import sqlalchemy

from fleetmark_airflow import credentials
from perf.footprint import Group
from pipelines import servers
from pipelines.embedded.api import Airflow
from pipelines.settings import load
from tests import servers as test_servers
from tests.fleet import control
from tests.fleet.control import Fleet
from tests.fleet.machines import Network
from tests.following import wait_for

WITHIN_S = 1800.0
"""How long anything may take here."""

_NODE = """
[[nodes]]
name = "gpu-{number:05d}"
queue = "gpu-{number:05d}"
scratch = "/mnt/nvme"
labels = {{ sku = "{sku}", rack = "r{rack}" }}
"""
JOBS = ("seq_read", "seq_write", "rand_read", "rand_write", "mixed")  # profiles of fio of which there are samples
SUITE = 'description = "Five jobs a node"\n' + "".join(
    '[[benchmarks]]\nbenchmark = "fio"\n'
    f'params = {{ profile = "{profile}", size_bytes = 16777216, runtime_s = 0.5, ramp_s = 0.2 }}\n'
    for profile in JOBS
)
_PROCESSES = 2  # of nodes
_OTHER = {
    "api": {"workers": "2"},  # as fleet.cfg has it; tests have one
    "logging": {"namespace_levels": "airflow.jobs.scheduler_job_runner=DEBUG"},  # it tells how long a loop took
}


@contextmanager
def running(folder: Path, count: int, database: str, lasts_s: float) -> Iterator[Fleet]:
    """The control plane with its nodes, every one of them registered."""
    (folder / "suites").mkdir()
    (folder / "suites/five.toml").write_text(SUITE)
    made = (_NODE.format(number=n, sku=("h100", "h200")[n % 2], rack=n // 16) for n in range(count))
    (folder / "fleet.toml").write_text("".join(made))
    _make_keys(folder, count)
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
    options = control.options(folder, url, port, host, database, _OTHER)
    options["AIRFLOW__FLEETMARK__NODE_KEYS"] = str(folder / "nodes.jwks")
    given = {name: value for name, value in os.environ.items() if name.startswith("AIRFLOW__")}
    airflow = Airflow(url, "admin", control.PASSWORD, str(folder))
    fleet = Fleet(folder, Network(host, ()), load(ours, folder), {**kept, **options, **ours, **given}, airflow)
    try:
        migrate = (sys.executable, "-m", "airflow", "db", "migrate")
        migrating = servers.start("migrate", migrate, log=folder / "migrate.log", environ=fleet.environ)
        assert servers.first_to_end((migrating,), WITHIN_S), "airflow db migrate did not end"
        for name in ("api-server", "scheduler", "dag-processor"):
            fleet.start_component(name)
        wait_for(lambda: (airflow.is_up() and airflow.has_dag("fleet_benchmark")) or None, WITHIN_S)
        fleet.ended(fleet.trigger(suite="five", dry_run=True), WITHIN_S)  # its first task has Airflow build its API
        _start_nodes(fleet, count, database, lasts_s)
        yield fleet
    finally:
        servers.stop([*fleet.workers.values(), *fleet.components.values()], grace_s=5.0)


def _make_keys(folder: Path, count: int) -> None:
    """A private key for each node, and the file of the public ones."""
    (folder / "keys").mkdir()
    names = [f"gpu-{number:05d}" for number in range(count)]
    known = [credentials.of_node(name, credentials.make(folder / f"keys/{name}.key")) for name in names]
    (folder / "nodes.jwks").write_text(credentials.KeySet(keys=tuple(known)).model_dump_json())


def _start_nodes(fleet: Fleet, count: int, database: str, lasts_s: float) -> None:
    environ = {
        **{name: value for name, value in fleet.environ.items() if not name.startswith(control.SECRET)},
        "AIRFLOW__API_AUTH__JWT_SECRET": "",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(fleet.folder / "logs-of-nodes"),
        "AIRFLOW_HOME": str(fleet.folder / "airflow-of-nodes"),
    }
    bounds = [count * part // _PROCESSES for part in range(_PROCESSES + 1)]
    for first, last in pairwise(bounds):
        argv = (sys.executable, "-m", "perf.nodes", str(first), str(last), str(lasts_s), str(fleet.folder / "keys"))
        log = fleet.folder / f"nodes-{first}.log"
        fleet.workers[f"nodes-{first}"] = servers.start("nodes", argv, log=log, environ=environ)
    registered = "SELECT count(*) FROM edge_worker WHERE state = 'idle'"
    wait_for(lambda: rows(database, registered)[0][0] >= count or None, WITHIN_S)


def groups(fleet: Fleet, database: str) -> dict[str, Group]:
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


def rows(database: str, sql: str, **given: str) -> list[tuple[Any, ...]]:
    engine = sqlalchemy.create_engine(database, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(sqlalchemy.text(sql), given)]
