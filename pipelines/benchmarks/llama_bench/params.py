"""What can be asked of llama-bench: one test of one model, and its name."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pipelines.families import llama_tool
from pipelines.families.llama_tool import ModelParams

Test = Literal["prefill", "decode", "mixed"]

_TOKENS = {"n_prompt": 512, "n_gen": 128}  # llama-bench's own
_UNUSED = {"prefill": "n_gen", "decode": "n_prompt", "mixed": ""}


def _tokens(name: str, description: str) -> Any:
    """A number of tokens; None where the test has none of that kind."""
    return Field(
        default_factory=lambda given: None if _UNUSED.get(given.get("test", "")) == name else _TOKENS[name],
        description=description,
        json_schema_extra={"defaults": {test: _TOKENS[name] for test, unused in _UNUSED.items() if unused != name}},
    )


class Params(ModelParams):
    """One test. A number of tokens that the test has no use for is None, so that an override can name a whole suite."""

    test: Test = Field(
        default="prefill",
        description="prefill: a prompt (pp); decode: tokens, one after the other (tg); mixed: both in turn (pg)",
    )
    n_prompt: Annotated[int, Field(ge=1, le=2**22)] | None = _tokens("n_prompt", "tokens of the prompt")
    n_gen: Annotated[int, Field(ge=1, le=2**20)] | None = _tokens(
        "n_gen", "tokens that are generated; 1 in a mixed test gives the time to first token"
    )
    depth: Annotated[int, Field(ge=0, le=2**22)] = Field(
        default=0, description="tokens that are in the KV cache before; filling it is not measured"
    )
    repetitions: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=5, description="times that the test is done, after a warm-up; their median counts"
    )

    @field_validator("n_prompt", "n_gen")
    @classmethod
    def _only_where_used(cls, value: int | None, info: ValidationInfo) -> int | None:
        if _UNUSED.get(info.data.get("test", "")) == info.field_name:
            return None
        if value is None:
            raise ValueError("the test needs a number here")
        return value

    @model_validator(mode="after")
    def _has_work(self) -> Self:
        if self.repetitions * self.tokens > 2**30:
            raise ValueError("more than 2^30 tokens in one job")
        return self

    @property
    def tokens(self) -> int:
        """The tokens of one repetition."""
        return (self.n_prompt or 0) + (self.n_gen or 0)

    @property
    def gives_first_token(self) -> bool:
        """Whether it is the maintainers' way to a time to first token: `-pg P,1`."""
        return self.test == "mixed" and self.n_gen == 1


def case(params: Params) -> str:
    """The model and the test as llama-bench's options name it: `llama-8b-q4_0-pp512-d4096-t8`."""
    pair = f"{params.n_prompt}.{params.n_gen}"
    test = {"prefill": f"pp{params.n_prompt}", "decode": f"tg{params.n_gen}", "mixed": f"pg{pair}"}[params.test]
    return llama_tool.case(params, [test, f"d{params.depth}"] if params.depth else [test])
