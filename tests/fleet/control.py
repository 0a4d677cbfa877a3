"""A fleet's control plane as an operator runs it: PostgreSQL, Airflow's components, an S3 server, workers on nodes."""

import configparser
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from fleetmark_airflow import credentials
from pipelines import process, servers, storage
from pipelines.embedded.api import Airflow, Run
from pipelines.servers import Server
from pipelines.settings import Settings, load
from pipelines.stages import load_plan
from pipelines.tables.query import open_reader
from tests import servers as test_servers
from tests.fleet.machines import Machine, Network
from tests.following import run_id_of, wait_for

ROOT = Path(__file__).parents[2]
PASSWORD = "fleet-test"
PASSWORDS = {"admin": PASSWORD, "op": "op-test", "user": "user-test", "viewer": "viewer-test"}  # of a user of each role
_UP_WITHIN_S = 240.0
COMPONENTS = ("api-server", "scheduler", "dag-processor")

SHORT = {
    "edge": {"job_poll_interval": "1", "heartbeat_interval": "2"},
    "scheduler": {
        "task_queued_timeout": "30",
        "task_queued_timeout_check_interval": "2",
        "task_instance_heartbeat_timeout": "30",
        "task_instance_heartbeat_timeout_detection_interval": "2",
    },
    "workers": {"min_heartbeat_interval": "1"},
    "dag_processor": {"refresh_interval": "10"},
}
"""What a test cannot wait for: every time-out of infra/airflow/fleet.cfg, shorter."""

SECRET = (
    "AIRFLOW__API_AUTH__JWT_SECRET",
    "AIRFLOW__API__SECRET_KEY",
    "AIRFLOW__CORE__FERNET_KEY",
    "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER",
    "AIRFLOW__DATABASE__SQL_ALCHEMY",
    "AIRFLOW__FLEETMARK__NODE_KEYS",
)
"""What the control plane has and no node."""


