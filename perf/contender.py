"""Contenders in processes and, where need be, environments of their own: what each takes in time, processor, memory."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from perf import measure
from perf.measure import Series

LAUNCHER = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE)
seconds = time.perf_counter() - start
used = resource.getrusage(resource.RUSAGE_CHILDREN)
sys.stdout.write(done.stdout.decode())
print()
print(json.dumps({"seconds": seconds, "cpu_s": used.ru_utime + used.ru_stime, "rss_bytes": used.ru_maxrss * 1024}))
sys.exit(done.returncode)
"""
"""A small process between: the peak memory of a child is counted from what its parent had."""

_TIMED = """
import json, resource, time
def _cpu():
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)
_start, _before = time.perf_counter(), _cpu()
work()
print(json.dumps({"seconds": time.perf_counter() - _start, "cpu_s": _cpu() - _before}))
"""
"""After a contender's script, which has imported what it needs and defined `work`."""


@dataclass(frozen=True)
class Used:
    seconds: float
    cpu_s: float
    rss_bytes: int  # at its peak, of the whole process


def python(script: str, *arguments: object, executable: Path | str = sys.executable) -> tuple[str, ...]:
    """The command of a script that defines `work()`; only that is timed."""
    return (str(executable), "-c", script + _TIMED, *map(str, arguments))


def run(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> Used:
    """Run a contender to its end. Raises: RuntimeError: it failed."""
    command = (sys.executable, "-S", "-c", LAUNCHER, *argv)
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environ)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)[:200]} failed: {done.stderr[-3000:]}")
    *said, launched = (line for line in done.stdout.splitlines() if line)
    own = json.loads(said[-1]) if said and said[-1].startswith('{"seconds"') else {}
    return Used(**(json.loads(launched) | own))


def environment(folder: Path, *packages: str) -> Path | None:
    """The Python of a new environment with these packages, or None when no index has them."""
    uv = Path(sys.executable).parent / "uv"
    python = folder / "bin/python"
    made = subprocess.run((uv, "venv", "-q", "--seed", "--python", sys.executable, folder), check=False)
    got = subprocess.run((python, "-m", "pip", "install", "-q", *packages), check=False, capture_output=True)
    if made.returncode or got.returncode:
        print(f"{' '.join(packages)} cannot be installed here; left out", file=sys.stderr)
        return None
    return python


def compare(
    title: str,
    total_bytes: int,
    contenders: Mapping[str, Callable[[], Used]],
    rounds: int,
    notes: Mapping[str, str] | None = None,
) -> list[Series]:
    """Every contender once a round; shows the rates, and beside them processor time and peak memory."""
    used: dict[str, list[Used]] = {name: [] for name in contenders}

    def rate_of(name: str) -> Callable[[], float]:
        def once() -> float:
            used[name].append(contenders[name]())
            return total_bytes / used[name][-1].seconds / 1e6

        return once

    series = measure.interleaved({name: rate_of(name) for name in contenders}, rounds)
    beside = {
        name: f"{min(each.cpu_s for each in seen):.2f} CPU-s, {max(each.rss_bytes for each in seen) / 1e6:.0f} MB"
        + (f"; {notes[name]}" if notes and name in notes else "")
        for name, seen in used.items()
    }
    measure.show(title, "MB/s", series, beside)
    return series
