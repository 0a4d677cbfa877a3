"""What the api-server lets in at a time."""

import asyncio
from typing import Any

from fleetmark_airflow.admission import Admission

PATH = "/edge_worker/v1/jobs/fetch/node-a"


class Server:
    """Answers when it is told to, and knows what it works on."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.go_on = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.bodies.append((await receive())["body"])
        await self.go_on.wait()
        await send(scope["path"])


async def ask(app: Admission, path: str, *parts: bytes, whole: bool = True, root: str = "") -> None:
    """Send a request; one that is not whole keeps the server waiting for the rest of it."""
    left = list(parts)

    async def receive() -> dict[str, Any]:
        if left:
            body = left.pop(0)
            return {"type": "http.request", "body": body, "more_body": bool(left) or not whole}
        await asyncio.Event().wait()
        raise AssertionError

    async def send(_: Any) -> None:
        pass

    await app({"type": "http", "path": path, "root_path": root}, receive, send)


async def settle() -> None:
    """Until nothing goes on any more."""
    for _ in range(50):
        await asyncio.sleep(0)


def test_no_more_requests_of_workers_are_worked_on_than_there_are_places_and_all_are_answered() -> None:
    async def crowd() -> tuple[int, int]:
        server = Server()
        app = Admission(server, places=6)
        asked = [asyncio.create_task(ask(app, PATH, b"body")) for _ in range(10)]
        await settle()
        at_once = len(server.bodies)
        server.go_on.set()
        await asyncio.gather(*asked)
        return at_once, len(server.bodies)

    assert asyncio.run(crowd()) == (3, 10)


def test_a_request_of_which_only_a_part_has_come_keeps_no_place() -> None:
    async def crowd() -> list[bytes]:
        server = Server()
        server.go_on.set()
        app = Admission(server, places=2)
        cut_off = asyncio.create_task(ask(app, PATH, b"half of", whole=False))
        await settle()
        await ask(app, PATH, b"a body ", b"in parts")
        cut_off.cancel()
        return server.bodies

    assert asyncio.run(crowd()) == [b"a body in parts"]


def test_requests_of_tasks_and_of_users_do_not_wait_for_those_of_workers() -> None:
    async def crowd() -> list[bytes]:
        server = Server()
        app = Admission(server, places=2)
        asked = [asyncio.create_task(ask(app, f"/bench{PATH}", b"worker", root="/bench")) for _ in range(3)]
        await settle()
        for path, body in (("execution/task-instances/1/heartbeat", b"task"), ("api/v2/dags", b"user")):
            asked.append(asyncio.create_task(ask(app, f"/bench/{path}", body, root="/bench")))
        await settle()
        server.go_on.set()
        at_once = list(server.bodies)
        await asyncio.gather(*asked)
        return at_once

    assert asyncio.run(crowd()) == [b"worker", b"task", b"user"]


def test_a_place_is_free_again_after_a_request_that_failed() -> None:
    async def crowd() -> list[bytes]:
        server = Server()
        server.go_on.set()

        async def failing(scope: Any, receive: Any, send: Any) -> None:
            if scope["path"].endswith("/fails"):
                raise ValueError(scope["path"])
            await server(scope, receive, send)

        app = Admission(failing, places=2)
        failed = await asyncio.gather(ask(app, f"{PATH}/fails", b""), return_exceptions=True)
        assert isinstance(failed[0], ValueError)
        await ask(app, PATH, b"next")
        return server.bodies

    assert asyncio.run(crowd()) == [b"next"]
