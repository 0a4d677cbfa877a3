"""Small files and metadata: `small_files --files=N --bytes=N --workers=N [--forget=all]`, in the working directory.

Each worker is a process with a directory of its own. In each phase all workers do the same to all of their files; a
phase takes from the first worker's start to the last one's end, and its rate is of all files in that time.
"""

import json
import os
import random
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pipelines import page_cache, process

_SEED = 20_180_412
_DURABLE_SHARE = 10  # an fsync takes as long as many creations do
_DURABLE_LEAST, _DURABLE_MOST = 20, 1000

_AFTER_FORGETTING: Mapping[str, Sequence[str]] = {"cold": ("list", "stat", "read"), "data_cold": ("read",), "warm": ()}

_Span = tuple[
    float, float, list[float]
]  # when a worker began and ended (monotonic), and the seconds of each durable one


@dataclass(frozen=True)
class _Files:
    """One worker's files, and what is done to them. Reads and stats are in an order of chance, as a data loader's."""

    folder: Path
    count: int
    content: bytes

    @property
    def paths(self) -> list[str]:
        return [f"{self.folder}/{number:07}" for number in range(self.count)]

    @property
    def shuffled(self) -> list[str]:
        paths = self.paths
        random.Random(f"{_SEED}{self.folder.name}").shuffle(paths)  # noqa: S311
        return paths

    @property
    def durable(self) -> list[str]:
        return [f"{self.folder}/durable-{number:07}" for number in range(durable_count(self.count))]

    @property
    def renamed(self) -> list[str]:
        return [f"{self.folder}/renamed-{number:07}" for number in range(self.count)]

    def create(self) -> None:
        for path in self.paths:
            os.close(self._written(path))

    def create_durable(self) -> list[float]:
        took = []
        for path in self.durable:
            began = time.perf_counter()
            descriptor = self._written(path)
            os.fsync(descriptor)
            os.close(descriptor)
            took.append(round(time.perf_counter() - began, 9))
        return took

    def scan(self) -> None:
        with os.scandir(self.folder) as entries:
            found = sum(1 for _ in entries)
        expected = self.count + len(self.durable)
        if found != expected:
            raise OSError(f"{self.folder.name} lists {found} files, and {expected} were created there")

    def stat(self) -> None:
        for path in self.shuffled:
            if os.stat(path).st_size != len(self.content):  # noqa: PTH116 - a Path would cost more than the call
                raise OSError(f"{path} has another size than it was written with")

    def read(self) -> None:
        for path in self.shuffled:
            descriptor = os.open(path, os.O_RDONLY)
            data = os.read(descriptor, len(self.content) + 1)
            os.close(descriptor)
            if data != self.content:
                raise OSError(f"{path} has other bytes than it was written with")

    def rename(self) -> None:
        for before, after in zip(self.paths, self.renamed, strict=True):
            os.rename(before, after)  # noqa: PTH104

    def unlink(self) -> None:
        for path in self.renamed:
            os.unlink(path)  # noqa: PTH108

    def forget(self) -> bool:
        return page_cache.forget([Path(path) for path in self.paths])

    def _written(self, path: str) -> int:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(descriptor, self.content)
        return descriptor


