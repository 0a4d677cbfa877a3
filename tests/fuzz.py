"""Inputs for every reader until the time is up; with atheris where it is.

Without it inputs are those of `attacks.mutations`, and what a reader takes becomes a seed. With it they are guided by
coverage of `pipelines`. It is not locked, since only this uses it, and not installed either:

    VIRTUAL_ENV=.venv .venv/bin/uv run --active --no-project --with atheris==3.0.0 python -m tests.fuzz 3600

An input that is not answered as documented is written to `fuzz-<reader>...`, and the exit status is 1.
"""

import argparse
import importlib
import importlib.util
import os
import random
import sys
import time
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

from tests.attacks.mutations import mutated

if TYPE_CHECKING:
    from tests.attacks.readers import Reader

_MOST_SEEDS = 500
_LONGEST = 2**16  # bytes of an input of atheris
_SLOW_S = 10.0


def fuzz(reader: "Reader", seconds: float, seed: int) -> tuple[int, bytes | None]:
    """How many inputs were tried, and the one that failed."""
    chance, seeds, tried = random.Random(seed), list(reader.seeds), 0
    ends_at = time.monotonic() + seconds
    while (begun := time.monotonic()) < ends_at:
        data = mutated(chance, seeds)
        tried += 1
        try:
            taken = reader.tried(data)
        except Exception as e:  # noqa: BLE001 - any is a find
            print(f"{reader.name}: {type(e).__name__}: {str(e)[:300]}")
            return tried, data
        if time.monotonic() - begun > _SLOW_S:
            print(f"{reader.name}: {len(data)} B took more than {_SLOW_S:g} s")
            return tried, data
        if taken and len(seeds) < _MOST_SEEDS:
            seeds.append(data)
    return tried, None


def unguided(reader: "Reader", seconds: float) -> bool:
    """Whether every input was answered as documented."""
    seed = random.randrange(2**32)
    tried, found = fuzz(reader, seconds, seed)
    print(f"{reader.name}: {tried} inputs, {'one failed' if found is not None else 'all answered'} (seed {seed})")
    if found is not None:
        Path(_artifact(reader)).write_bytes(found)
    return found is None


def guided(atheris: Any, reader: "Reader", seconds: float) -> bool:
    """The same by libFuzzer, which ends the process that it runs in."""

    def one(data: bytes) -> None:
        reader.tried(data)

    options = {"max_total_time": round(seconds), "max_len": _LONGEST, "timeout": round(_SLOW_S), "verbosity": 0}
    corpus = Path(mkdtemp())
    for number, seed in enumerate(reader.seeds):
        (corpus / str(number)).write_bytes(seed)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        given = [f"-{name}={value}" for name, value in options.items()]
        atheris.Setup([sys.argv[0], *given, f"-artifact_prefix={_artifact(reader)}-", str(corpus)], one)
        atheris.Fuzz()
        sys.exit()  # no block of the parent's is left here that would remove what is the parent's
    is_well = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    taken = sum(1 for _ in corpus.iterdir()) - len(reader.seeds)
    rmtree(corpus)
    print(f"{reader.name}: {taken} ways through it found, {'all answered' if is_well else 'one input failed'}")
    return is_well


def _artifact(reader: "Reader") -> str:
    return f"fuzz-{reader.name.replace(' ', '-')}"


def main(seconds: float, wanted: list[str]) -> int:
    """The exit status: 0 when every input was answered."""
    if atheris := _atheris():
        with atheris.instrument_imports(include=["pipelines"]):
            readers = _readers(wanted)
    else:
        readers = _readers(wanted)
    share_s = seconds / max(1, len(readers))
    answered = [guided(atheris, each, share_s) if atheris else unguided(each, share_s) for each in readers]
    return 0 if all(answered) else 1


def _atheris() -> Any:
    return importlib.import_module("atheris") if importlib.util.find_spec("atheris") else None


def _readers(wanted: list[str]) -> "list[Reader]":
    """Imported here, so that what they import can be instrumented."""
    from tests.attacks.readers import all_readers

    return [reader for reader in all_readers() if not wanted or reader.name in wanted]


if __name__ == "__main__":
    parser = argparse.ArgumentParser("tests.fuzz", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("seconds", type=float, nargs="?", default=3600.0, help="for all readers together")
    parser.add_argument("reader", nargs="*", help="their names; default: all of them")
    asked = parser.parse_args()
    sys.exit(main(asked.seconds, asked.reader))
