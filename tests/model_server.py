"""An OpenAI-compatible server of the tests: it streams words over real HTTP, and observes latencies that are known.

It waits for nothing: what it observes in its histograms is the next of `LATENCIES`, whatever it really took.
"""

import asyncio
import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import web
from prometheus_client import CollectorRegistry, Histogram, generate_latest

LATENCIES = tuple(0.05 * (number + 1) for number in range(20))  # 0.05 .. 1 s, each as often as the others
BOUNDS = (0.1, 0.25, 0.5, 0.75, 1.0, 2.5)


@dataclass
class ModelServer:
    """How it answers. `begins_anew_at`: its counts start from zero before it answers that request, from 1."""

    model: str = "test/model"
    flavour: str = "vllm"
    status: int = 200
    has_metrics: bool = True
    sends_usage: bool = True
    says: str = "content"  # what it calls the words of an answer
    is_endless: bool = False  # after the first request its answers have no end
    breaks_off_at: int | None = None  # and at every later request
    begins_anew_at: int | None = None
    of_others: int = 0  # requests of somebody else for each of ours
    key: str | None = None
    url: str = ""
    asked: list[dict[str, object]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._latencies = itertools.cycle(LATENCIES)
        self._begin()

    def _begin(self) -> None:
        self._registry = CollectorRegistry()
        self._histograms = [
            Histogram(f"{self.flavour}:{name}", name, ["model_name"], registry=self._registry, buckets=BOUNDS)
            for name in ("e2e_request_latency_seconds", "time_to_first_token_seconds", "inter_token_latency_seconds")
        ]

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": self.model, "object": "model"}]})

    async def _metrics(self, _: web.Request) -> web.Response:
        if not self.has_metrics:
            return web.Response(status=404)
        return web.Response(body=generate_latest(self._registry), content_type="text/plain")

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": {"message": "wrong key"}}, status=401)
        if self.status != 200:
            return web.json_response({"error": {"message": "as the test wants it"}}, status=self.status)
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        endless = self.is_endless and len(self.asked) > 1
        for number in itertools.count() if endless else range(body["max_tokens"]):
            await _send(answer, {"choices": [{"index": 0, "delta": {self.says: f" {number}"}}]})
            if self.breaks_off_at is not None and len(self.asked) >= self.breaks_off_at:
                assert request.transport is not None
                request.transport.close()
                return answer
        if self.sends_usage:
            usage = {"prompt_tokens": 7, "completion_tokens": body["max_tokens"], "total_tokens": 7}
            await _send(answer, {"choices": [], "usage": usage})
        await answer.write(b"data: [DONE]\n\n")
        self._observe()
        await answer.write_eof()
        return answer

    def _observe(self) -> None:
        if len(self.asked) == self.begins_anew_at:
            self._begin()
        for _ in range(1 + self.of_others):
            latency = next(self._latencies)
            for histogram, share in zip(self._histograms, (1.0, 0.5, 0.1), strict=True):
                histogram.labels(self.model).observe(latency * share)

    def application(self) -> web.Application:
        application = web.Application()
        application.router.add_get("/v1/models", self._models)
        application.router.add_get("/metrics", self._metrics)
        application.router.add_post("/v1/chat/completions", self._answer)
        return application


async def _send(answer: web.StreamResponse, event: object) -> None:
    await answer.write(b"data: " + json.dumps(event).encode() + b"\n\n")


@contextmanager
def running(server: ModelServer) -> Iterator[ModelServer]:
    """The server on a free port of this machine, until the block ends."""
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(server.application())

    async def begin() -> int:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return int(runner.addresses[0][1])

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        port = asyncio.run_coroutine_threadsafe(begin(), loop).result(timeout=30)
        server.url = f"http://127.0.0.1:{port}"
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(timeout=60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
