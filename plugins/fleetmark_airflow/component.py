"""One component of Airflow (`scheduler`, `api-server`, ...) whose processes all end with it, however it ends.

Airflow's components fork: executor workers, task processes (which lead groups of their own), DAG parsers. Killed with
SIGKILL, a component would leave them running.
"""

import os

from pipelines.process import die_with_parent


def main() -> None:
    """The command `airflow`, with its own arguments."""
    os.register_at_fork(after_in_child=die_with_parent)
    from airflow.__main__ import main as airflow

    airflow()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
