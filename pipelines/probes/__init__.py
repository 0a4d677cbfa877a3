"""Measuring programs of our own, where the field has no tool: `fleetmark-probe NAME ARGUMENTS`.

A probe is a module here with a `main(argv)`. It is a tool like fio: a benchmark's `command` starts it in the job's
directory, it prints one JSON document or fails with a sentence on stderr, and the benchmark's `parse` reads that.
"""

import importlib
import pkgutil
import sys
from collections.abc import Sequence
from importlib.metadata import version

PROGRAM = "fleetmark-probe"


def main(argv: Sequence[str] | None = None) -> int:
    """The command `fleetmark-probe`. Exit status: the probe's own; 2 where there is no such probe."""
    name, *arguments = (sys.argv[1:] if argv is None else argv) or ("",)
    if name == "--version":
        print(f"{PROGRAM} {version('fleetmark')}")
        return 0
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    if name not in names:
        print(f"{PROGRAM}: there is no probe {name!r}; known: {', '.join(names)}", file=sys.stderr)
        return 2
    status: int = importlib.import_module(f"{__name__}.{name}").main(arguments)
    return status
