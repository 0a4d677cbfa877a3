"""serving_latency: what users of a language model's server wait for, at stepped concurrency; the descriptor."""

from pipelines.benchmark import Command, Cost, Metric, Workplace
from pipelines.benchmarks.serving_latency.output import QUANTILES, parse, required
from pipelines.benchmarks.serving_latency.params import Params, case
from pipelines.families import probe_tool, serving

_STARTING_S = 5.0
_SLACK = 3.0  # of a plan: a job may take so many times what it is expected to


def command(params: Params, workplace: Workplace) -> Command:
    endpoint = workplace.endpoints.get(params.endpoint)
    url = endpoint.url.rstrip("/") if endpoint else ""
    metrics = endpoint.metrics or f"{url}/metrics" if endpoint else ""
    argv = (
        probe_tool.PROGRAM,
        serving.PROBE,
        f"--endpoint={params.endpoint}",
        f"--url={url}",
        f"--metrics-url={metrics}",
        f"--model={params.model or ''}",
        f"--api={params.api}",
        f"--mix={params.mix}",
        f"--steps={params.steps}",
        f"--requests={params.requests}",
        f"--step-s={params.step_s:g}",
        f"--request-s={params.request_s:g}",
        f"--ignore-eos={int(params.ignore_eos)}",
    )
    return Command(argv=argv)


def cost(params: Params) -> Cost:
    """Each step has its time, and its last requests may take theirs, which a plan's slack covers."""
    each_s = max(params.step_s, (params.step_s + params.request_s) / _SLACK)
    seconds = _STARTING_S + params.request_s / _SLACK + len(params.concurrencies) * each_s
    return Cost(seconds=seconds, written_bytes=0)


def _quantiles(prefix: str, low: float, high: float, what: str) -> tuple[Metric, ...]:
    return tuple(
        Metric(f"{prefix}_{name}", "s", "lower", low, high, f"{what}: its {q * 100:g} % quantile")
        for name, q in QUANTILES.items()
    )


BENCHMARK = probe_tool.benchmark(
    name="serving_latency",
    title="Latency of a language model's server under load",
    caveat="It is the server as it is deployed, with its model, its batching and the network to it: two nodes compare "
    "where all of these are the same. The server's own quantiles are read from its histograms as PromQL's "
    "histogram_quantile does, linear within a bucket: they are no finer than its bounds, and one above the last bound "
    "is given as that bound, with a note. Clients are closed loops, each waiting for its answer before it asks again: "
    "a slow server is asked less, and users do not wait. Each request opens a connection. A quantile of fewer requests "
    "than it needs (1,000 for p999) is little more than the slowest of them. Prompts are random words without a common "
    "beginning: a prefix cache does not help, as it would with users. Lengths are words and upper bounds, and what a "
    "model makes of them is its own.",
    cadence="on demand",
    writes=False,
    source="https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile",
    params=Params,
    metrics=(
        *_quantiles("request_latency", 1e-6, 1e5, "seconds of a request, as the server has it"),
        *_quantiles("first_token", 1e-6, 1e5, "seconds until a request's first token, as the server has it"),
        *_quantiles("inter_token", 1e-7, 1e4, "seconds between two tokens, as the server has it"),
        Metric("request_rate", "1/s", "higher", 1e-4, 1e6, "requests per second that the server counted"),
        *_quantiles("client_request_latency", 1e-6, 1e5, "seconds from sending a request to the end of its answer"),
        *_quantiles("client_first_token", 1e-6, 1e5, "seconds from sending a request to the first token of its answer"),
        *_quantiles("client_token_time", 1e-9, 1e4, "mean seconds of an answer's tokens after the first"),
        Metric(
            "client_request_rate", "1/s", "higher", 1e-4, 1e6, "requests per second that were answered to their end"
        ),
        Metric("output_token_rate", "tok/s", "higher", 1e-4, 1e9, "tokens of all answers per second"),
        Metric("error_ratio", "ratio", "lower", 0.0, 1.0, "share of the requests that were not answered to their end"),
    ),
    case=case,
    cost=cost,
    required=required,
    command=command,
    parse=parse,
    needs=frozenset({"serving"}),
    passed=("OPENAI_API_KEY", "SSL_CERT_FILE"),
)
