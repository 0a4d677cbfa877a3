"""`python -m tests.upgrade.make_fixture COMMIT`, as root: what that commit writes, as `tests/upgrade/<commit>.tar.xz`.

Each release adds one, of its own commit, and none is ever made again: a fixture made by other code proves nothing. The
code of the commit runs in this environment, through its own command line and nothing else of ours. It measures two runs
with real fio, one of whose jobs is cut off, and a third through its embedded Airflow where that runs here; publishes
and stages datasets where it knows them; and answers the queries that are asked again after every later change.
Airflow's own downgrade then makes its database one of an earlier Airflow.
"""

import hashlib
import io
import json
import os
import sqlite3
import subprocess
import sys
import tarfile
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

FOLDER = Path(__file__).parent
HOSTNAME = "node-1"  # in a UTS namespace: evidence names the machine it comes from
SUITE = """
description = "What a fixture has: two loads, and one that is cut off"
[[benchmarks]]
benchmark = "fio"
params = { size_bytes = 1048576, runtime_s = 0.5, ramp_s = 0.1, iodepth = 1, engine = "psync", direct = "off" }
matrix = { profile = ["rand_read", "seq_write"] }
[[benchmarks]]
benchmark = "fio"
params = { profile = "mixed", size_bytes = 1048576, runtime_s = 30 }
timeout_s = 1
"""
NODES = """
[[nodes]]
name = "localhost"
queue = "localhost"
scratch = "scratch"
scratch_cap_bytes = 17179869184
free_floor_bytes = 1048576
labels = { sku = "generic" }
"""
QUERIES = {
    "results": 'SELECT run_id, node, cohort, "case", metric, repeat, value, unit FROM results ORDER BY ALL',
    "runs": 'SELECT run_id, suite, "case", repeat, attempt, outcome, reason, exit_status, timed_out, tool_version, '
    "environment_id, raw_key, raw_sha256 FROM runs ORDER BY ALL",
    "histograms": 'SELECT run_id, "case", metric, unit, repeat, list_sum(list_transform(bins, lambda bin: bin.count)) '
    "AS requests FROM histograms ORDER BY ALL",
    "environments": "SELECT run_id, environment_id, facts FROM environments ORDER BY ALL",
    "latest": 'SELECT node, "case", metric, value, unit, run_id FROM latest ORDER BY ALL',
    "verdicts": 'SELECT run_id, "case", metric, rule, verdict, observed FROM verdicts ORDER BY ALL',
}
TASKS = (
    "SELECT dag_run.run_id, dag_run.conf, task_id, map_index, task_instance.state, try_number FROM dag_run "
    "JOIN task_instance USING (dag_id, run_id) ORDER BY 1, 3, 4"
)
SCHEMA = "3.2.0"
"""The version of Airflow whose schema the database is given."""
_DEADLINE_S = 300


def source() -> dict[str, bytes]:
    """The files of the datasets, the same in every fixture."""
    samples = {f"part-{number % 3}/{number:03d}.txt": f"{number:03d}\n".encode() * 1500 for number in range(30)}
    return {**samples, "empty.txt": b"", "large.bin": bytes(range(256)) * 300}


