"""How far a long transfer is: bytes, pieces, rate and time left, a line every few seconds."""

import threading
import time
from collections.abc import Callable

_EVERY_S = 2.0


class Meter:
    """Counts what several threads have done and says so now and then."""

    def __init__(self, say: Callable[[str], None], total_bytes: int, total: int, noun: str) -> None:
        self._say = say
        self._total_bytes = total_bytes
        self._total = total
        self._noun = noun
        self._lock = threading.Lock()
        self._began = self._said_at = time.monotonic()
        self._bytes = self._spared_bytes = self._count = 0

    def add(self, size_bytes: int, count: int = 1, spared: bool = False) -> None:
        """`spared`: it was there already, and says nothing about the rate."""
        with self._lock:
            self._bytes += size_bytes
            self._count += count
            self._spared_bytes += size_bytes if spared else 0
            now = time.monotonic()
            is_due = now - self._said_at >= _EVERY_S
            if is_due:
                self._said_at = now
        if is_due:
            self._say(self.line())

    def line(self) -> str:
        elapsed_s = max(time.monotonic() - self._began, 1e-9)
        rate = (self._bytes - self._spared_bytes) / elapsed_s
        text = (
            f"{size(self._bytes)} of {size(self._total_bytes)}, {self._count} of {self._total} {self._noun}, "
            f"{size(rate)}/s"
        )
        left_s = (self._total_bytes - self._bytes) / rate if rate else None
        return text if not left_s or left_s < 0 else f"{text}, about {left_s:.0f} s left"


def size(size_bytes: float) -> str:
    """A number of bytes for people: `1.23 GB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size_bytes < 1000 or unit == "TB":
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    raise AssertionError("a terabyte ends the loop")
