"""Python's own web server over a folder, which counts what it is asked for."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The URL of the folder, and the lines of the requests so far, `GET /a.bin`."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, *_: Any) -> None:
            asked.append(f"{self.command} {self.path}")

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
            """Errors are what the tests look at."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()
            thread.join()
