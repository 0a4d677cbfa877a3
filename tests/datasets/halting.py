"""A network between a stager and its store that fails when a range is read, and lets everything else pass."""

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.servers import S3, free_port


@contextmanager
def cutting_answers(target: S3, cuts: int, after_bytes: int) -> Iterator[S3]:
    """The server behind a proxy that resets the first connections on which a range is read, in the answer's middle."""
    with _proxy(target, _Cuts(cuts, after_bytes)) as proxied:
        yield proxied


@contextmanager
def slow(target: S3, bytes_at_once: int, pause_s: float) -> Iterator[S3]:
    """The server behind a proxy that passes the answers on in small pieces, with pauses."""
    with _proxy(target, _Slow(bytes_at_once, pause_s)) as proxied:
        yield proxied


@contextmanager
def gone_at_the_first_range(target: S3) -> Iterator[S3]:
    """The server behind a proxy that takes no more connections, and drops those it has, when a range is read."""
    with _proxy(target, _Gone()) as proxied:
        yield proxied


class _Pass:
    """How answers are passed on to the client. False: the connection is to be reset."""

    is_listening = True

    def range_asked(self) -> bool:
        return True

    def answer(self, client: socket.socket, data: bytes, so_far: int) -> bool:
        del so_far
        client.sendall(data)
        return True


class _Cuts(_Pass):
    def __init__(self, cuts: int, after_bytes: int) -> None:
        self._left = cuts
        self._after_bytes = after_bytes
        self._lock = threading.Lock()

    def answer(self, client: socket.socket, data: bytes, so_far: int) -> bool:
        if so_far + len(data) > self._after_bytes:
            with self._lock:
                is_cut = self._left > 0
                self._left -= is_cut
            if is_cut:
                client.sendall(data[: self._after_bytes - so_far])
                return False
        client.sendall(data)
        return True


class _Slow(_Pass):
    def __init__(self, bytes_at_once: int, pause_s: float) -> None:
        self._bytes_at_once = bytes_at_once
        self._pause = pause_s
        self._never = threading.Event()

    def answer(self, client: socket.socket, data: bytes, so_far: int) -> bool:
        del so_far
        for start in range(0, len(data), self._bytes_at_once):
            client.sendall(data[start : start + self._bytes_at_once])
            self._never.wait(self._pause)
        return True


class _Gone(_Pass):
    def range_asked(self) -> bool:
        self.is_listening = False
        return False


@contextmanager
def _proxy(target: S3, how: _Pass) -> Iterator[S3]:
    port, stop = free_port(), threading.Event()
    host, _, target_port = target.endpoint.removeprefix("http://").partition(":")
    accepting = threading.Thread(target=_accept, args=(port, (host, int(target_port)), how, stop))
    accepting.start()
    try:
        yield S3(f"http://127.0.0.1:{port}", target.access_key, target.secret_key)
    finally:
        stop.set()
        accepting.join()


def _accept(port: int, target: tuple[str, int], how: _Pass, stop: threading.Event) -> None:
    passing: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.settimeout(0.05)
        while not stop.is_set() and how.is_listening:
            with suppress(TimeoutError):
                client, _ = listener.accept()
                passing.append(threading.Thread(target=_pass_on, args=(client, target, how, stop)))
                passing[-1].start()
    for thread in passing:
        thread.join()


def _pass_on(client: socket.socket, target: tuple[str, int], how: _Pass, stop: threading.Event) -> None:
    with suppress(OSError), client, socket.create_connection(target) as server:
        is_range, so_far = False, 0
        while not stop.is_set() and how.is_listening:
            for ready in select.select([client, server], [], [], 0.05)[0]:
                data = ready.recv(65536)
                if not data:
                    return
                if ready is client:
                    is_range, so_far = data.startswith(b"GET ") and b"\r\nrange:" in data.lower(), 0
                    if is_range and not how.range_asked():
                        _reset(client)
                        return
                    server.sendall(data)
                    continue
                if not is_range:
                    client.sendall(data)
                elif not how.answer(client, data, so_far):
                    _reset(client)
                    return
                so_far += len(data)


def _reset(connection: socket.socket) -> None:
    """Close it with RST, as a crash does: SO_LINGER of no time, socket(7)."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
