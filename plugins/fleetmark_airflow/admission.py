"""How many requests of workers and tasks the api-server works on at a time: fewer than it has database connections.

A request takes a connection in one of 40 threads, gives the thread back, and needs another to end. When every thread
has a request that waits for a connection, and every connection a request that waits for a thread, none goes on until
the pool's time-out; 300 nodes do that to Airflow 3.3.2. Here the others wait before they take either.

Tasks and workers have half of the places each, so that no crowd of workers that ask for work keeps a task from its
heartbeat. A user's requests go past.
"""

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_PLACES = 12  # Airflow's own limit of connections is 15
_LIMITED = ("/execution/", "/edge_worker/")  # of tasks, of workers


class Admission:
    """Lets `[fleetmark] requests_at_once` of them in, in the order in which they came."""

    def __init__(self, app: "ASGIApp", places: int | None = None) -> None:
        from airflow.configuration import conf

        self.app = app
        of_each = (places or conf.getint("fleetmark", "requests_at_once", fallback=_PLACES)) // len(_LIMITED)
        self.places = {prefix: asyncio.Semaphore(max(1, of_each)) for prefix in _LIMITED}

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        places = self._places_for(scope)
        if places is None:
            await self.app(scope, receive, send)
            return
        body = [await _whole(receive)]  # first: a node that is cut off while it sends must not keep a place

        async def again() -> "Message":
            return body.pop() if body else await receive()

        async with places:
            await self.app(scope, again, send)

    def _places_for(self, scope: "Scope") -> asyncio.Semaphore | None:
        if scope["type"] != "http":
            return None
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        return next((places for prefix, places in self.places.items() if path.startswith(prefix)), None)


async def _whole(receive: "Receive") -> "Message":
    """The request's body as one message, or that its sender has gone."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return message
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return {"type": "http.request", "body": b"".join(parts), "more_body": False}
