"""A load with its memory on either of two NUMA nodes, seen from both: `numa --load=memory --rounds=2 ...`.

It runs the load under numactl(8) on the two nodes that are farthest apart: local and across in turns, so that what
changes with time changes both. `numa --version` prints the versions of numactl and of the loads' tools. What it prints
of a machine with one node, or with too little memory, is why there is nothing to measure.
"""

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from pipelines import process, tools
from pipelines.errors import ToolNotFound, ToolNotStarted
from pipelines.families.numa_loads import LOADS, Asked, Load

_NUMACTL = "numactl"
_MIB = 2**20
_LOOKED_WITHIN_S = 30.0  # a build with CUDA looks for GPUs before it says anything
_VERSION_WITHIN_S = 6.0  # each: a driver that hangs is not to take the time of all
_OF_FREE = 0.5  # of what a node can give may be taken
_NODES = Path("/sys/devices/system/node")
_HINT = "apt-get install numactl, and stress-ng, fio or llama.cpp for the load"


@dataclass(frozen=True)
class _Node:
    number: int
    cpus: int
    free_bytes: int  # of which nothing is in use, not for files' bytes either
    distances: Mapping[int, int]  # to each node


def main(argv: Sequence[str]) -> int:
    try:
        return _version() if list(argv) == ["--version"] else _run(Asked.of(argv))
    except (ToolNotFound, ToolNotStarted) as e:
        print(f"{e}; install it: {_HINT}", file=sys.stderr)
        return os.EX_UNAVAILABLE


def _version() -> int:
    """Of what is installed. numactl before 2.0.17 has no option for it, and says so."""
    done = process.run((_NUMACTL, "--version"), timeout_s=_VERSION_WITHIN_S)
    print(_NUMACTL, done.stdout if done.exit_status == 0 else "of a version that it does not say")
    for load in LOADS.values():
        with suppress(ToolNotFound, ToolNotStarted):
            print(_said(load.tool, "--version", within_s=_VERSION_WITHIN_S))
    return 0


def _said(*argv: str, within_s: float = _LOOKED_WITHIN_S) -> str:
    """On either stream: llama.cpp's programs write what they are on stderr."""
    done = process.run(argv, timeout_s=within_s)
    return done.stdout + done.stderr


def _run(asked: Asked) -> int:
    seen = process.run((_NUMACTL, "--hardware"), timeout_s=_LOOKED_WITHIN_S).stdout
    nodes = topology(seen)
    if len(nodes) < 2:
        there = "one NUMA node" if nodes else "no NUMA node"
        print(f"this machine has {there} with processors and memory: nothing is across", file=sys.stderr)
        return os.EX_UNAVAILABLE
    pair, load = farthest(nodes), LOADS[asked.load]
    problem = _cached(asked) or _too_little(asked, pair)
    version = "" if problem else _said(load.tool, "--version")
    if problem := problem or _too_old(load, version):
        print(problem, file=sys.stderr)
        return os.EX_CONFIG
    print(json.dumps({"probe": "numa", "hardware": seen, "version": version, "runs": list(_measured(asked, *pair))}))
    return 0


def topology(text: str) -> tuple[_Node, ...]:
    """The nodes with processors and memory, as `numactl --hardware` lists them. Pure."""
    cpus = {int(node): len(words.split()) for node, words in re.findall(r"^node (\d+) cpus:(.*)$", text, re.M)}
    sizes = {int(node): int(size) for node, size in re.findall(r"^node (\d+) size: (\d+) MB$", text, re.M)}
    free = {int(node): int(size) for node, size in re.findall(r"^node (\d+) free: (\d+) MB$", text, re.M)}
    head = re.search(r"^node distances:\nnode ([\d ]+)$", text, re.M)
    columns = [int(word) for word in head[1].split()] if head else []
    distances = {
        int(node): dict(zip(columns, map(int, words.split()), strict=False))
        for node, words in re.findall(r"^ +(\d+): +([\d ]+)$", text, re.M)
    }
    return tuple(
        _Node(node, count, free.get(node, 0) * _MIB, distances.get(node, {}))
        for node, count in cpus.items()
        if count and sizes.get(node)
    )


def _cached(asked: Asked) -> str:
    """Why what fio reads would not lie where its buffers do."""
    if asked.load != "fio" or asked.direct:
        return ""
    return "the scratch directory takes no direct I/O, and the page cache lies in the memory of whoever read it first"


def _too_old(load: Load, version: str) -> str:
    """Why the load's tool cannot be taken for it."""
    found = load.version(version)
    if found is None or tools.numbers(found) >= load.minimum_version:
        return ""
    return f"{load.tool} {found} is too old: {'.'.join(map(str, load.minimum_version))} or later is needed"


def _too_little(asked: Asked, pair: tuple[_Node, _Node]) -> str:
    """Why the load does not fit into either node's memory."""
    needed = max(LOADS[asked.load].takes(asked, _instances(asked, node)) for node in pair)
    needed += sum(file.stat().st_size for file in asked.model_files)
    can_give = {node.number: node.free_bytes + kept_for_files(_text(node.number)) for node in pair}
    least = min(can_give, key=lambda number: can_give[number])
    if needed <= can_give[least] * _OF_FREE:
        return ""
    return f"{asked.load} takes {needed} B of memory, and NUMA node {least} has {can_give[least]} B free; ask for less"


def _text(node: int) -> str:
    path = _NODES / f"node{node}/meminfo"
    return path.read_text() if path.is_file() else ""


def kept_for_files(meminfo: str) -> int:
    """Bytes of a node's page cache, which the kernel gives up for others. Pure.

    On a node that has staged datasets that is nearly all of its memory, and free is nearly nothing.
    """
    return sum(int(size) * 1024 for size in re.findall(r"^Node \d+ (?:Ina|A)ctive\(file\): +(\d+) kB$", meminfo, re.M))


def farthest(nodes: tuple[_Node, ...]) -> tuple[_Node, _Node]:
    """The first of the pairs with the greatest distance."""
    return max(combinations(nodes, 2), key=lambda pair: pair[0].distances.get(pair[1].number, 0))


def _instances(asked: Asked, node: _Node) -> int:
    return node.cpus if asked.processors == "all" else 1


def _measured(asked: Asked, one: _Node, other: _Node) -> Iterator[dict[str, Any]]:
    """Each round measures local and across, in the next round the other way round."""
    help_argv = LOADS[asked.load].help_argv
    tool_help = _said(*help_argv) if help_argv else ""
    for number in range(1, asked.rounds + 1):
        for here, there in ((one, other), (other, one)):
            for memory in (here, there) if number % 2 else (there, here):
                yield _measure(asked, here, memory, number, tool_help)


def _measure(asked: Asked, cpus: _Node, memory: _Node, number: int, tool_help: str) -> dict[str, Any]:
    output = Path.cwd() / f"round{number}-{cpus.number}-{memory.number}"
    load = LOADS[asked.load].argv(asked, _instances(asked, cpus), output, tool_help)
    argv = (_NUMACTL, f"--cpunodebind={cpus.number}", f"--membind={memory.number}", *load)
    done = process.run(argv, timeout_s=asked.within_s)
    return {
        "round": number,
        "cpu_node": cpus.number,
        "memory_node": memory.number,
        "argv": argv,
        "exit_status": done.exit_status,
        "signal": done.signal,
        "timed_out": done.timed_out,
        "stderr": done.stderr,
        "output": output.read_text(errors="replace") if output.is_file() else done.stdout,
    }
