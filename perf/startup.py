"""How long one waits for fleetmark itself: import, help, reading the DAG files, the environment's snapshot."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from perf import measure
from pipelines import environment


def main(rounds: int = 7) -> None:
    here = Path(sys.executable).parent
    contenders = {
        "python -c pass": _timed((sys.executable, "-c", "pass")),
        "import the node side": _timed((sys.executable, "-c", "import pipelines.node")),
        "fleetmark --help": _timed((str(here / "fleetmark"), "--help")),
        "airflow --help": _timed((str(here / "airflow"), "--help")),
    }
    series = measure.interleaved({**contenders, "read the DAG files": _dags, "environment snapshot": _snapshot}, rounds)
    target = "target: under 0.3 s"
    measure.show("Start", "s", series, {"import the node side": target, "fleetmark --help": target})


def _dags() -> float:
    """As the DAG processor does it, in a fresh process; Airflow's own imports are not counted."""
    script = """
import time
from airflow.dag_processing.dagbag import DagBag
start = time.perf_counter()
assert DagBag("dags", bundle_name="dags-folder").dags
print(time.perf_counter() - start)
"""
    with tempfile.TemporaryDirectory() as home:
        environ = {**os.environ, "AIRFLOW_HOME": home}
        done = subprocess.run((sys.executable, "-c", script), check=True, capture_output=True, text=True, env=environ)
    return float(done.stdout.splitlines()[-1])


def _snapshot() -> float:
    start = time.perf_counter()
    environment.snapshot(Path(tempfile.gettempdir()), ())
    return time.perf_counter() - start


def _timed(argv: tuple[str, ...]) -> Callable[[], float]:
    def run() -> float:
        start = time.perf_counter()
        subprocess.run(argv, check=True, capture_output=True)
        return time.perf_counter() - start

    return run


if __name__ == "__main__":
    main()
