"""One component of Airflow (`scheduler`, `api-server`, ...) whose processes all end with it, however it ends.

Airflow's components fork: executor workers, task processes (which lead groups of their own), DAG parsers. Killed with
SIGKILL, a component would leave them running.
"""

import importlib
import os
import sys

from pipelines.process import die_with_parent

PRELOADED = ("deltalake", "duckdb", "pandas", "pyarrow.parquet")
"""Imported by the scheduler, so that its forked tasks have them at once: 0.3 s of each.

By that they start no threads but jemalloc's own, which jemalloc starts anew in a forked child.
"""


def main() -> None:
    """The command `airflow`, with its own arguments."""
    os.register_at_fork(after_in_child=die_with_parent)
    if "scheduler" in sys.argv[1:2]:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's threads do not survive a fork
        os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # gives memory back, see datasets/formats
        for module in PRELOADED:
            importlib.import_module(module)
    from airflow.__main__ import main as airflow

    airflow()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
