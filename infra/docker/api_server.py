"""Starts the api-server. Docker gives people's passwords as variables, Airflow wants them in a file."""

import json
import os
import sys
from pathlib import Path

PEOPLE = ("admin", "operator", "viewer")


def main() -> None:
    os.umask(0o077)
    passwords = {name: os.environ.pop(f"{name.upper()}_PASSWORD") for name in PEOPLE}
    Path(os.environ["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"]).write_text(json.dumps(passwords))
    component = (sys.executable, "-m", "fleetmark_airflow.component", "api-server", "--proxy-headers")
    os.execv(sys.executable, component)  # noqa: S606 - it becomes the api-server


if __name__ == "__main__":
    main()
