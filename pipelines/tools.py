"""The benchmark tools on this machine: which are there, in which version, and whether that version will do."""

import os
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace

from pipelines import benchmark, probes, process
from pipelines.benchmark import Benchmark
from pipelines.errors import ToolNotFound, ToolNotStarted
from pipelines.records import Outcome, Refusal

SIMULATED = "fleetmark-simulated"
"""What a stand-in for hardware that is not there prints with its version; every row from it is marked as simulated."""

_TIMEOUT_S = 30.0  # a node that comes from its sleep, or a loaded one


@dataclass(frozen=True)
class Tool:
    """A benchmark's tool as found. `refusal` says why it cannot be used."""

    name: str
    version: str | None = None
    simulated: bool = False
    refusal: Refusal | None = None
    help: str = ""  # the options it knows, in its own words, where its benchmark asks for them


def find(descriptor: Benchmark, environ: Mapping[str, str] = os.environ) -> Tool:
    """Ask the tool for its version, and for its options where the descriptor says how."""
    try:
        tool = judge(descriptor, _printed(descriptor.version_argv, environ))
        if tool.refusal or not descriptor.help_argv:
            return tool
        return replace(tool, help=_printed(descriptor.help_argv, environ))
    except (ToolNotFound, ToolNotStarted) as e:
        reason = f"{e}; install it: {descriptor.install_hint}"
        return Tool(descriptor.tool, refusal=Refusal(outcome=Outcome.NOT_MEASURED, reason=reason))


def _printed(argv: tuple[str, ...], environ: Mapping[str, str]) -> str:
    done = process.run(argv, timeout_s=_TIMEOUT_S, environ=environ)
    return done.stdout + done.stderr


def find_all(environ: Mapping[str, str] = os.environ, of: Container[str] | None = None) -> Mapping[str, Tool]:
    """The tool of every benchmark, or of those named, by the benchmark's name."""
    return {
        name: find(descriptor, environ) for name, descriptor in benchmark.discover().items() if of is None or name in of
    }


def judge(descriptor: Benchmark, printed: str) -> Tool:
    """What the tool's answer to `version_argv` says. Pure."""
    version = descriptor.version(printed)
    if version is None:
        reason = f"{' '.join(descriptor.version_argv)} printed {printed[:200]!r}, which names no version of it"
        if descriptor.tool == probes.PROGRAM:  # which says itself what is missing
            reason = printed.strip()
        return Tool(descriptor.tool, refusal=Refusal(outcome=Outcome.NOT_MEASURED, reason=reason))
    simulated = SIMULATED in printed
    if numbers(version) < descriptor.minimum_version:
        wanted = ".".join(str(part) for part in descriptor.minimum_version)
        reason = f"{descriptor.tool} {version} is too old; {wanted} or later is needed: {descriptor.install_hint}"
        return Tool(descriptor.tool, version, simulated, Refusal(outcome=Outcome.CONFIG, reason=reason))
    return Tool(descriptor.tool, version, simulated)


def numbers(version: str) -> tuple[int, ...]:
    """(3, 36) of "3.36-5-g1234"."""
    found = re.match(r"\D*(\d{1,9}(?:\.\d{1,9})*)", version)
    return tuple(int(part) for part in found[1].split(".")) if found else ()
