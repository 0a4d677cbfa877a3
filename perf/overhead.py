"""What the path around fio costs: bare fio, `fleetmark bench run` and ReFrame on the same 5-second job."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from perf import measure
from pipelines import inventory, keys, plan, settings
from pipelines.records import SuiteEntry

PARAMS = {"profile": "rand_read", "runtime_s": 5, "ramp_s": 0, "size_bytes": 64 * 2**20}
REFRAME = "ReFrame-HPC==4.10.4"
REFRAME_TEST = """
import reframe as rfm
import reframe.utility.sanity as sn

@rfm.simple_test
class FioTest(rfm.RunOnlyRegressionTest):
    valid_systems = ['*']
    valid_prog_environs = ['*']
    executable = {executable!r}
    executable_opts = {options!r}

    @sanity_function
    def ended(self):
        return sn.assert_found(r'"fio version"', {output!r})

    @performance_function('1/s')
    def iops(self):
        return sn.extractsingle(r'"iops" : ([0-9.]+)', {output!r}, 1, float)
"""


def main(rounds: int = 5) -> None:
    current = settings.load()
    with tempfile.TemporaryDirectory(dir=current.home) as scratch:
        argv = _bare_argv(Path(scratch))
        seen: dict[str, list[dict[str, float]]] = {"bare fio": [], "fleetmark bench run": []}
        contenders = {
            "bare fio": lambda: _bare(argv, seen["bare fio"]),
            "fleetmark bench run": lambda: _fleetmark(seen["fleetmark bench run"]),
        }
        reframe = _reframe(Path(scratch), argv)
        if reframe is not None:
            contenders["ReFrame"] = reframe
        series = measure.interleaved(contenders, rounds)
    measure.show("Wall time of one 5 s fio job", "s", series)
    measure.show(
        "Overhead over bare fio",
        "s",
        [measure.Series(one.name, tuple(v - series[0].median for v in one.values)) for one in series[1:]],
        {"fleetmark bench run": "target: under 0.6 s"},
    )
    for metric in ("iops", "p99"):
        measure.show(
            f"What it measured: read {metric}",
            "1/s" if metric == "iops" else "s",
            [measure.Series(name, tuple(each[metric] for each in values)) for name, values in seen.items()],
            {"fleetmark bench run": "target: within 2 % of bare fio"},
        )


def _bare_argv(scratch: Path) -> tuple[str, ...]:
    """The command that fleetmark runs, in a directory of its own."""
    current = settings.load()
    (node,) = inventory.select(inventory.load(current.inventory), (current.node,))
    entry = SuiteEntry(benchmark="fio", params=PARAMS)
    (job,) = plan.jobs_of_entry(keys.run_id(datetime.now(UTC), "perf"), node.name, entry)
    argv = plan.preview(job, scratch)
    own = scratch / f"fleetmark-{job.job_id}"
    own.mkdir()
    return argv


def _bare(argv: tuple[str, ...], seen: list[dict[str, float]]) -> float:
    start = time.perf_counter()
    subprocess.run(argv, check=True, capture_output=True)
    wall = time.perf_counter() - start
    output = Path(next(each for each in argv if each.startswith("--output=")).removeprefix("--output="))
    read = json.loads(output.read_text())["jobs"][0]["read"]
    seen.append({"iops": read["iops"], "p99": read["clat_ns"]["percentile"]["99.000000"] / 1_000_000_000})
    return wall


def _fleetmark(seen: list[dict[str, float]]) -> float:
    given = [part for name, value in PARAMS.items() for part in ("--param", f"{name}={value}")]
    start = time.perf_counter()
    done = subprocess.run(
        (Path(sys.executable).parent / "fleetmark", "bench", "run", "fio", *given, "--json"),
        check=True,
        capture_output=True,
    )
    wall = time.perf_counter() - start
    values = {each["metric"]: each["value"] for each in json.loads(done.stdout)["measurements"]}
    seen.append({"iops": values["read_iops"], "p99": values["read_latency_p99"]})
    return wall


def _reframe(scratch: Path, argv: tuple[str, ...]) -> Callable[[], float] | None:
    """ReFrame in an environment of its own, running the same command; None when no index answers."""
    home = scratch / "reframe"
    uv = Path(sys.executable).parent / "uv"
    made = subprocess.run((uv, "venv", "-q", home), check=False)
    got = subprocess.run((uv, "pip", "install", "-q", "--python", home / "bin/python", REFRAME), check=False)
    if made.returncode or got.returncode:
        print(f"{REFRAME} cannot be installed here; it is left out", file=sys.stderr)
        return None
    output = next(each for each in argv if each.startswith("--output=")).removeprefix("--output=")
    test = scratch / "reframe_fio.py"
    test.write_text(REFRAME_TEST.format(executable=argv[0], options=list(argv[1:]), output=output))
    command = (home / "bin/reframe", "-c", test, "-r", f"--prefix={scratch}/reframe-out")

    def run() -> float:
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, cwd=scratch, env={**os.environ, "RFM_COLORIZE": "0"})
        return time.perf_counter() - start

    return run


if __name__ == "__main__":
    main()
