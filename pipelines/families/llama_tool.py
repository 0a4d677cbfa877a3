"""llama.cpp as the tool of several benchmarks: versions, models, options that differ between builds, failures."""

import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipelines import keys
from pipelines.benchmark import Benchmark, Workplace
from pipelines.records import Outcome, RawOutput, Record

INSTALL_HINT = (
    "cmake -B build -DGGML_CUDA=ON && cmake --build build --config Release --target llama-bench llama-batched-bench; "
    "without a GPU also Debian's llama.cpp-tools and llama.cpp-tools-extra"
)
UNNUMBERED = "unnumbered"
"""The version of a build that has no `--version`: it prints the options it knows."""

LOADING_S = 20.0  # planning knows nothing of the model: 20 s to load it, 500 tokens/s of prompt, 20 steps/s of decoding
PREFILL_TOKENS_PER_S = 500
DECODE_STEPS_PER_S = 20

_OPTION = re.compile(r"\s*((?:--?[A-Za-z][\w-]*,?\s+)+)(\S*)")  # `-fa, --flash-attn <on|off|auto>`
_FIRST_SHARD = re.compile(r"(.+-)00001(-of-)(\d{5})(\.gguf)")
_CONFIG = re.compile(
    r"^error: invalid (parameter|argument)|^error while (parsing|handling) argument|requires flash_attn|out of memory"
    r"|insufficient memory|failed to allocate|unable to allocate|failed to create (the llama_)?context",
    re.MULTILINE,
)
_SAYS_WHY = re.compile(r"error|failed|invalid|not |unable|requires|insufficient|out of memory", re.IGNORECASE)
_LOG_PREFIX = re.compile(r"^\d+(\.\d+)+ [A-Z] ")  # when, since the start, and how grave
_NOISE = re.compile(r"(ggml_backend_load|load_backend|ggml_cuda_init|ggml_vulkan)\S*:?")
_CRASHES = frozenset({signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE})  # its own doing
_LONGEST_NAME = 63  # records.Name
_QUANTIZED = frozenset({"q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"})

KvType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]
LoadMode = Literal["auto", "none", "mmap", "mlock", "dio"]
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,120}\.gguf$")]


class ModelParams(Record):
    """A model, and how llama.cpp runs it. No field is a path: the model lies in the job's folder of files."""

    model: ModelName = Field(
        default="model.gguf",
        description="file name of the model, in the job's dataset or the node's folder of files; of many, the first",
    )
    batch: Annotated[int, Field(ge=1, le=2**20)] = Field(default=2048, description="tokens submitted at once, at most")
    ubatch: Annotated[int, Field(ge=1, le=2**20)] = Field(default=512, description="tokens computed at once, at most")
    threads: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None, description="processor threads; default: llama.cpp's own choice"
    )
    n_gpu_layers: Annotated[int, Field(ge=0, le=10_000)] | None = Field(
        default=None, description="layers on the GPU; default: llama.cpp's own choice, which is all that fit"
    )
    gpu: Annotated[int, Field(ge=0, le=63)] | None = Field(
        default=None, description="the one GPU to use, from 0; default: all, each with its share of the layers"
    )
    flash_attention: Literal["auto", "on", "off"] = Field(default="auto", description="auto: as the build decides")
    type_k: KvType = Field(default="f16", description="type of the keys in the KV cache")
    type_v: KvType = Field(default="f16", description="type of the values in the KV cache")
    load_mode: LoadMode = Field(default="auto", description="how the model's file is read; auto: as the build decides")

    @model_validator(mode="after")
    def _can_be_run(self) -> Self:
        if self.ubatch > self.batch:
            raise ValueError("ubatch is a part of batch: it cannot be greater")
        if self.type_v in _QUANTIZED and self.flash_attention == "off":
            raise ValueError("a quantized type_v needs flash attention")
        return self

    @property
    def wants_gpu(self) -> bool:
        """Whether a run on the processor alone would be another one than was asked for."""
        return self.gpu is not None or bool(self.n_gpu_layers)

    @property
    def files(self) -> tuple[str, ...]:
        """The model's file; of one that `llama-gguf-split` cut, all of them: llama.cpp opens the others by itself."""
        parts = _FIRST_SHARD.fullmatch(self.model)
        if not parts:
            return (self.model,)
        head, of, count, tail = parts.groups()
        return tuple(f"{head}{number:05}{of}{count}{tail}" for number in range(1, int(count) + 1))


def version(text: str) -> str | None:
    """`0.7.0-b11669` of `version: 0.7.0 (build 11669, commit ..)`; `5163` of an older `version: 5163 (8cf427ff)`."""
    if found := re.search(r"^version: (\d{1,9}(?:\.\d{1,9}){1,3}) \(build (\d{1,9})\b", text, re.MULTILINE):
        return f"{found[1]}-b{found[2]}"
    if found := re.search(r"^version: (\d{1,9}) \(", text, re.MULTILINE):
        return found[1]
    return UNNUMBERED if re.search(r"^usage: \S*llama-b\S+ \[options\]", text, re.MULTILINE) else None


