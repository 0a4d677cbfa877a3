"""Load on an OpenAI-compatible server: `serving --url=URL --metrics-url=URL --steps=1,4 ...`, see `--help`.

In each step so many clients as its concurrency says ask one request after the other, until all requests are made or the
step's time is over. The server's metrics are read before and after it. OPENAI_API_KEY, where it is set, is sent along.
"""

import asyncio
import json
import os
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import aiohttp

from pipelines.errors import UnknownOutput
from pipelines.families import prometheus, serving
from pipelines.families.probe_tool import CONFIG, UNAVAILABLE
from pipelines.families.prometheus import Snapshot
from pipelines.families.serving import Prompt

_CONNECT_S = 10.0
_METRICS_BYTES = 16 * 2**20
_METRICS_S = 10.0
_SETTLED_WITHIN_S = 2.0  # a server counts a request a moment after it has answered it
_ASKED_EACH_S = 0.05
_CHUNK_BYTES = 2**16
_ANSWER_BYTES = 2**20  # of a stream, beside what its tokens take
_TOKEN_BYTES = 2**12  # that the chunk of one token takes at most: names, ids, usage
_ERROR_LENGTH = 200
_NOT_A_STREAM = (ValueError, AttributeError, TypeError, LookupError, RecursionError)  # what its JSON is not
_WRONG = {400, 401, 403, 404, 405, 422}  # what is asked is refused, and will be
_USAGE = {"prompt_tokens": "prompt_tokens", "tokens": "completion_tokens"}  # ours, and what servers call them
_SAYS = ("content", "reasoning", "reasoning_content")  # what a chat sends: text, or thoughts by either of their names


