"""A limit on how many bytes are read in a second, so that a check at night leaves the store to those who work."""

import threading
import time


class Pace:
    """Lets so many bytes pass in a second, by the monotonic clock, over all threads; None: as many as there are."""

    def __init__(self, bytes_per_s: float | None) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_at = time.monotonic()
        self._lock = threading.Lock()

    def take(self, size_bytes: int) -> None:
        """Wait until these bytes may be read. Time that nobody used is not saved up."""
        if self._bytes_per_s is None:
            return
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + size_bytes / self._bytes_per_s
            free_at = self._free_at
        time.sleep(max(0.0, free_at - time.monotonic()))
