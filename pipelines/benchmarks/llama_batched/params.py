"""What can be asked of llama-batched-bench: requests of one shape, so many at once, and their name."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from pipelines.families import llama_tool
from pipelines.families.llama_tool import ModelParams


class Params(ModelParams):
    """Requests of one shape, at several numbers of them at once. None of it is a path or free text."""

    parallel: Annotated[str, Field(pattern=r"^[1-9]\d{0,3}(,[1-9]\d{0,3}){0,15}$")] = Field(
        default="1,4,16,64", description="numbers of parallel sequences, ascending; each is a row of its own"
    )
    n_prompt: Annotated[int, Field(ge=1, le=2**20)] = Field(default=512, description="tokens of each prompt")
    n_gen: Annotated[int, Field(ge=1, le=2**20)] = Field(default=128, description="tokens generated for each")
    latency_limit_s: Annotated[float, Field(gt=0, le=60)] = Field(
        default=0.05, description="the longest time from one token to the next that a reader of the answer should see"
    )

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if list(self.sequences) != sorted(set(self.sequences)):
            raise ValueError("the numbers of parallel sequences must ascend")
        if self.context > 2**31 - 1:
            raise ValueError("the greatest number of sequences needs more context than llama.cpp can count")
        return self

    @property
    def sequences(self) -> tuple[int, ...]:
        return tuple(int(number) for number in self.parallel.split(","))

    @property
    def rows(self) -> tuple[int, ...]:
        """What is measured, in this order: the first number twice, and the first time does not count."""
        return (self.sequences[0], *self.sequences)

    @property
    def context(self) -> int:
        """Tokens that the KV cache must hold: below it the tool leaves rows out without a word."""
        return max(self.sequences) * (self.n_prompt + self.n_gen)


def case(params: Params) -> str:
    """`llama-8b-q4_0-pp512-tg128`, and of the rest what is not the usual: `-pl1.8`, `-limit0.1s`."""
    load = [f"pp{params.n_prompt}", f"tg{params.n_gen}"]
    if params.parallel != Params.model_fields["parallel"].default:
        load.append(f"pl{params.parallel.replace(',', '.')}")
    if params.latency_limit_s != Params.model_fields["latency_limit_s"].default:
        load.append(f"limit{params.latency_limit_s}s")
    return llama_tool.case(params, load)
