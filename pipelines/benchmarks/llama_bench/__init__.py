"""llama-bench: how fast a language model reads a prompt and generates tokens on this node, one stream at a time."""

from pipelines.benchmark import Command, Cost, Metric, Workplace
from pipelines.benchmarks.llama_bench.output import parse, required
from pipelines.benchmarks.llama_bench.params import Params, case
from pipelines.families import llama_tool
from pipelines.families.llama_tool import DECODE_STEPS_PER_S, LOADING_S, PREFILL_TOKENS_PER_S


def cost(params: Params) -> Cost:
    """Expected seconds of a model that the planning knows nothing of, with one repetition more for the warm-up."""
    prefilled = (params.n_prompt or 0) + params.depth
    each_s = prefilled / PREFILL_TOKENS_PER_S + (params.n_gen or 0) / DECODE_STEPS_PER_S
    return Cost(seconds=LOADING_S + (params.repetitions + 1) * each_s, written_bytes=0)


def command(params: Params, workplace: Workplace) -> Command:
    """One test: pp is `-p P -n 0`, tg is `-p 0 -n G`, and pg is `-p 0 -n 0 -pg P,G`."""
    mixed = params.test == "mixed"
    argv = (
        "llama-bench",
        *llama_tool.model_arguments(params, workplace),
        *("-p", "0" if mixed else str(params.n_prompt or 0)),
        *("-n", "0" if mixed else str(params.n_gen or 0)),
        *(("-pg", f"{params.n_prompt},{params.n_gen}") if mixed else ()),
        *(("-d", str(params.depth)) if params.depth else ()),  # builds before 2025-04 have no -d
        *("-r", str(params.repetitions)),
        *("-o", llama_tool.format_of(workplace.tool_help)),
    )
    return Command(argv=argv)


BENCHMARK = llama_tool.benchmark(
    name="llama_bench",
    title="Speed of a language model, one stream (llama-bench)",
    caveat="It is one stream, without tokenizing, sampling or a server: not what many users at once are given, for "
    "which there is llama_batched. A mixed rate is a blend of prompt and generated tokens, and no rate of decoding. "
    "The prompt is made of random tokens, and what is generated is not read: nothing is said of the answers' quality, "
    "which a smaller quantization may cost. Rates of different models or quantizations are comparable on equal builds.",
    cadence="nightly",
    tool="llama-bench",
    version_argv=("llama-bench", "--version"),
    help_argv=("llama-bench", "--help"),
    source="https://github.com/ggml-org/llama.cpp/blob/master/tools/llama-bench/README.md",
    params=Params,
    metrics=(
        Metric(
            "prefill_throughput", "tok/s", "higher", 1e-2, 1e8, "prompt tokens per second; median of the repetitions"
        ),
        Metric(
            "decode_throughput",
            "tok/s",
            "higher",
            1e-3,
            1e7,
            "generated tokens per second of one stream; median of the repetitions",
        ),
        Metric(
            "mixed_throughput",
            "tok/s",
            "higher",
            1e-3,
            1e8,
            "prompt and generated tokens per second together; median of the repetitions",
        ),
        Metric("throughput_spread", "ratio", "lower", 0.0, 1.0, "how far the slowest repetition is below the fastest"),
        Metric(
            "time_to_first_token",
            "s",
            "lower",
            1e-6,
            1e5,
            "reading the prompt and generating one token (`-pg P,1`); median of the repetitions",
        ),
        Metric(
            "inter_token_latency",
            "s",
            "lower",
            1e-7,
            1e3,
            "from one generated token to the next: the time of a repetition divided by its tokens; median",
        ),
        Metric("model_size", "B", "neither", 1.0, 1e14, "bytes of the model's tensors"),
        Metric(
            "energy_per_token",
            "J",
            "lower",
            1e-6,
            1e5,
            "what all GPUs, or all processors, of the node took while the repetitions ran, per token; where they took "
            "2 s or more, and the node's sensors say it",
        ),
        Metric("tokens_per_joule", "tok/J", "higher", 1e-5, 1e6, "the same as tokens for a joule"),
    ),
    case=case,
    cost=cost,
    required=required,
    command=command,
    parse=parse,
)