@contextmanager
def postgres() -> Iterator[str]:
    """A PostgreSQL in a folder of its own, by a socket only; gives the URL for SQLAlchemy."""
    binaries = max(Path("/usr/lib/postgresql").iterdir()) / "bin"
    as_postgres = ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--pdeathsig=KILL")
    folder = Path(tempfile.mkdtemp(prefix="fleet-pg-", dir="/tmp"))  # pytest's own folders are root's alone
    shutil.chown(folder, "postgres", "postgres")
    data = folder / "data"
    try:
        made = process.run(
            (*as_postgres, str(binaries / "initdb"), "-D", str(data), "-A", "trust", "-E", "UTF8"), timeout_s=120
        )
        assert made.exit_status == 0, made.stderr
        argv = (*as_postgres, str(binaries / "postgres"), "-D", str(data), "-k", str(folder), "-h", "", "-F",
                "-c", "max_connections=200")  # fmt: skip
        ready = (str(binaries / "pg_isready"), "-q", "-h", str(folder))
        with test_servers.running(
            folder, {"postgres": argv}, lambda: process.run(ready, timeout_s=10).exit_status == 0
        ):
            yield f"postgresql+psycopg2://postgres@/postgres?host={folder}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Fleet:
    """A running fleet and how a test talks to it."""

    folder: Path
    network: Network
    settings: Settings
    environ: dict[str, str]
    airflow: Airflow
    components: dict[str, Server] = field(default_factory=dict)
    workers: dict[str, Server] = field(default_factory=dict)

    def machine(self, name: str) -> Machine:
        return next(machine for machine in self.network.machines if machine.name == name)

    def key(self, node: str) -> Path:
        """The node's private key, whose public one the api-server trusts."""
        private = self.folder / f"{node}.key"
        if not private.exists():
            known = Path(self.environ["AIRFLOW__FLEETMARK__NODE_KEYS"])
            credentials.add(known, credentials.of_node(node, credentials.make(private)))
        return private

    def start_component(self, name: str) -> None:
        argv = (sys.executable, "-m", "fleetmark_airflow.component", name)
        log = self.folder / f"{name}.log"
        self.components[name] = servers.start(name, argv, log=log, environ=self.environ, parents_end=signal.SIGTERM)

    def kill_component(self, name: str) -> None:
        _kill(self.components.pop(name))

    def start_worker(self, node: str, module: str = "fleetmark_airflow.component") -> None:
        """As infra's unit does: one job at a time, the node's own queue. Tools in /mnt/bin are this node's alone."""
        machine = self.machine(node)
        for name in ("airflow", "lock", "nvme"):
            (machine.disk / name).mkdir(exist_ok=True)
        if not (machine.disk / "dags").is_symlink():
            (machine.disk / "dags").symlink_to(ROOT / "dags")
        environ = {
            **{name: value for name, value in self.environ.items() if not name.startswith(SECRET)},
            "AIRFLOW__API_AUTH__JWT_PRIVATE_KEY_PATH": str(self.key(node)),
            "AIRFLOW__API_AUTH__JWT_SECRET": "",  # Airflow would make one, and have two
            "AIRFLOW_HOME": "/mnt/airflow",
            "AIRFLOW__CORE__DAGS_FOLDER": "/mnt/dags",
            "PATH": f"/mnt/bin:{self.environ['PATH']}",
            "FLEETMARK_NODE": node,
            "FLEETMARK_HOME": "/mnt",
            "FLEETMARK_LEASE_DIR": "/mnt/lock",
        }
        argv = (sys.executable, "-m", module, "edge", "worker", "--queues", node,
                "--edge-hostname", node, "--concurrency", "1", "--pid", "/mnt/airflow/worker.pid")  # fmt: skip
        self.workers[node] = machine.start(f"worker-{node}", argv, environ, self.folder / f"worker-{node}.log")

    def kill_worker(self, node: str) -> None:
        """With everything that it started, as systemd does with a unit's control group."""
        self.machine(node).power_off()
        servers.first_to_end((self.workers.pop(node),), 10.0)

    def kill_worker_alone(self, node: str) -> None:
        _kill(self.workers.pop(node))

    def revive_worker(self, node: str, **how: str) -> None:
        """Start it as systemd does: again and again, while the control plane takes the dead one for alive."""
        since = datetime.now(UTC)

        def is_back() -> bool | None:
            if node not in self.workers or not self.workers[node].running:
                (self.machine(node).disk / "airflow/worker.pid").unlink(missing_ok=True)
                self.start_worker(node, **how)
            heard_at = self.heard_from(node)
            return (heard_at is not None and heard_at > since) or None

        wait_for(is_back)

    def heard_from(self, node: str) -> datetime | None:
        """When the control plane last heard the node's worker."""
        workers = self.airflow.get("/edge_worker/ui/worker")["workers"]
        beats = {each["worker_name"]: each["last_heartbeat"] for each in workers}
        return datetime.fromisoformat(beats[node]) if node in beats else None

    def instances(self, run: Run, name: str) -> dict[str, dict[str, Any]]:
        """What Airflow says of a task that is mapped over the run's nodes, for each of them."""
        path = f"/api/v2/dags/{run.dag}/dagRuns/{run.run_id}/taskInstances?limit=1000"
        every = self.airflow.get(path)["task_instances"]
        found = {each["map_index"]: each for each in every if each["task_id"] == name and each["map_index"] >= 0}
        if not found:
            return {}  # not planned yet
        planned = load_plan(storage.open_store(self.settings), run_id_of(run)).nodes
        return {planned[index].name: each for index, each in found.items()}  # Airflow names those that ended well

    def task(self, run: Run, name: str, node: str, *states: str) -> dict[str, Any]:
        """The same of one node, once it is in one of the states."""

        def look() -> dict[str, Any] | None:
            found = self.instances(run, name).get(node)
            return found if found and found["state"] in states else None

        return wait_for(look)

    def trigger(self, dag: str = "fleet_benchmark", **conf: Any) -> Run:
        return self.airflow.trigger(dag, conf)

    def ended(self, run: Run, timeout_s: float = 600.0) -> Run:
        return wait_for(lambda: now if (now := self.airflow.run(run)).ended else None, timeout_s)

    def answer(self, sql: str) -> tuple[tuple[Any, ...], ...]:
        with open_reader(storage.open_store(self.settings)) as reader:
            return reader.query(sql).rows


