"""The memory of two NUMA nodes, each seen from both: `numa --rounds=N --duration=N --array-bytes=N --processors=all`.

It runs stress-ng's stream under numactl(8) on the two nodes that are farthest apart: local and across in turns, so that
what changes with time changes both. `numa --version` prints the versions of the two tools. What it prints of a machine
with one node, or with too little memory, is why there is nothing to measure.
"""

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from pipelines import process
from pipelines.errors import ToolNotFound, ToolNotStarted
from pipelines.families import stream_results

_NUMACTL = "numactl"
_MIB = 2**20
_LOOKED_WITHIN_S = 5.0
_ENDS_WITHIN_S = 30.0  # beyond its duration: making and giving back the arrays
_ARRAYS = 3
_OF_FREE = 0.5  # of a node's free memory may be taken
_HINT = "apt-get install numactl stress-ng"


@dataclass(frozen=True)
class _Node:
    number: int
    cpus: int
    free_bytes: int
    distances: Mapping[int, int]  # to each node


@dataclass(frozen=True)
class _Asked:
    rounds: int
    duration_s: int
    array_bytes: int
    processors: str


def main(argv: Sequence[str]) -> int:
    try:
        return _version() if list(argv) == ["--version"] else _run(_asked(argv))
    except (ToolNotFound, ToolNotStarted) as e:
        print(f"{e}; install it: {_HINT}", file=sys.stderr)
        return os.EX_UNAVAILABLE


def _version() -> int:
    """numactl before 2.0.17 has no option for it, and says so."""
    print(process.run((stream_results.TOOL, "--version"), timeout_s=_LOOKED_WITHIN_S).stdout, end="")
    done = process.run((_NUMACTL, "--version"), timeout_s=_LOOKED_WITHIN_S)
    print(_NUMACTL, done.stdout if done.exit_status == 0 else "of a version that it does not say")
    return 0


def _asked(argv: Sequence[str]) -> _Asked:
    given = dict(word.removeprefix("--").split("=", 1) for word in argv)
    return _Asked(int(given["rounds"]), int(given["duration"]), int(given["array-bytes"]), given["processors"])


def _run(asked: _Asked) -> int:
    seen = process.run((_NUMACTL, "--hardware"), timeout_s=_LOOKED_WITHIN_S).stdout
    nodes = topology(seen)
    if len(nodes) < 2:
        there = "one NUMA node" if nodes else "no NUMA node"
        print(f"this machine has {there} with processors and memory: nothing is across", file=sys.stderr)
        return os.EX_UNAVAILABLE
    pair = farthest(nodes)
    if problem := _too_little(asked, pair):
        print(problem, file=sys.stderr)
        return os.EX_CONFIG
    print(json.dumps({"probe": "numa", "hardware": seen, "runs": list(_measured(asked, *pair))}))
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


def _too_little(asked: _Asked, pair: tuple[_Node, _Node]) -> str:
    """Why the arrays do not fit into either node's memory."""
    needed = max(_instances(asked, node) for node in pair) * _ARRAYS * asked.array_bytes
    least = min(pair, key=lambda node: node.free_bytes)
    if needed <= least.free_bytes * _OF_FREE:
        return ""
    return f"the arrays take {needed} B, and NUMA node {least.number} has {least.free_bytes} B free; ask for less"


def farthest(nodes: tuple[_Node, ...]) -> tuple[_Node, _Node]:
    """The first of the pairs with the greatest distance."""
    return max(combinations(nodes, 2), key=lambda pair: pair[0].distances.get(pair[1].number, 0))


def _instances(asked: _Asked, node: _Node) -> int:
    return node.cpus if asked.processors == "all" else 1


def _measured(asked: _Asked, one: _Node, other: _Node) -> Iterator[dict[str, Any]]:
    """Each round measures local and across, in the next round the other way round."""
    for number in range(1, asked.rounds + 1):
        for here, there in ((one, other), (other, one)):
            for memory in (here, there) if number % 2 else (there, here):
                yield _measure(asked, here, memory, number)


def _measure(asked: _Asked, cpus: _Node, memory: _Node, number: int) -> dict[str, Any]:
    output = Path.cwd() / f"round{number}-{cpus.number}-{memory.number}.yaml"
    stream = stream_results.argv(
        instances=_instances(asked, cpus),
        array_bytes=asked.array_bytes,
        duration_s=asked.duration_s,
        output=output,
    )
    argv = (_NUMACTL, f"--cpunodebind={cpus.number}", f"--membind={memory.number}", *stream)
    done = process.run(argv, timeout_s=asked.duration_s + _ENDS_WITHIN_S)
    return {
        "round": number,
        "cpu_node": cpus.number,
        "memory_node": memory.number,
        "argv": argv,
        "exit_status": done.exit_status,
        "signal": done.signal,
        "timed_out": done.timed_out,
        "stderr": done.stderr,
        "output": output.read_text(errors="replace") if output.is_file() else None,
    }