def durable_count(files: int) -> int:
    """How many files of a worker's are created durably."""
    return min(files, max(_DURABLE_LEAST, min(_DURABLE_MOST, files // _DURABLE_SHARE)))


def main(argv: Sequence[str]) -> int:
    parser = ArgumentParser(prog="fleetmark-probe small_files")
    parser.add_argument("--files", type=int, required=True, help="of each worker")
    parser.add_argument("--bytes", type=int, required=True, help="of each file")
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--forget", choices=("files", "all"), default="files")
    asked = parser.parse_args(argv)
    try:
        print(json.dumps(measured(Path.cwd(), asked.workers, asked.files, asked.bytes, asked.forget == "all")))
    except OSError as e:
        print(f"small_files: {e}", file=sys.stderr)
        return 1
    return 0


def measured(folder: Path, workers: int, files: int, size_bytes: int, forget_all: bool) -> dict[str, Any]:
    """Every phase once, in a directory of our own, as the document says it.

    Raises:
        OSError: the disk or its inodes are full, or a file is not what it was written as.
    """
    content = random.Random(_SEED).randbytes(size_bytes)  # noqa: S311
    crew = _Crew([_Files(folder / f"worker-{number:03}", files, content) for number in range(workers)])
    phases: list[Mapping[str, Any]] = []
    try:
        phases += [crew.phase("create_durable"), crew.phase("create")]
        cache = _forgotten(crew, forget_all)
        phases += [{**crew.phase(name), "cache": cache} for name in _AFTER_FORGETTING[cache]]
        phases += [{**crew.phase(name), "cache": "warm"} for name in ("list", "stat", "read")]
        phases += [crew.phase("rename"), crew.phase("unlink")]
    finally:
        crew.dismiss()
    return {"probe": "small_files", "workers": workers, "files": files, "size_bytes": size_bytes, "phases": phases}


def _forgotten(crew: "_Crew", forget_all: bool) -> str:
    """`cold`: the kernel has forgotten what it can; `data_cold`: the bytes of these files; `warm`: it kept those.

    Nothing is looked at after all of it is forgotten: that would bring names and inodes back.
    """
    if not all(crew.do("forget")):
        return "warm"
    return "cold" if forget_all and page_cache.drop_all() else "data_cold"


class _Crew:
    """The workers: processes that were forked, each with a pipe over which it is told what to do."""

    def __init__(self, files: Sequence[_Files]) -> None:
        context = get_context("fork")
        self._pipes: list[Connection] = []
        self._processes = []
        self._files = files
        for each in files:
            each.folder.mkdir()
            ours, theirs = context.Pipe()
            worker = context.Process(target=_work, args=(each, theirs), daemon=True)
            worker.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(worker)

    def do(self, what: str) -> list[Any]:
        """What every worker answers. Raises: OSError: the first that a worker met."""
        for pipe in self._pipes:
            pipe.send(what)
        try:
            answers = [pipe.recv() for pipe in self._pipes]
        except EOFError as e:
            raise OSError(f"a worker ended while it was to {what}") from e
        if failed := next((answer for answer in answers if isinstance(answer, OSError)), None):
            raise failed
        return answers

    def phase(self, name: str) -> dict[str, Any]:
        spans: list[_Span] = self.do(name)
        took = sorted(each for span in spans for each in span[2])
        durable, others = (
            sum(counts) for counts in zip(*((len(f.durable), f.count) for f in self._files), strict=True)
        )
        return {
            "phase": name,
            "files": {"create_durable": durable, "list": durable + others}.get(name, others),
            "seconds": max(span[1] for span in spans) - min(span[0] for span in spans),
            **({"latencies_s": took} if took else {}),
        }

    def dismiss(self) -> None:
        for pipe in self._pipes:
            with suppress(OSError):  # that worker has ended
                pipe.send(None)
        for worker in self._processes:
            worker.join()


def _work(files: _Files, pipe: Connection) -> None:
    """A worker's life, until it is dismissed; it ends with its parent."""
    process.die_with_parent()
    while what := pipe.recv():
        try:
            pipe.send(files.forget() if what == "forget" else _span(files, _ACTS[what]))
        except OSError as e:
            pipe.send(e)


def _span(files: _Files, act: Callable[[_Files], list[float] | None]) -> _Span:
    began = time.monotonic()
    took = act(files)
    return began, time.monotonic(), took or []


_ACTS: Mapping[str, Callable[[_Files], list[float] | None]] = {
    "create_durable": _Files.create_durable,
    "create": _Files.create,
    "list": _Files.scan,
    "stat": _Files.stat,
    "read": _Files.read,
    "rename": _Files.rename,
    "unlink": _Files.unlink,
}
