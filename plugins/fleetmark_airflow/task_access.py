"""What a task that runs on a node may ask of the execution API: what is its own, and no more.

Airflow gives each task a token, with which it may read every connection and variable, write any run's XComs and start
any DAG: tasks of a deployment trust each other. A node's tasks need none of that, and whoever has taken a node has
their tokens. So tasks of another queue than the default one, which is the control plane's, are held to their own task
instance, to reading what their own run returned, and to writing what they return themselves.
"""

import json
import logging
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

import jwt
from airflow.configuration import conf
from fastapi.security.utils import get_authorization_scheme_param
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, QueryParams
from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

_PREFIX = "/execution/"
_OWN = (("task-instances",), ("store", "ti"), ("task-reschedules",))  # Airflow compares the id that follows itself
_REMEMBERED = 4096  # tasks at a time


class Task(NamedTuple):
    """The task that a token is for."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    queue: str | None


class TaskAccess:
    """Refuses what is none of a node's, before Airflow looks at it; Airflow's own checks come after."""

    def __init__(self, app: "ASGIApp") -> None:
        self.app = app
        self.everywhere = conf.get("operators", "default_queue")
        self.known: dict[str, Task] = {}

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or not path.startswith(_PREFIX):
            await self.app(scope, receive, send)
            return
        _, token = get_authorization_scheme_param(Headers(scope=scope).get("authorization"))  # as Airflow reads it
        who = _subject(token)
        task = await self._task(who)
        parts = tuple(path.removeprefix(_PREFIX).split("/"))
        if who and (task is None or task.queue != self.everywhere):
            if not is_own(scope["method"], parts, QueryParams(scope["query_string"]), who, task):
                await self._refuse(scope, receive, send, task)
                return
            if parts[0] == "task-instances" and parts[2:] == ("state",):
                body = await _whole(receive)
                if not ends_itself(body):
                    await self._refuse(scope, receive, send, task)
                    return
                receive = _again(body, receive)
        await self.app(scope, receive, send)

    async def _task(self, who: str) -> Task | None:
        if who and who not in self.known and (found := await run_in_threadpool(_find, who)):
            while len(self.known) >= _REMEMBERED:
                del self.known[next(iter(self.known))]
            self.known[who] = found
        return self.known.get(who)

    async def _refuse(self, scope: "Scope", receive: "Receive", send: "Send", task: Task | None) -> None:
        log.warning("refused: %s %r to %s", scope["method"], scope["path"], task)
        await JSONResponse({"detail": "a task of a node has no use for it"}, 403)(scope, receive, send)


def is_own(method: str, parts: tuple[str, ...], query: QueryParams, who: str, task: Task | None) -> bool:
    """Whether the path of the execution API, in parts, is about the task instance `who` alone, or its run's XComs."""
    if parts[0] == "health" or any(parts[: len(own)] == own and parts[len(own) :][:1] == (who,) for own in _OWN):
        return True
    if task is None or parts[:3] != ("xcoms", task.dag_id, task.run_id):
        return False
    if method in {"GET", "HEAD"}:
        return True
    return parts[3:4] == (task.task_id,) and query.get("map_index", "-1") == str(task.map_index)


def ends_itself(body: bytes) -> bool:
    """Whether a change of state has nobody else do something: a trigger runs in the triggerer, an asset starts DAGs."""
    try:
        change = json.loads(body)
    except ValueError:
        return False
    if not isinstance(change, dict) or change.get("state") == "deferred":
        return False
    return not change.get("task_outlets") and not change.get("outlet_events")


def _subject(token: str) -> str:
    """Whom the token names, which Airflow then verifies; empty where it cannot be one of Airflow's."""
    try:
        claims = jwt.decode(token, options={"verify_signature": False})
        return str(UUID(claims["sub"]))
    except (jwt.InvalidTokenError, KeyError, ValueError):
        return ""


def _find(who: str) -> Task | None:
    from airflow.models.taskinstance import TaskInstance as Ti
    from airflow.utils.session import create_session
    from sqlalchemy import select

    query = select(Ti.dag_id, Ti.run_id, Ti.task_id, Ti.map_index, Ti.queue).where(Ti.id == UUID(who))
    with create_session() as session:
        found = session.execute(query).one_or_none()
    return Task(*found) if found else None


async def _whole(receive: "Receive") -> bytes:
    parts: list[bytes] = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body", False):
            return b"".join(parts)


def _again(body: bytes, receive: "Receive") -> "Receive":
    given = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> "Message":
        return given.pop() if given else await receive()

    return again
