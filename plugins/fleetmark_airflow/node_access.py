"""What a node may ask of the edge API: its own work, signed with its own key.

The provider's checks do not suffice. With a shared secret every node can sign for everybody; a `[edge] jwt_verifier` is
given the claims alone, neither the key that signed them nor the request's body, so that a node could sign another's
name, or ask for another's queue. This stands in their place where `[fleetmark] node_keys` is set. Where it could not be
put there, the provider asks for the shared secret, which no node has.

The pages of that API let whoever may see them shut workers down, too. Here that takes somebody who may change pools.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import jwt
from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.core_api.security import bearer_scheme, get_user
from airflow.configuration import conf
from airflow.providers.edge3.worker_api.auth import jwt_token_authorization_rest
from fastapi import Depends, HTTPException, Request, status
from fastapi.security import HTTPAuthorizationCredentials
from starlette.concurrency import run_in_threadpool

from fleetmark_airflow import credentials, routing
from pipelines import settings
from pipelines.errors import FleetmarkError, NodeRefused

if TYPE_CHECKING:
    from fastapi import FastAPI

log = logging.getLogger(__name__)

_PREFIX = "/edge_worker/v1/"
_OF_WORKER = frozenset({"register", "set_state", "fetch"})
_OF_TASK = frozenset({"state", "logfile_path", "push_logs"})


def guard(app: "FastAPI") -> None:
    """Have the edge API's app ask here and no longer the provider."""
    app.dependency_overrides |= {jwt_token_authorization_rest: check, get_user: person}


async def person(
    request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer_scheme)]
) -> BaseUser:
    """Called by FastAPI for each request of somebody at the workers' pages."""
    user = await get_user(request, None, given)
    if request.method != "GET" and not get_auth_manager().is_authorized_pool(method="PUT", user=user):
        raise HTTPException(status.HTTP_403_FORBIDDEN, "workers are changed by those who may change pools")
    return user


async def check(request: Request) -> None:
    """Called by FastAPI before each request of a worker. A worker that is refused ends: 403 is for its own doing."""
    try:
        await _check(request)
    except (jwt.InvalidTokenError, NodeRefused, ValueError) as e:
        log.warning("refused: %s %s: %s", request.method, request.url.path, e)
        raise HTTPException(status.HTTP_403_FORBIDDEN, str(e)) from e
    except (FleetmarkError, OSError) as e:
        log.error("%s", e)
        raise HTTPException(status.HTTP_503_SERVICE_UNAVAILABLE, "see the api-server's log") from e


async def _check(request: Request) -> None:
    node = _signed_by(request)
    place = routing.places(settings.load().inventory).get(node)
    if place is None:
        raise NodeRefused(node, "it is not in the inventory")
    wanted = request.scope["endpoint"].__name__
    if wanted in _OF_WORKER:
        if (worker := request.path_params["worker_name"]) != node:
            raise NodeRefused(node, f"it is not {worker}")
        if (queues := (await _body(request)).get("queues")) != [place.queue]:
            raise NodeRefused(node, f"its queue is {place.queue}, not {queues}")
    elif wanted in _OF_TASK:
        given = request.query_params if request.method == "GET" else await _body(request)
        if not await run_in_threadpool(_is_in, place.queue, request.path_params, given.get("task_instance_id")):
            raise NodeRefused(node, "the task is none of its own")
    else:
        raise NodeRefused(node, "no node needs that")


def _signed_by(request: Request) -> str:
    """The node whose key signed the request's token, which is good for this path alone.

    Raises:
        InvalidTokenError: nobody's did, or it has expired.
    """
    token = request.headers.get("authorization", "")
    key = credentials.load(Path(conf.get("fleetmark", "node_keys"))).get(
        jwt.get_unverified_header(token).get("kid", "")
    )
    if key is None:
        raise jwt.InvalidTokenError("its key is not trusted")
    claims = jwt.decode(
        token,
        key.public,
        algorithms=[key.alg],
        audience="api",
        leeway=conf.getint("api_auth", "jwt_leeway"),
        options={"require": ["exp", "iat", "nbf", "method"]},
    )
    if claims["method"] != request.url.path.partition(_PREFIX)[2]:
        raise jwt.InvalidTokenError("its token is for another path")
    return key.node


async def _body(request: Request) -> dict[str, Any]:
    body = await request.json() if await request.body() else {}
    if not isinstance(body, dict):
        raise ValueError("its body is no JSON object")
    return body


def _is_in(queue: str, path: dict[str, Any], given: object) -> bool:
    """Whether the task that the path names, and no other is given, was sent to that queue."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import select

    of_task = [getattr(TaskInstance, name) == path[name] for name in ("dag_id", "task_id", "run_id")]
    query = select(TaskInstance.queue, TaskInstance.id).where(
        *of_task, TaskInstance.map_index == int(path["map_index"])
    )
    with create_session() as session:
        found = session.execute(query).one_or_none()
    return found is not None and found.queue == queue and (given is None or str(given) == str(found.id))
