"""`python -m tests.fuzz [SECONDS] [READER...]`: inputs for every reader until the time is up; with atheris where it is.

Without atheris inputs are those of `attacks.mutations`, and what a reader takes becomes a seed. An input that is not
answered as documented is written to `fuzz-<reader>.bin`, and the exit status is 1.
"""

import importlib.util
import os
import random
import sys
import time
from pathlib import Path

from tests.attacks.mutations import mutated
from tests.attacks.readers import Reader, all_readers

_MOST_SEEDS = 500
_SLOW_S = 10.0


def fuzz(reader: Reader, seconds: float, seed: int) -> tuple[int, bytes | None]:
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


def with_atheris(readers: list[Reader], seconds: float) -> int:
    """Guided by coverage; one process for each reader, since libFuzzer ends the one it runs in."""
    import atheris

    failed = 0
    for reader in readers:
        child = os.fork()
        if child == 0:
            atheris.instrument_all()
            atheris.Setup([sys.argv[0], f"-max_total_time={seconds:.0f}", "-max_len=65536"], reader.tried)
            atheris.Fuzz()
        failed += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
    return failed


def main(seconds: float, wanted: list[str]) -> int:
    readers = [reader for reader in all_readers() if not wanted or reader.name in wanted]
    share_s = seconds / max(1, len(readers))
    if importlib.util.find_spec("atheris"):
        return 1 if with_atheris(readers, share_s) else 0
    failed = 0
    for reader in readers:
        seed = random.randrange(2**32)
        tried, found = fuzz(reader, share_s, seed)
        print(f"{reader.name}: {tried} inputs, {'one failed' if found is not None else 'all answered'} (seed {seed})")
        if found is not None:
            Path(f"fuzz-{reader.name.replace(' ', '-')}.bin").write_bytes(found)
            failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 3600.0, sys.argv[2:]))
