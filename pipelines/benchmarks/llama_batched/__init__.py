"""llama-batched-bench: throughput and latency of a language model with many requests at once, and the best of them."""

from pipelines.benchmark import Command, Cost, Metric, Workplace
from pipelines.benchmarks.llama_batched.output import parse, required
from pipelines.benchmarks.llama_batched.params import Params, case
from pipelines.families import llama_tool
from pipelines.families.llama_tool import DECODE_STEPS_PER_S, LOADING_S, PREFILL_TOKENS_PER_S


def cost(params: Params) -> Cost:
    """Expected seconds of a model that the planning knows nothing of. A step decodes one token of each sequence."""
    prefill_s = sum(params.rows) * params.n_prompt / PREFILL_TOKENS_PER_S
    decode_s = len(params.rows) * params.n_gen / DECODE_STEPS_PER_S
    return Cost(seconds=LOADING_S + prefill_s + decode_s, written_bytes=0)


def command(params: Params, workplace: Workplace) -> Command:
    """One row for each number of sequences, with a prompt of its own for each sequence; the first number twice.

    The tool warms up with 16 tokens: what computes whole batches is loaded while the first row is timed.
    """
    known = llama_tool.options(workplace.tool_help)
    argv = (
        "llama-batched-bench",
        *llama_tool.model_arguments(params, workplace),
        *("-c", str(params.context)),
        *("-npp", str(params.n_prompt), "-ntg", str(params.n_gen), "-npl", ",".join(map(str, params.rows))),
        *(("--output-format", "jsonl") if not known or "--output-format" in known else ()),
    )
    return Command(argv=argv)


BENCHMARK = llama_tool.benchmark(
    name="llama_batched",
    title="Speed of a language model, many requests at once (llama-batched-bench)",
    caveat="All requests are of one shape and begin at the same moment, without tokenizing, sampling or a server: "
    "it is what the node can compute, not what users of a server are given whose requests come one by one. All prompts "
    "are read before the first token is generated, so that the time to first token grows with their number as it would "
    "not in a server that mixes both. Each row is measured once, after one that is not counted; "
    "the spread is that between repeats of the job.",
    cadence="weekly",
    tool="llama-batched-bench",
    version_argv=("llama-batched-bench", "--version"),
    help_argv=("llama-batched-bench", "--help"),
    source="https://github.com/ggml-org/llama.cpp/blob/master/tools/batched-bench/README.md",
    params=Params,
    metrics=(
        Metric("prefill_throughput", "tok/s", "higher", 1e-2, 1e8, "prompt tokens per second, all sequences together"),
        Metric("decode_throughput", "tok/s", "higher", 1e-3, 1e8, "generated tokens per second, all together"),
        Metric(
            "total_throughput", "tok/s", "higher", 1e-3, 1e8, "prompt and generated tokens per second, all together"
        ),
        Metric("time_to_first_token", "s", "lower", 1e-6, 1e5, "until all prompts are read"),
        Metric("inter_token_latency", "s", "lower", 1e-7, 1e3, "from one token of a sequence to its next; mean"),
        Metric("request_latency", "s", "lower", 1e-6, 1e6, "from the beginning to the last token of every sequence"),
        Metric("request_rate", "1/s", "higher", 1e-6, 1e7, "requests per second, all of them at once and no others"),
        Metric(
            "best_decode_throughput",
            "tok/s",
            "higher",
            1e-3,
            1e8,
            "the greatest decode throughput at which the inter-token latency is within latency_limit_s",
        ),
        Metric("best_parallel", "1", "neither", 1, 9999, "how many sequences at once that was"),
    ),
    case=case,
    cost=cost,
    required=required,
    command=command,
    parse=parse,
)
