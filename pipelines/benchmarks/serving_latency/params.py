"""What can be asked of a server: which one, which mix of requests, at which concurrencies, for how long."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from pipelines import keys
from pipelines.families.serving import Mix
from pipelines.records import Name, Record

_MOST_CONCURRENT = 1024


class Params(Record):
    """A load. The server is named, never addressed: where it is stands in the inventory."""

    endpoint: Name = Field(
        default="chat",
        description="the server, as the node's endpoints in the inventory name it; OPENAI_API_KEY is sent to it",
    )
    model: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:@+-]{0,199}$")] | None = Field(
        default=None, description="the model's name; default: the first that the server lists"
    )
    api: Literal["chat", "completions"] = Field(default="chat", description="which API is asked; both stream")
    mix: Mix = Field(default="mixed", description="lengths of prompts and answers")
    steps: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,3}(,[1-9][0-9]{0,3}){0,9}$")] = Field(
        default="1,4,16", description="concurrencies, one after the other: so many requests are under way at once"
    )
    requests: Annotated[int, Field(ge=1, le=10_000)] = Field(default=100, description="requests of each step, at most")
    step_s: Annotated[float, Field(ge=0.1, le=3600)] = Field(
        default=30.0, description="after so many seconds a step begins no request"
    )
    request_s: Annotated[float, Field(ge=0.1, le=600)] = Field(
        default=60.0, description="seconds after which a request counts as failed"
    )
    ignore_eos: bool = Field(
        default=False, description="answers are as long as they may be; vLLM, SGLang and llama-server can do that"
    )

    @field_validator("steps")
    @classmethod
    def _each_once(cls, text: str) -> str:
        steps = [int(each) for each in text.split(",")]
        if len(set(steps)) < len(steps) or max(steps) > _MOST_CONCURRENT:
            raise ValueError(f"each step is there once, and none has more than {_MOST_CONCURRENT} requests at once")
        return text

    @property
    def concurrencies(self) -> tuple[int, ...]:
        return tuple(int(each) for each in self.steps.split(","))


def case(params: Params) -> str:
    """`chat-mixed`, `chat-short-completions-c1_8`: the server, the mix, and what is not as usual.

    How many requests and for how long is no part of it.
    """
    usual = Params()
    given = [
        *([params.api] if params.api != usual.api else []),
        *([params.model.replace("/", "_").replace(":", "_")] if params.model else []),
        *(["c" + params.steps.replace(",", "_")] if params.steps != usual.steps else []),
        *(["full"] if params.ignore_eos else []),
    ]
    name = "-".join([params.endpoint, params.mix, *given]).replace("@", "_").replace("+", "_")
    return name if len(name) <= 63 else f"{params.endpoint[:40]}-{keys.content_id([params.mix, *given])}"[:63]
