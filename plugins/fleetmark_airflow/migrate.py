"""Makes the database of the embedded Airflow, or brings it to the installed version; then says so in a file."""

import sys
from importlib.metadata import version
from pathlib import Path


def main() -> None:
    """`python -m fleetmark_airflow.migrate MARKER` writes Airflow's version to MARKER, only when all went well."""
    from airflow.__main__ import main as airflow

    marker = Path(sys.argv.pop())
    sys.argv[1:] = ["db", "migrate"]
    airflow()  # type: ignore[no-untyped-call]
    marker.write_text(version("apache-airflow-core"))


if __name__ == "__main__":
    main()