def _write_source(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def unpack(archive: tarfile.TarFile, folder: Path) -> None:
    """Python 3.11.2, which Debian 12 has, knows no filters yet."""
    archive.extraction_filter = getattr(tarfile, "data_filter", None)
    archive.extractall(folder)  # noqa: S202 - our own archive


class Commit:
    """The command line of a commit, with a home of its own."""

    def __init__(self, commit: str, folder: Path) -> None:
        self.code, self.home = folder / "code", folder / "home"
        packed = subprocess.run(("git", "archive", commit), check=True, capture_output=True, timeout=_DEADLINE_S).stdout
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            unpack(archive, self.code)
        suites = folder / "suites"
        _write_source(folder, {"suites/quick.toml": SUITE.encode(), "fleet.toml": NODES.encode()})
        given = {"HOME": self.home, "INVENTORY": folder / "fleet.toml", "SUITES": suites, "LEASE_DIR": folder}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "FLEETMARK"))}
        self._environ = {
            **kept,
            "PYTHONPATH": f"{self.code}:{self.code / 'plugins'}",
            "FLEETMARK_DAGS": str(self.code / "dags"),
            "AIRFLOW_HOME": str(self.home / "airflow"),
            **{f"FLEETMARK_{name}": str(path) for name, path in given.items()},
        }

    def __call__(self, *argv: str) -> str:
        """What the verb prints on stdout. Raises: CalledProcessError."""
        return self._run("-c", "from pipelines.cli import main; main()", *argv)

    def aged_database(self) -> list[tuple[object, ...]]:
        """Make the embedded Airflow's database one of an earlier version. Returns the tasks that it knows."""
        with closing(sqlite3.connect(self.home / "airflow/airflow.db")) as database:
            tasks = database.execute(TASKS).fetchall()
        self._run("-m", "airflow", "db", "downgrade", "--to-version", SCHEMA, "--yes")
        (self.home / "airflow/migrated").write_text(SCHEMA)
        with closing(sqlite3.connect(self.home / "airflow/airflow.db")) as database:
            database.execute("DELETE FROM log")  # the commands that were given, with this checkout's path
            database.commit()
            database.execute("VACUUM")
        return tasks

    def _run(self, *argv: str) -> str:
        named = ("unshare", "--uts", "sh", "-c", f'hostname {HOSTNAME} && exec "$@"', "sh")
        done = subprocess.run(
            (*named, sys.executable, *argv),
            check=True, stdout=subprocess.PIPE, text=True, env=self._environ, cwd=self.code, timeout=_DEADLINE_S,
        )  # fmt: skip
        return done.stdout

    @property
    def runs_in_airflow(self) -> bool:
        """Whether it has the module that this environment's entry point names to Airflow."""
        return (self.code / "plugins/fleetmark_airflow/routing.py").exists()

    @property
    def knows_datasets(self) -> bool:
        return (self.code / "pipelines/commands/datasets.py").exists()


def fill(fleetmark: Commit, folder: Path) -> dict[str, object]:
    """Have the commit write a store and a cache. Returns what it answers about them."""
    for note in ("first", "second"):
        fleetmark("run", "--suite", "quick", "--note", note)
    if fleetmark.runs_in_airflow:
        fleetmark("demo")
    datasets: dict[str, object] = {}
    if fleetmark.knows_datasets:
        files = source()
        _write_source(folder / "source", {name: data for name, data in files.items() if name != "large.bin"})
        publish = ("dataset", "publish", str(folder / "source"), "--shard-size", "64KiB", "--format")
        fleetmark(*publish, "tar", "--name", "tars")
        _write_source(folder / "source", files)
        fleetmark(*publish, "tar", "--name", "tars", "--zstd", "3")
        fleetmark(*publish, "blob", "--name", "blobs")
        fleetmark("dataset", "stage", "tars", "blobs")
        for name in ("tars", "blobs"):
            datasets[name] = json.loads(fleetmark("dataset", "show", name, "--json"))
    answers = {name: json.loads(fleetmark("query", sql, "--json")) for name, sql in QUERIES.items()}
    tasks = fleetmark.aged_database() if fleetmark.runs_in_airflow else []
    return {"answers": answers, "datasets": datasets, "tasks": tasks}


def pack(home: Path, said: dict[str, object], path: Path) -> None:
    """The store, the cache, Airflow's database and what was said, without the names of who made them."""

    def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if member.name == "store/docs":
            return None  # Great Expectations' pages, with megabytes of its pictures; nothing reads them
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    (home / "said.json").write_text(json.dumps(said, indent=1, sort_keys=True))
    with tarfile.open(path, "w:xz", preset=9) as archive:
        for name in ("said.json", "store", "cache", "airflow/airflow.db", "airflow/migrated"):
            if (home / name).exists():
                archive.add(home / name, name, filter=anonymous)


def main(commit: str) -> None:
    short = subprocess.run(
        ("git", "rev-parse", "--short=7", commit), check=True, capture_output=True, text=True, timeout=_DEADLINE_S
    ).stdout.strip()
    target = FOLDER / f"{short}.tar.xz"
    with TemporaryDirectory(prefix="fleetmark-fixture-") as folder:
        fleetmark = Commit(commit, Path(folder))
        pack(fleetmark.home, fill(fleetmark, Path(folder)), target)
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    print(f"{target}: {target.stat().st_size} B, sha256 {digest}")


if __name__ == "__main__":
    main(sys.argv[1])
