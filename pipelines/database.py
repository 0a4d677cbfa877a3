"""Airflow's database, where it is PostgreSQL: dumped and restored by PostgreSQL's own tools."""

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from pipelines import process
from pipelines.errors import DatabaseRefused

VARIABLE = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"
"""Airflow's setting of where its database is."""

_TIMEOUT_S = 6 * 3600.0


def configured(environ: Mapping[str, str] = os.environ) -> str | None:
    """The URL of Airflow's database if it is PostgreSQL."""
    url = environ.get(VARIABLE, "")
    return url if url.startswith("postgres") else None


def dump(url: str, path: Path) -> None:
    """One consistent state of the database as a file in pg_dump's own format. Raises: ToolNotFound, DatabaseRefused."""
    _run(url, "pg_dump", "--format=custom", "--no-owner", f"--file={path}")


def restore(url: str, path: Path) -> None:
    """The dump into an empty database, all of it or nothing.

    Raises:
        ToolNotFound.
        DatabaseRefused: something is in it already, or it cannot be written.
    """
    _run(url, "pg_restore", "--exit-on-error", "--single-transaction", "--no-owner", str(path))


def _run(url: str, tool: str, *argv: str) -> None:
    """The password goes by the environment: what is on a command line everybody on the machine can read."""
    where, password = _split(url)
    environ = {**os.environ, **({"PGPASSWORD": password} if password else {})}
    done = process.run(
        (tool, f"--dbname={where}", *argv), timeout_s=_TIMEOUT_S, environ=environ, passed=("PGPASSWORD", "PGPASSFILE")
    )
    if done.exit_status != 0:
        said = " ".join(done.stderr.split())[:500] or f"it ended with status {done.exit_status}, signal {done.signal}"
        raise DatabaseRefused(tool, said)


def _split(url: str) -> tuple[str, str | None]:
    """The URL as libpq reads it, without SQLAlchemy's driver and without the password; and the password."""
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    name, _, password = user.partition(":")
    netloc = f"{name}@{host}" if name else host
    return urlunsplit(("postgresql", netloc, parts.path, parts.query, "")), unquote(password) or None
