"""moto's S3 server on a port, with the one thing it lacks: of conditional writes that come at once, one wins.

Its own check of If-None-Match and its write are two steps, between which another thread's write may come.
"""

import sys
import threading
from collections.abc import Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple


class OneConditionalWriteAtATime:
    """The application; whole requests with If-None-Match wait for each other."""

    def __init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if "HTTP_IF_NONE_MATCH" not in environ:
            return self._answer(environ, start_response)
        with self._lock:
            return self._answer(environ, start_response)

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        answer: Iterable[bytes] = self._moto(environ, start_response)
        return answer


if __name__ == "__main__":
    run_simple(
        "127.0.0.1", int(sys.argv[1]), OneConditionalWriteAtATime(), threaded=True, request_handler=MotoRequestHandler
    )
