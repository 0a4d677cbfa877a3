"""One of perftest's programs on this node with itself: `perftest_loopback --within=SECONDS PROGRAM ARGUMENTS`.

It starts the server and then the client, on a port that is free, and prints how both ended and what they left.
`perftest_loopback --version` prints what perftest prints of itself.
"""

import json
import os
import queue
import socket
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines import process, process_groups
from pipelines.errors import ToolNotFound, ToolNotStarted
from pipelines.process import Completed

_PROGRAM = "ib_write_bw"  # one of those that have the same version
_HINT = "apt-get install perftest"
_ADDRESS = "127.0.0.1"  # on which the two agree; the messages go through the adapter
_ASKED_EVERY_S = 0.1  # that the server listens gives no event
_SERVER_ENDS_WITHIN_S = 2.0  # after its client
_VERSION_WITHIN_S = 5.0
_PORTS = 3  # another process may take a port that was free
_DOCUMENT = "client.json"


@dataclass(frozen=True)
class _Asked:
    program: str
    arguments: tuple[str, ...]
    ends_at: float  # of time.monotonic
    folder: Path

    @property
    def left_s(self) -> float:
        return max(0.0, self.ends_at - time.monotonic())


def main(argv: Sequence[str]) -> int:
    try:
        return _version() if list(argv) == ["--version"] else _run(argv)
    except (ToolNotFound, ToolNotStarted) as e:
        print(f"{e}; install it: {_HINT}", file=sys.stderr)
        return os.EX_UNAVAILABLE


def _version() -> int:
    done = process.run((_PROGRAM, "--version"), timeout_s=_VERSION_WITHIN_S)
    print(done.stdout + done.stderr, end="")
    return 0


def _run(argv: Sequence[str]) -> int:
    within, program, *arguments = argv
    ends_at = time.monotonic() + float(within.removeprefix("--within="))
    asked = _Asked(program, tuple(arguments), ends_at, Path.cwd())
    for _ in range(_PORTS):
        client, server = _both(asked, _free_port())
        if server is None or _unanswered(client) is None:
            break
    document = asked.folder / _DOCUMENT
    printed = document.read_text(errors="replace") if document.is_file() else None
    ended = {"client": {**_ending(client), "output": printed}, "server": server and _ending(server)}
    print(json.dumps({"probe": "perftest_loopback", **ended}))
    return 0


def _both(asked: _Asked, port: int) -> tuple[Completed, Completed | None]:
    """How the client ended, and the server; None: it had to be ended."""
    common = (asked.program, f"--port={port}", *asked.arguments)
    groups: queue.SimpleQueue[int] = queue.SimpleQueue()
    with ThreadPoolExecutor(1) as pool:
        serving = pool.submit(process.run, common, timeout_s=asked.left_s, started=groups.put)
        try:
            client = _client(asked, common, serving)
        finally:
            ended, _ = wait([serving], timeout=min(_SERVER_ENDS_WITHIN_S, asked.left_s))
            if not ended and not groups.empty():
                group = groups.get()
                process_groups.end_left(group, process_groups.start_ticks_of(group) or 0, asked.folder)
        server = serving.result()
    return client, server if ended else None


def _client(asked: _Asked, common: tuple[str, ...], serving: Future[Completed]) -> Completed:
    """The client; again while the server is there and does not listen yet."""
    argv = (*common, "--out_json", f"--out_json_file={asked.folder / _DOCUMENT}", _ADDRESS)
    while True:
        done = process.run(argv, timeout_s=asked.left_s)
        if _unanswered(done) is None or not asked.left_s:
            return replace(done, timed_out=done.timed_out or not asked.left_s)
        if wait([serving], timeout=_ASKED_EVERY_S).done:
            return done


def _unanswered(client: Completed) -> str | None:
    from pipelines.families import perftest_results  # half of the time that the probe takes to say its version

    return perftest_results.unanswered(client.stdout, client.stderr)


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("", 0))
        port: int = listening.getsockname()[1]
        return port


def _ending(done: Completed) -> dict[str, Any]:
    return {
        "argv": done.argv,
        "exit_status": done.exit_status,
        "signal": done.signal,
        "timed_out": done.timed_out,
        "stdout": done.stdout,
        "stderr": done.stderr,
    }
