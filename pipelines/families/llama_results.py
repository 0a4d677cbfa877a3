"""What llama-bench prints: a JSON object for each test, in an array or a line each."""

import json
from collections.abc import Iterator
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

Count = Annotated[StrictInt, Field(ge=0, lt=2**63)]
Text = Annotated[StrictStr, Field(max_length=4096)]


class Result(BaseModel):
    """One test of `-o json` or `-o jsonl`. Keys that nothing here needs are ignored: builds differ in dozens.

    `samples_ns` has the duration of each repetition; `samples_ts` is rounded to six digits, and `avg_ts` is the mean of
    the repetitions' rates. Where a number of layers is -1, llama.cpp decides.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    model_filename: Text
    model_type: Text
    model_size: Annotated[StrictInt, Field(gt=0, lt=2**63)]
    model_n_params: Annotated[StrictInt, Field(gt=0, lt=2**63)]
    n_prompt: Count
    n_gen: Count
    n_depth: Count = 0  # builds before 2025-04 had none
    n_batch: Count
    n_ubatch: Count | None = None  # this and the next two: builds of 2023 had none
    n_threads: Count
    n_gpu_layers: Annotated[StrictInt, Field(ge=-1, lt=2**31)]
    type_k: Text | None = None
    type_v: Text | None = None
    flash_attn: StrictBool | StrictInt | None = None
    backends: Text | None = None
    cuda: StrictBool | None = None  # builds before `backends`
    gpu_info: Text | None = None
    load_mode: Text | None = None
    use_mmap: StrictBool | None = None  # builds before `load_mode`
    avg_ns: Count
    samples_ns: Annotated[tuple[Annotated[StrictInt, Field(gt=0, lt=2**63)], ...], Field(min_length=1)]


def results(printed: str) -> Iterator[Result]:
    """Every whole result of a JSON array, which is not closed where the program was killed, or of lines of JSON."""
    decoder = json.JSONDecoder()
    at = printed.find("{")
    while at >= 0:
        try:
            document, end = decoder.raw_decode(printed, at)
            yield Result.model_validate(document)
        except (ValueError, RecursionError):  # pydantic's and json's own are ValueErrors
            return
        at = printed.find("{", end)
