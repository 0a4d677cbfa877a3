"""A load on a language model's server: what is asked of it, what its metrics are called, what the probe says of it."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from pipelines.families import probe_tool
from pipelines.families.probe_tool import Count, Seconds
from pipelines.families.prometheus import Snapshot, increase

PROBE = "serving"

Mix = Literal["short", "chat", "long", "mixed"]

MIXES: Mapping[str, Sequence[tuple[int, int]]] = {
    "short": ((32, 32), (64, 16), (16, 64)),
    "chat": ((128, 128), (256, 256), (64, 128), (512, 64)),
    "long": ((2048, 64), (4096, 128), (1024, 512)),
    "mixed": ((32, 32), (128, 128), (512, 128), (2048, 32), (64, 512), (1024, 256)),
}
"""Words of the prompt, and the most tokens of the answer; a load goes through them in an order of chance."""

_SEED = 20_180_412
_WORDS = ("time", "people", "water", "house", "light", "paper", "music", "stone", "river", "bread", "glass", "north")

METRICS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "vllm": {
        "request_latency": ("vllm:e2e_request_latency_seconds",),
        "first_token": ("vllm:time_to_first_token_seconds",),
        "inter_token": ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
    },
    "sglang": {
        "request_latency": ("sglang:e2e_request_latency_seconds",),
        "first_token": ("sglang:time_to_first_token_seconds",),
        "inter_token": ("sglang:inter_token_latency_seconds", "sglang:time_per_output_token_seconds"),
    },
    "tgi": {"request_latency": ("tgi_request_duration",)},
}
"""The histograms of each server by what they are of, the newest name first; all in seconds.

TGI has a mean of each request's tokens, which is no latency between two of them; llama-server has no histogram at all.

https://docs.vllm.ai/en/latest/usage/metrics, https://docs.sglang.io/references/production_metrics.html,
https://huggingface.co/docs/text-generation-inference/reference/metrics
"""

ROLES = ("request_latency", "first_token", "inter_token")
NAMES = frozenset(name for roles in METRICS.values() for names in roles.values() for name in names)


@dataclass(frozen=True)
class Prompt:
    text: str
    words: int
    most_tokens: int


def prompts(mix: str, step: int) -> Iterator[Prompt]:
    """Endless, and the same for the same mix and step. No two begin alike, so that no server has a prefix cached."""
    chance = random.Random(f"{_SEED} {mix} {step}")  # noqa: S311
    number = 0
    while True:
        for words, most_tokens in chance.sample(MIXES[mix], len(MIXES[mix])):
            number += 1
            start = f"{step}-{number}-{chance.randrange(10**6)}"
            yield Prompt(" ".join([start, *chance.choices(_WORDS, k=words - 1)]), words, most_tokens)


class Request(probe_tool.Printed):
    """One request as the client saw it; seconds from sending it. `error` says why it was not answered to its end."""

    probe: str = ""
    words: Count
    most_tokens: Count
    error: str = ""
    first_s: Seconds | None = None
    total_s: Seconds | None = None
    prompt_tokens: Count | None = None
    tokens: Count | None = None  # as the server counted them
    chunks: Count | None = None  # of the stream; one may have several tokens

    @property
    def counted(self) -> int:
        """The tokens of its answer; where the server did not count them, the chunks that they came in."""
        return self.tokens or self.chunks or 0


class Step(probe_tool.Printed):
    """A load of one concurrency, with the server's metrics before and after it, where it has any."""

    probe: str = ""
    concurrency: Count
    seconds: Seconds
    client_busy: Annotated[float, Field(ge=0, le=1e3)] | None = None  # share of that for which the clients computed
    requests: Annotated[tuple[Request, ...], Field(min_length=1)]
    before: Snapshot | None = None
    after: Snapshot | None = None


class Document(probe_tool.Printed):
    model: str
    metrics_problem: str = ""  # why the server's metrics could not be read
    steps: Annotated[tuple[Step, ...], Field(min_length=1)]


def histogram(role: str, snapshot: Snapshot) -> str | None:
    """What the server calls its histogram of `role`: the newest name that it has."""
    candidates = (name for roles in METRICS.values() for name in roles.get(role, ()))
    return next((name for name in candidates if name in snapshot.histograms), None)


def kind(snapshot: Snapshot) -> str | None:
    """Which server it is, by the names of its histograms."""
    for server, roles in METRICS.items():
        if any(name in snapshot.histograms for names in roles.values() for name in names):
            return server
    return None


def answered(before: Snapshot, after: Snapshot) -> float:
    """How many requests the server counted in between, in which it did not begin anew."""
    name = histogram("request_latency", after)
    if name is None:
        return 0.0
    found = increase(before, after, name)
    return found.count if found else 0.0
