"""A network that fails: a proxy before a server that cuts connections after some bytes, in either direction."""

import random
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.servers import S3, free_port

_LONGEST_BYTES = 200_000  # that pass before a cut


@contextmanager
def cutting(target: S3, seed: int, cuts: int, one_in: int = 2, delay_s: float = 0.0) -> Iterator[S3]:
    """The server behind a proxy that cuts about one in so many connections, until it has made that many cuts.

    A cut is a reset after a random number of bytes: in the middle of a request, of an answer, or between the two.
    Everything that passes is delayed.
    """
    port, stop = free_port(), threading.Event()
    host, _, target_port = target.endpoint.removeprefix("http://").partition(":")
    proxy = _Proxy((host, int(target_port)), random.Random(seed), cuts, one_in, delay_s, stop)
    with socket.create_server(("127.0.0.1", port)) as listener:
        accepting = threading.Thread(target=proxy.accept, args=(listener,))
        accepting.start()
        try:
            yield S3(f"http://127.0.0.1:{port}", target.access_key, target.secret_key)
        finally:
            stop.set()
            accepting.join()
    assert proxy.cuts_left < cuts, "nothing was cut: the test has proved nothing"


class _Proxy:
    def __init__(
        self,
        target: tuple[str, int],
        chance: random.Random,
        cuts: int,
        one_in: int,
        delay_s: float,
        stop: threading.Event,
    ) -> None:
        self._target = target
        self._chance = chance
        self.cuts_left = cuts
        self._one_in = one_in
        self._delay_s = delay_s
        self._stop = stop

    def accept(self, listener: socket.socket) -> None:
        listener.settimeout(0.05)
        passing: list[threading.Thread] = []
        while not self._stop.is_set():
            with suppress(TimeoutError):
                client, _ = listener.accept()
                is_cut = self.cuts_left > 0 and self._chance.randrange(self._one_in) == 0
                most = int(_LONGEST_BYTES ** self._chance.random()) if is_cut else None
                self.cuts_left -= is_cut
                passing.append(threading.Thread(target=self._pass_on, args=(client, most)))
                passing[-1].start()
        for thread in passing:
            thread.join()

    def _pass_on(self, client: socket.socket, most: int | None) -> None:
        with suppress(OSError), client, socket.create_connection(self._target) as server:
            other, passed = {client: server, server: client}, 0
            while not self._stop.is_set():
                for ready in select.select([client, server], [], [], 0.05)[0]:
                    data = ready.recv(65536)
                    if not data or self._stop.wait(self._delay_s):
                        return
                    other[ready].sendall(data if most is None else data[: most - passed])
                    passed += len(data)
                    if most is not None and passed >= most:
                        _reset(client)
                        return


def _reset(connection: socket.socket) -> None:
    """Close it with RST, as a crash does: SO_LINGER of no time, socket(7)."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
