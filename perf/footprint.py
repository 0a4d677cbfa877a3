"""What groups of processes take, of processor time and memory, while something goes on."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil

_EVERY_S = 5.0  # to read the memory of a hundred processes takes 0.1 s


@dataclass(frozen=True)
class Group:
    """A process, all that came from it, or both."""

    pid: int
    itself: bool = True
    children: bool = True

    def processes(self) -> list[psutil.Process]:
        root = psutil.Process(self.pid)
        return [root] * self.itself + (root.children(recursive=True) if self.children else [])

    def cpu_s(self) -> float:
        """Of its processes, and of those that have ended and that they waited for."""
        total = 0.0
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
                if self.children:
                    total += times.children_user + times.children_system
        return total

    def pss_bytes(self) -> int:
        """Memory that processes share is divided among them."""
        total = 0
        for process in self.processes():
            with suppress(psutil.Error):
                total += process.memory_full_info().pss
        return total


@dataclass
class Taken:
    cpu_s: float = 0.0
    pss_bytes: int = 0  # the most that was seen


@contextmanager
def watched(groups: Mapping[str, Group]) -> Iterator[dict[str, Taken]]:
    """What each group takes during the block; complete when it has ended."""
    taken = {name: Taken() for name in groups}
    begun = {name: group.cpu_s() for name, group in groups.items()}
    over = threading.Event()

    def look() -> None:
        for name, group in groups.items():
            taken[name].pss_bytes = max(taken[name].pss_bytes, group.pss_bytes())

    def looking() -> None:
        while not over.wait(_EVERY_S):
            look()

    thread = threading.Thread(target=looking)
    thread.start()
    try:
        yield taken
    finally:
        over.set()
        thread.join()
        look()
        for name, group in groups.items():
            taken[name].cpu_s = group.cpu_s() - begun[name]
