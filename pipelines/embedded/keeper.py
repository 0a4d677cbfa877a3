"""The process that keeps the embedded Airflow: starts its components, and ends all of them when one or itself ends."""

import fcntl
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

from pipelines import process_groups, servers
from pipelines import settings as edge
from pipelines.embedded.home import Home, setting_variables
from pipelines.records import Record
from pipelines.servers import Server

COMPONENTS = (
    ("api-server",),
    ("scheduler", "--skip-serve-logs"),  # logs are read from their folder; a server for them wants a fixed port
    ("dag-processor",),
    ("triggerer", "--skip-serve-logs"),
)
_STOP_S = 5.0  # for a component to end by itself; the scheduler would wait for its tasks, however long they take


class Instance(Record):
    """A running Airflow: what its keeper writes down before it starts anything."""

    keeper: Server
    port: int
    settings: dict[str, str]


def main() -> int:
    """Keep an Airflow until told to stop. Exit status: 0 when told to, 1 when a component ended by itself."""
    home = Home(edge.load())
    home.root.mkdir(parents=True, exist_ok=True)
    with home.lock.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another Airflow is running in {home.root}", file=sys.stderr)
            return 1
        return _keep(home)


def _keep(home: Home) -> int:
    running: list[Server] = []
    try:
        with _stop_asked() as stop:
            _announce(home)
            if not _migrated(home):
                running.append(_start(home, "database", "fleetmark_airflow.migrate", str(home.migrated)))
                if servers.first_to_end(running, unless=stop) is None:
                    return 0
                running.clear()
                if not _migrated(home):
                    print("the database could not be made", file=sys.stderr)
                    return 1
            for name, *options in COMPONENTS:
                running += [_start(home, name, "fleetmark_airflow.component", name, *options)]
            if (ended := servers.first_to_end(running, unless=stop)) is None:
                return 0
            print(f"{ended.name} ended by itself", file=sys.stderr)
            return 1
    finally:
        servers.stop(running, _STOP_S)
        home.instance.unlink(missing_ok=True)


def _announce(home: Home) -> None:
    port = home.prepare()
    pid = os.getpid()
    me = Server(
        name="keeper", pid=pid, start_ticks=process_groups.start_ticks_of(pid) or 0, log=home.logs / "keeper.log"
    )
    body = Instance(keeper=me, port=port, settings=setting_variables(home.settings))
    temporary = home.instance.with_suffix(".new")
    temporary.write_text(body.model_dump_json())
    temporary.replace(home.instance)


def _migrated(home: Home) -> bool:
    """Whether the database is there and of the installed Airflow's schema; asking Airflow itself takes 5 s."""
    wanted = version("apache-airflow-core")
    return home.database.exists() and home.migrated.exists() and home.migrated.read_text() == wanted


def _start(home: Home, name: str, module: str, *arguments: str) -> Server:
    return servers.start(
        name, (sys.executable, "-m", module, *arguments), log=home.logs / f"{name}.log", environ=home.environ()
    )


@contextmanager
def _stop_asked() -> Iterator[int]:
    """A descriptor that can be read once SIGTERM or SIGINT has come.

    The handlers raise nothing: Python drops an exception that comes within a fork, and the signal would be lost.
    """
    stop = os.eventfd(0, os.EFD_CLOEXEC)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: os.eventfd_write(stop, 1))
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # it is stopping
        os.close(stop)