class _Refused(Exception):
    """Nothing can be measured; with the probe's exit status."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class _Server:
    session: aiohttp.ClientSession
    asked: Namespace
    model: str

    def body(self, prompt: Prompt) -> Mapping[str, Any]:
        said: dict[str, Any] = (
            {"messages": [{"role": "user", "content": prompt.text}]}
            if self.asked.api == "chat"
            else {"prompt": prompt.text}
        )
        options = {"ignore_eos": True} if self.asked.ignore_eos else {}
        return {
            **said,
            **options,
            "model": self.model,
            "max_tokens": prompt.most_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    @property
    def url(self) -> str:
        return f"{self.asked.url}/v1/{'chat/completions' if self.asked.api == 'chat' else 'completions'}"


def main(argv: Sequence[str]) -> int:
    parser = ArgumentParser(prog="fleetmark-probe serving")
    parser.add_argument("--endpoint", required=True, help="what the inventory calls the server")
    parser.add_argument("--url", default="", help="of the server, without /v1")
    parser.add_argument("--metrics-url", default="", help="where its metrics are; empty: nowhere")
    parser.add_argument("--model", default="", help="default: the first that the server lists")
    parser.add_argument("--api", choices=("chat", "completions"), default="chat")
    parser.add_argument("--mix", choices=tuple(serving.MIXES), default="mixed")
    parser.add_argument("--steps", type=lambda text: [int(each) for each in text.split(",")], required=True)
    parser.add_argument("--requests", type=int, required=True, help="of each step, at most")
    parser.add_argument("--step-s", type=float, required=True, help="after so many seconds a step asks for no more")
    parser.add_argument("--request-s", type=float, required=True, help="that one request may take")
    parser.add_argument("--ignore-eos", type=int, default=0, help="1: answers are as long as they may be")
    asked = parser.parse_args(argv)
    try:
        print(json.dumps(asyncio.run(_measured(asked)), allow_nan=False))
    except _Refused as e:
        print(f"serving: {e}", file=sys.stderr)
        return e.status
    return 0


async def _measured(asked: Namespace) -> dict[str, Any]:
    if not asked.url:
        raise _Refused(CONFIG, f"the inventory has no endpoint {asked.endpoint!r} of this node")
    key = os.environ.get("OPENAI_API_KEY")
    limits = aiohttp.ClientTimeout(total=asked.request_s, sock_connect=min(_CONNECT_S, asked.request_s))
    # each request has a connection of its own: llama-server ends one after a stream, and the next request meets that
    pool = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(timeout=limits, connector=pool) as session:
        # only the server is told the key: its metrics may lie elsewhere
        server = _Server(session, asked, await _model(session, asked, _with(key)))
        problem = ""
        try:
            before = await _snapshot(server)
        except _Refused as e:
            before, problem = None, str(e)
        after = await _warm_up(server, key, before)
        if after is not None and serving.kind(after) is None:
            problem = f"{asked.metrics_url} has no histogram of a server that is known"
        steps = [await _step(server, key, number, not problem) for number in range(len(asked.steps))]
    return {"probe": serving.PROBE, "model": server.model, "metrics_problem": problem, "steps": steps}


def _with(key: str | None) -> Mapping[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


async def _model(session: aiohttp.ClientSession, asked: Namespace, headers: Mapping[str, str]) -> str:
    """The model that was asked for; or the first that the server has. Either way, the server answers."""
    url = f"{asked.url}/v1/models"
    try:
        async with session.get(url, headers=headers, allow_redirects=False) as answer:
            text = (await _bounded(answer, _METRICS_BYTES)).decode(errors="replace")
            status = answer.status
    except (aiohttp.ClientError, TimeoutError) as e:
        raise _Refused(UNAVAILABLE, f"endpoint {asked.endpoint} does not answer at {url}: {_said(e)}") from e
    if asked.model:
        return str(asked.model)
    if status != 200:
        raise _Refused(CONFIG if status in _WRONG else UNAVAILABLE, f"{url} answers with HTTP {status}")
    try:
        return str(json.loads(text)["data"][0]["id"])
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as e:
        raise _Refused(CONFIG, f"{url} lists no model; name one") from e


async def _warm_up(server: _Server, key: str | None, before: Snapshot | None) -> Snapshot | None:
    """One request, which is not counted: the first one loads and compiles what the others find ready.

    Returns the server's metrics after it: before their first request some servers have none.
    """
    prompt = next(serving.prompts(server.asked.mix, -1))
    done = await _request(server, key, prompt)
    if error := done.get("error"):
        wrong = any(error.startswith(f"HTTP {status}") for status in _WRONG)
        reason = f"endpoint {server.asked.endpoint} does not answer a request of model {server.model!r}: {error}"
        raise _Refused(CONFIG if wrong else UNAVAILABLE, reason)
    return None if before is None else await _settled(server, before, 1)


async def _step(server: _Server, key: str | None, number: int, has_metrics: bool) -> dict[str, Any]:
    asked = server.asked
    before = await _snapshot_or_none(server) if has_metrics else None
    todo = islice(serving.prompts(asked.mix, number), asked.requests)
    began, computed_s = time.monotonic(), time.process_time()
    clients = [_client(server, key, todo, began + asked.step_s) for _ in range(asked.steps[number])]
    done = [request for requests in await asyncio.gather(*clients) for request in requests]
    seconds, computed_s = time.monotonic() - began, time.process_time() - computed_s
    answered = sum(not request.get("error") for request in done)
    after = await _settled(server, before, answered) if before is not None else None
    return {
        "concurrency": asked.steps[number],
        "seconds": seconds,
        "client_busy": computed_s / seconds,
        "requests": done,
        "before": before.model_dump() if before and after else None,
        "after": after.model_dump() if before and after else None,
    }


async def _client(server: _Server, key: str | None, todo: Iterator[Prompt], until: float) -> list[dict[str, Any]]:
    """What one client was answered. The clients of a step take from the same prompts, each one at least."""
    done: list[dict[str, Any]] = []
    for prompt in todo:
        done.append(await _request(server, key, prompt))
        if time.monotonic() >= until:
            break
    return done


async def _request(server: _Server, key: str | None, prompt: Prompt) -> dict[str, Any]:
    seen: dict[str, Any] = {"words": prompt.words, "most_tokens": prompt.most_tokens}
    began = time.perf_counter()
    chunks = 0
    try:
        async with server.session.post(
            server.url, json=server.body(prompt), headers=_with(key), allow_redirects=False
        ) as answer:
            if answer.status != 200:
                said = (await answer.content.read(_CHUNK_BYTES)).decode(errors="replace")
                return {**seen, "error": f"HTTP {answer.status}: {' '.join(said.split())[:_ERROR_LENGTH]}"}
            ended = False
            async for event in _events(answer, _ANSWER_BYTES + prompt.most_tokens * _TOKEN_BYTES):
                ended = ended or event is None
                if _has_token(event):
                    chunks += 1
                    seen.setdefault("first_s", time.perf_counter() - began)
                if usage := (event or {}).get("usage"):
                    counts = {ours: usage.get(theirs) for ours, theirs in _USAGE.items()}
                    seen |= {ours: count for ours, count in counts.items() if isinstance(count, int) and count > 0}
    except (aiohttp.ClientError, TimeoutError, *_NOT_A_STREAM) as e:
        return {**seen, "error": _said(e)}
    if not chunks or not ended:
        return {**seen, "error": "the answer has no token" if ended else "the answer was cut off"}
    return {**seen, "chunks": chunks, "total_s": time.perf_counter() - began}


def _has_token(event: Any) -> bool:
    """A chat sends text or, where the model thinks first, its thoughts; a completion sends text.

    vLLM calls the thoughts `reasoning` since the end of 2025, and called them `reasoning_content` as others still do
    (https://github.com/vllm-project/vllm/pull/27752).
    """
    choices = (event or {}).get("choices")
    if not choices:
        return False
    delta = choices[0].get("delta") or {}
    return any(delta.get(name) for name in _SAYS) or bool(choices[0].get("text"))


async def _events(answer: aiohttp.ClientResponse, most_bytes: int) -> AsyncIterator[dict[str, Any] | None]:
    """The documents of a stream of server-sent events; None at its end, which is `[DONE]`.

    Raises: ValueError: it is longer than it may be, or no such stream.
    """
    left, kept = most_bytes, b""
    async for data in answer.content.iter_any():
        left -= len(data)
        if left < 0:
            raise ValueError(f"the answer has more than {most_bytes} B")
        *lines, kept = (kept + data).split(b"\n")
        for line in lines:
            text = line.strip()
            if text.startswith(b"data:"):
                body = text.removeprefix(b"data:").strip()
                yield None if body == b"[DONE]" else json.loads(body)


async def _snapshot(server: _Server) -> Snapshot | None:
    """The server's metrics; None where nobody said where they are. Raises: _Refused: they cannot be read."""
    url = server.asked.metrics_url
    if not url:
        return None
    try:
        limit = aiohttp.ClientTimeout(total=_METRICS_S)
        async with server.session.get(url, timeout=limit, allow_redirects=False) as answer:
            text = (await _bounded(answer, _METRICS_BYTES)).decode(errors="replace")
            if answer.status != 200:
                raise _Refused(CONFIG, f"{url} answers with HTTP {answer.status}")
        return prometheus.read(text, serving.NAMES)
    except (aiohttp.ClientError, TimeoutError, ValueError) as e:
        raise _Refused(UNAVAILABLE, f"{url}: {_said(e)}") from e
    except UnknownOutput as e:
        raise _Refused(CONFIG, f"{url} has no metrics in Prometheus' text format") from e


async def _snapshot_or_none(server: _Server) -> Snapshot | None:
    try:
        return await _snapshot(server)
    except _Refused:
        return None


async def _settled(server: _Server, before: Snapshot, answered: int) -> Snapshot | None:
    """The metrics once they have all that was answered, or at the latest after a few seconds."""
    until = time.monotonic() + _SETTLED_WITHIN_S
    while True:
        after = await _snapshot_or_none(server)
        if after is None or prometheus.is_reset(before, after) or serving.answered(before, after) >= answered:
            return after
        if time.monotonic() >= until:
            return after
        await asyncio.sleep(_ASKED_EACH_S)


async def _bounded(answer: aiohttp.ClientResponse, most_bytes: int) -> bytes:
    """Raises: ValueError: it is longer."""
    data = bytearray()
    async for chunk in answer.content.iter_chunked(_CHUNK_BYTES):
        data += chunk
        if len(data) > most_bytes:
            raise ValueError(f"the answer has more than {most_bytes} B")
    return bytes(data)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")[:_ERROR_LENGTH]
