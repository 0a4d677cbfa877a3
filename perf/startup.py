"""How long a node waits for fleetmark itself: import, help, and the tools a user would type instead."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from perf import measure


def main(rounds: int = 7) -> None:
    here = Path(sys.executable).parent
    contenders = {
        "python -c pass": _timed((sys.executable, "-c", "pass")),
        "import the node side": _timed((sys.executable, "-c", "import pipelines.node")),
        "fleetmark --help": _timed((str(here / "fleetmark"), "--help")),
        "airflow --help": _timed((str(here / "airflow"), "--help")),
    }
    series = measure.interleaved(contenders, rounds)
    target = "target: under 0.3 s"
    measure.show("Start", "s", series, {"import the node side": target, "fleetmark --help": target})


def _timed(argv: tuple[str, ...]) -> Callable[[], float]:
    def run() -> float:
        start = time.perf_counter()
        subprocess.run(argv, check=True, capture_output=True)
        return time.perf_counter() - start

    return run


if __name__ == "__main__":
    main()
