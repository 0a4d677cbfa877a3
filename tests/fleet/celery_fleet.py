"""A fleet whose nodes have Celery workers, by infra/airflow/celery.env, and the broker that they need."""

import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pipelines.commands.node import variables
from tests import servers
from tests.fleet.control import ROOT, Fleet


@contextmanager
def redis(folder: Path, host: str) -> Iterator[Mapping[str, str]]:
    """A Redis at that address, with a password; gives what Airflow is told of it."""
    port, password = servers.free_port(host), secrets.token_hex(16)
    conf = folder / "redis.conf"
    conf.write_text(
        f'bind {host}\nport {port}\nrequirepass {password}\ndir {folder}\nsave ""\nappendonly no\ndaemonize no\n'
    )
    with servers.running(folder, {"redis": ("redis-server", str(conf))}, lambda: servers.listens(port, host)):
        url = f"redis://:{password}@{host}:{port}"
        yield {"AIRFLOW__CELERY__BROKER_URL": f"{url}/0", "AIRFLOW__CELERY__RESULT_BACKEND": f"{url}/1"}


def options(redis: Mapping[str, str]) -> dict[str, str]:
    """What celery.env says, and what it leaves to the environment."""
    return {**variables(ROOT / "infra/airflow/celery.env"), **redis}


def start_worker(fleet: Fleet, node: str) -> None:
    """One job at a time, the node's own queue; neither the database nor anybody's password for Airflow is there."""
    machine = fleet.machine(node)
    for name in ("airflow", "lock", "nvme"):
        (machine.disk / name).mkdir(exist_ok=True)
    not_there = ("AIRFLOW__DATABASE__SQL_ALCHEMY", "AIRFLOW__API_AUTH__", "AIRFLOW__CORE__FERNET_KEY")
    environ = {
        **{name: value for name, value in fleet.environ.items() if not name.startswith(not_there)},
        "AIRFLOW_HOME": "/mnt/airflow",
        "FLEETMARK_NODE": node,
        "FLEETMARK_HOME": "/mnt",
        "FLEETMARK_LEASE_DIR": "/mnt/lock",
    }
    argv = (sys.executable, "-m", "fleetmark_airflow.component", "celery", "worker", "--queues", node, "--concurrency",
            "1", "--celery-hostname", node, "--skip-serve-logs", "--pid", "/mnt/airflow/worker.pid")  # fmt: skip
    fleet.workers[node] = machine.start(f"worker-{node}", argv, environ, fleet.folder / f"worker-{node}.log")
