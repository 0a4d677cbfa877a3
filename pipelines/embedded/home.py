"""The folder of the embedded Airflow: its configuration, secrets, port, database and logs."""

import json
import os
import secrets
import socket
import sys
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pipelines.records import Record
from pipelines.settings import PREFIX, Settings

USER = "admin"
_HOST = "127.0.0.1"


class Secrets(Record):
    """Made once for an installation and never printed; Airflow and people read the password in a file of its own."""

    password: str
    fernet_key: str
    api_secret: str
    jwt_secret: str


class Home:
    """`<FLEETMARK_HOME>/airflow`, which is also AIRFLOW_HOME."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.root = settings.home / "airflow"
        self.logs = self.root / "logs"
        self.database = self.root / "airflow.db"
        self.migrated = self.root / "migrated"  # the version of Airflow whose schema the database has
        self.passwords = self.root / "passwords.json"
        self.instance = self.root / "instance.json"
        self.lock = self.root / "lock"
        self._secrets = self.root / "secrets.json"
        self._port = self.root / "port"

    def prepare(self) -> int:
        """Make the folder and everything in it that Airflow needs to start. Returns the port it shall listen on."""
        self.logs.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o700)
        port = self._free_port()
        self._port.write_text(f"{port}\n")
        made = self.secrets()
        _write_private(self.passwords, json.dumps({USER: made.password}) + "\n")
        _write_private(self.root / "airflow.cfg", render(configuration(self, made, port)))
        return port

    def secrets(self) -> Secrets:
        """The installation's secrets, made at the first call."""
        if not self._secrets.exists():
            made = Secrets(
                password=secrets.token_urlsafe(12),
                fernet_key=urlsafe_b64encode(secrets.token_bytes(32)).decode(),
                api_secret=secrets.token_hex(32),
                jwt_secret=secrets.token_hex(32),
            )
            _write_private(self._secrets, made.model_dump_json() + "\n")
        return Secrets.model_validate_json(self._secrets.read_bytes())

    def environ(self, given: Mapping[str, str] = os.environ) -> dict[str, str]:
        """The environment of Airflow's processes: these settings, and no other Airflow's."""
        kept = {key: value for key, value in given.items() if not key.startswith(("AIRFLOW_", PREFIX, "_AIRFLOW_"))}
        return {
            **kept,
            **setting_variables(self.settings),
            "AIRFLOW_HOME": str(self.root),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{given.get('PATH', os.defpath)}",
            "PYTHONUNBUFFERED": "1",
        }

    def _free_port(self) -> int:
        """The port of last time if it is free, else any."""
        with suppress(OSError, ValueError), socket.socket() as kept:
            kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            kept.bind((_HOST, int(self._port.read_text())))
            return int(kept.getsockname()[1])
        with socket.socket() as fresh:
            fresh.bind((_HOST, 0))
            return int(fresh.getsockname()[1])


def url(port: int) -> str:
    return f"http://{_HOST}:{port}"


def setting_variables(settings: Settings) -> dict[str, str]:
    """The settings as the environment variables that give them."""
    return {f"{PREFIX}{name.upper()}": str(value) for name, value in settings if value is not None}


def configuration(home: Home, made: Secrets, port: int) -> dict[str, dict[str, object]]:
    """Airflow's options by section, where they differ from its defaults."""
    return {
        "core": {
            "executor": "LocalExecutor",
            "parallelism": 4,  # worker processes; fleetmark runs one benchmark at a time anyway
            "dags_folder": home.settings.dags,
            "load_examples": False,
            "dags_are_paused_at_creation": False,
            "mp_start_method": "fork",  # a forked process ends with its parent, see fleetmark_airflow.component
            "execution_api_server_url": f"{url(port)}/execution/",
            "simple_auth_manager_users": f"{USER}:admin",
            "simple_auth_manager_passwords_file": home.passwords,
            "fernet_key": made.fernet_key,
        },
        "database": {"sql_alchemy_conn": f"sqlite:///{home.database}"},
        "api": {
            "host": _HOST,
            "port": port,
            "base_url": url(port),
            "workers": 1,
            "secret_key": made.api_secret,
            "instance_name": "fleetmark",
        },
        "api_auth": {"jwt_secret": made.jwt_secret, "jwt_issuer": "fleetmark"},
        # a task whose worker died is found after this long, not after the default 300 s
        "scheduler": {"task_instance_heartbeat_timeout": 30, "task_instance_heartbeat_timeout_detection_interval": 5},
        "workers": {"min_heartbeat_interval": 1},  # at the default 5 a finished task often holds its slot that long
        "dag_processor": {"refresh_interval": 10, "parsing_processes": 1},
        "logging": {"base_log_folder": home.logs, "colored_console_log": False},
        "usage_data_collection": {"enabled": False},  # no option of Airflow 3.3; it was in 2.10, and may come again
    }


def render(options: Mapping[str, Mapping[str, object]]) -> str:
    """Options as the text of airflow.cfg."""
    sections = (
        "\n".join([f"[{section}]", *(f"{key} = {str(value).replace('%', '%%')}" for key, value in body.items()), ""])
        for section, body in options.items()
    )
    return "\n".join(sections)


def _write_private(path: Path, text: str) -> None:
    """Put a file in place in one step; nobody but its owner can ever read it."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    temporary.replace(path)