benchmark = partial(
    Benchmark,
    minimum_version=(),  # any: what a build cannot do, its options tell, and it refuses
    install_hint=INSTALL_HINT,
    writes=False,
    version=version,
    files=lambda params: tuple(params.files),
)
"""A benchmark of one of llama.cpp's programs, by what it has of its own."""


def options(tool_help: str) -> Mapping[str, str]:
    """Each option that a help text names, with the word after it: `<on|off|auto>`."""
    found = (_OPTION.match(f"{line} ") for line in tool_help.splitlines())
    return {name: match[2] for match in found if match for name in re.findall(r"--?[A-Za-z][\w-]*", match[1])}


def format_of(tool_help: str) -> str:
    """The word after llama-bench's `-o` for JSON, as its help says: older builds have no `jsonl`."""
    return "jsonl" if "jsonl" in options(tool_help).get("-o", "jsonl") else "json"


def model_arguments(params: ModelParams, place: Workplace) -> Iterator[str]:
    """What both programs take. What a build cannot be told in its own words it is told in today's, and refuses."""
    known = options(place.tool_help)
    yield from ("-m", str(place.files / params.model if place.files else params.model))
    yield from ("-b", str(params.batch), "-ub", str(params.ubatch), "-ctk", params.type_k, "-ctv", params.type_v)
    if params.threads is not None:
        yield from ("-t", str(params.threads))
    if params.n_gpu_layers is not None:
        yield from ("-ngl", str(params.n_gpu_layers))
    if params.gpu is not None:
        yield from ("-sm", "none", "-mg", str(params.gpu))
    if params.flash_attention != "auto":
        yield from _flash_attention(params.flash_attention == "on", known.get("-fa", "<on|off|auto>"))
    if params.load_mode != "auto":
        yield from _load_mode(params.load_mode, known)


def _flash_attention(wanted: bool, takes: str) -> tuple[str, ...]:
    """Today `-fa on`; before, llama-bench took 1, and the other programs a mere `-fa`."""
    if "on|" in takes:
        return ("-fa", "on" if wanted else "off")
    if "0|1" in takes:
        return ("-fa", str(int(wanted)))
    return ("-fa",) if wanted else ()


def _load_mode(mode: LoadMode, known: Mapping[str, str]) -> tuple[str, ...]:
    """Today `-lm MODE`; before, `-mmp 0|1` of llama-bench, and `--no-mmap` and `--mlock` of the other programs."""
    if known and "-lm" not in known:
        if mode in {"none", "mmap"} and "-mmp" in known:
            return ("-mmp", str(int(mode == "mmap")))
        if mode == "mmap" and "--no-mmap" in known:
            return ()
        older = {"none": "--no-mmap", "mlock": "--mlock"}.get(mode, "")
        if older in known:
            return (older,)
    return ("-lm", mode)


def interrupted(raw: RawOutput, program: str) -> str:
    """Who ended it before its time; empty where it ended by itself, well or not."""
    if raw.timed_out:
        return f"{program} was ended after {raw.job.timeout_s:g} s, the job's timeout"
    ended = raw.signal is not None and raw.signal not in _CRASHES
    return f"{program} was ended by signal {raw.signal}" if ended else ""


def failure(raw: RawOutput, program: str) -> tuple[Outcome, str] | None:
    """Why it failed, if it did, by what it said: CONFIG where it could not run like that on any good node.

    Builds have ended with status 0 after a model that could not be loaded, with the `[` of an array that stays empty.
    """
    silent = raw.stdout.strip() in {"", "["} and ": error: " in raw.stderr
    if not raw.exit_status and raw.signal is None and not silent:
        return None
    how = f"ended with exit status {raw.exit_status}" if raw.signal is None else f"crashed with signal {raw.signal}"
    lines = [_LOG_PREFIX.sub("", line.strip()) for line in raw.stderr.splitlines() if not _NOISE.match(line)]
    telling = [line for line in lines if _SAYS_WHY.search(line)]
    said = list(dict.fromkeys([*telling[:2], *telling[-1:]])) or ["it gave no reason"]
    outcome = Outcome.CONFIG if _CONFIG.search("\n".join(lines)) else Outcome.TOOL_FAILED
    return outcome, f"{program} {how}: {'; '.join(line[:300] for line in said)}"


def case(params: ModelParams, load: Sequence[str]) -> str:
    """A name for tables: the model, what is done with it, and what of the model's parameters is not the usual."""
    letters = {
        "batch": "b", "ubatch": "ub", "threads": "t", "n_gpu_layers": "ngl", "gpu": "gpu", "flash_attention": "fa_",
        "type_k": "k_", "type_v": "v_", "load_mode": "load_",
    }  # fmt: skip
    given = {letter: getattr(params, name) for name, letter in letters.items()}
    usual = {letter: ModelParams.model_fields[name].default for name, letter in letters.items()}
    tokens = [*load, *(f"{letter}{value}" for letter, value in given.items() if value != usual[letter])]
    stem = params.model.removesuffix(".gguf")
    name = "-".join([stem, *tokens])
    return name if len(name) <= _LONGEST_NAME else f"{stem[:32]}-{keys.content_id([stem, tokens])}"
