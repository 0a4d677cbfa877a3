"""The one Airflow that may be running in a home: up, down, and up for the time of a `with` block."""

import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from pipelines import inventory, servers
from pipelines.embedded.api import Airflow
from pipelines.embedded.home import USER, Home, setting_variables, url
from pipelines.embedded.keeper import Instance
from pipelines.errors import AirflowFailed
from pipelines.servers import Server
from pipelines.settings import PREFIX, SCHEDULES, Settings

DAG = "fleet_benchmark"
_START_S = 180.0  # 10 s on an idle machine, 50 s on a busy one
_STOP_S = 20.0  # the keeper takes 5 s at most
_POLL_S = 0.5
Say = Callable[[str], None]


def up(settings: Settings, say: Say) -> None:
    """Start Airflow and leave it running.

    Raises:
        BadFile: the inventory is malformed; nothing was started.
        AirflowFailed: it does not come up, or one with other settings is running.
    """
    home = Home(settings)
    instance = find(home)
    if instance is None:
        instance = _started(home, say, parents_end=None)
    else:
        _require_same(home, instance)
        say("Airflow is already up")
    say(f"UI      {ui(home, instance)}")
    say(f"tables  {settings.store_url}/tables")
    say(f"logs    {home.logs}")


def down(settings: Settings, say: Say) -> None:
    """Stop the Airflow that `up` started, whatever it is doing."""
    instance = find(Home(settings))
    if instance is None:
        say("Airflow is not running")
        return
    servers.stop((instance.keeper,), _STOP_S)
    say("Airflow is stopped")


@contextmanager
def running(settings: Settings, say: Say) -> Iterator[tuple[Instance, bool]]:
    """The Airflow that is up; or one for the time of the block only, which ends with this process in any case.

    Gives the instance and whether it stays up after the block.

    Raises:
        AirflowFailed: see `up`.
    """
    home = Home(settings)
    instance = find(home)
    if instance is not None:
        _require_same(home, instance)
        say(f"using the Airflow that is up: {url(instance.port)}")
        yield instance, True
        return
    # nothing but the one run: no schedule
    instance = _started(Home(settings.model_copy(update=dict.fromkeys(SCHEDULES, ""))), say, signal.SIGTERM)
    try:
        yield instance, False
    finally:
        say("stopping Airflow")
        servers.stop((instance.keeper,), _STOP_S)


def find(home: Home) -> Instance | None:
    """The Airflow that is running in this home."""
    try:
        instance = Instance.model_validate_json(home.instance.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return instance if instance.keeper.running else None


def client(home: Home, instance: Instance) -> Airflow:
    return Airflow(url(instance.port), USER, home.secrets().password, str(home.logs))


def ui(home: Home, instance: Instance) -> str:
    """Where the UI is, and how to get in."""
    return f"{url(instance.port)}  user {USER}, password in {home.passwords}"


def _started(home: Home, say: Say, parents_end: signal.Signals | None) -> Instance:
    clock = time.monotonic()
    inventory.load(home.settings.inventory)  # or the DAG files could not be read, half a minute from now
    home.logs.mkdir(parents=True, exist_ok=True)
    log = home.logs / "keeper.log"
    log.write_bytes(b"")
    first = "" if home.database.exists() else "; the first start makes its database"
    say(f"starting Airflow{first}")
    argv = (sys.executable, "-m", "pipelines.embedded")
    keeper = servers.start("keeper", argv, log=log, environ=home.environ(), parents_end=parents_end)
    try:
        instance = _wait_until_up(home, keeper, clock + _START_S)
    except BaseException:
        servers.stop((keeper,), _STOP_S)
        raise
    say(f"Airflow is up after {time.monotonic() - clock:.0f} s")
    return instance


def _wait_until_up(home: Home, keeper: Server, deadline: float) -> Instance:
    while time.monotonic() < deadline:
        if servers.first_to_end((keeper,), _POLL_S):
            last = keeper.log.read_text(errors="replace").strip().rpartition("\n")[2]
            raise AirflowFailed(f"Airflow did not start: {last}", str(home.logs))
        instance = find(home)
        if instance is None:
            continue
        airflow = client(home, instance)
        if not airflow.is_up():
            continue
        if errors := airflow.import_errors():
            raise AirflowFailed(f"a DAG file cannot be read: {errors[0]}", str(home.logs / "dag-processor.log"))
        if airflow.has_dag(DAG):
            return instance
    raise AirflowFailed(f"Airflow did not come up within {_START_S:.0f} s", str(home.logs))


def _require_same(home: Home, instance: Instance) -> None:
    wanted, has = (_lasting(each) for each in (setting_variables(home.settings), instance.settings))
    for name in wanted.keys() | has.keys():
        if wanted.get(name) != has.get(name):
            problem = (
                f"the Airflow that is up has {name}={has.get(name, '')}, not {wanted.get(name, '')}; stop it first"
            )
            raise AirflowFailed(problem, str(home.instance))


def _lasting(variables: Mapping[str, str]) -> dict[str, str]:
    """Without the schedules, which a temporary Airflow does not have."""
    schedules = {f"{PREFIX}{name.upper()}" for name in SCHEDULES}
    return {name: value for name, value in variables.items() if name not in schedules}