@contextmanager
def fleet(
    folder: Path,
    network: Network,
    inventory: str,
    suites: Mapping[str, str],
    s3: test_servers.S3,
    database: str,
    *,
    over: Mapping[str, str] = MappingProxyType({}),
    components: tuple[str, ...] = COMPONENTS,
    workers: bool = True,
) -> Iterator[Fleet]:
    """Airflow's components on this machine and a worker on each of the network's.

    `over` is what the environment says otherwise than this; without `workers` the test starts its own.
    """
    (folder / "suites").mkdir()
    for name, text in suites.items():
        (folder / f"suites/{name}.toml").write_text(text)
    (folder / "fleet.toml").write_text(inventory)
    ours = {
        "FLEETMARK_HOME": str(folder / "home"),
        "FLEETMARK_STORE": f"s3://{s3.new_bucket()}/fleet",
        "FLEETMARK_S3_ENDPOINT": s3.endpoint,
        "FLEETMARK_INVENTORY": str(folder / "fleet.toml"),
        "FLEETMARK_SUITES": str(folder / "suites"),
        "FLEETMARK_NODE_EXECUTOR": "edge",
        "FLEETMARK_NIGHTLY": "0 0 1 1 *",  # scheduled, as a backfill needs, and never while a test runs
        "FLEETMARK_WEEKLY": "",
        "FLEETMARK_SCRUB": "",
        "FLEETMARK_STORE_RETRY_S": "5",
        "FLEETMARK_SPOOL_WAIT_S": "3",
        **s3.environ,
    }
    port = test_servers.free_port(network.address)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "FLEETMARK"))}
    environ = {**kept, **ours, **options(folder, f"http://{network.address}:{port}", port, network.address, database)}
    environ |= {"AIRFLOW__FLEETMARK__NODE_KEYS": str(folder / "nodes.jwks"), **over}
    airflow = Airflow(f"http://{network.address}:{port}", "admin", PASSWORD, str(folder))
    made = Fleet(folder, network, load(ours, folder), environ, airflow)
    with ExitStack() as ending, pytest.MonkeyPatch.context() as patch:
        for name, value in s3.environ.items():  # for the tables that the test reads
            patch.setenv(name, value)
        ending.callback(lambda: servers.stop([*made.workers.values(), *made.components.values()], grace_s=5.0))
        log = folder / "migrate.log"
        migrating = servers.start(
            "migrate", (sys.executable, "-m", "airflow", "db", "migrate"), log=log, environ=environ
        )
        assert servers.first_to_end((migrating,), _UP_WITHIN_S), "airflow db migrate did not end"
        for name in components:
            made.start_component(name)
        for machine in network.machines if workers else ():
            made.start_worker(machine.name)
        wait_for(lambda: (airflow.is_up() and airflow.has_dag("fleet_benchmark")) or None, _UP_WITHIN_S)
        wait_for(lambda: all(map(made.heard_from, made.workers)) or None, _UP_WITHIN_S)
        yield made


def options(
    folder: Path, url: str, port: int, host: str, database: str, other: Mapping[str, Mapping[str, str]] = SHORT
) -> dict[str, str]:
    """infra/airflow/fleet.cfg, `other` than that, and what it leaves to the environment, as variables."""
    passwords = folder / "passwords.json"
    passwords.write_text(json.dumps(PASSWORDS))
    file = configparser.ConfigParser(interpolation=None)
    file.read(ROOT / "infra/airflow/fleet.cfg")
    made: dict[str, dict[str, str]] = {section: dict(file[section]) for section in file.sections()}
    for section, body in (
        ("core", {
            "dags_folder": str(ROOT / "dags"),
            "execution_api_server_url": f"{url}/execution/",
            "fernet_key": urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "simple_auth_manager_users": ",".join(f"{role}:{role}" for role in PASSWORDS),
            "simple_auth_manager_passwords_file": str(passwords),
        }),
        ("database", {"sql_alchemy_conn": database}),
        ("api", {"host": host, "port": str(port), "base_url": url, "workers": "1"}),
        ("api", {"secret_key": secrets.token_hex(32)}),
        ("api_auth", {"jwt_secret": secrets.token_hex(32), "jwt_issuer": "fleetmark"}),
        ("edge", {"api_url": f"{url}/edge_worker/v1/rpcapi"}),
        ("fleetmark", {"node_keys": ""}),
        ("logging", {"base_log_folder": str(folder / "logs"), "colored_console_log": "False"}),
        *other.items(),
    ):  # fmt: skip
        made.setdefault(section, {}).update(body)
    return {
        "AIRFLOW_HOME": str(folder / "airflow"),
        "PYTHONPATH": str(ROOT / "infra/airflow/config"),
        "PYTHONUNBUFFERED": "1",
        **{
            f"AIRFLOW__{section.upper()}__{name.upper()}": value
            for section, body in made.items()
            for name, value in body.items()
        },
    }


def _kill(server: Server) -> None:
    os.kill(server.pid, signal.SIGKILL)  # its children end with it, see fleetmark_airflow.component
    servers.first_to_end((server,), 10.0)
