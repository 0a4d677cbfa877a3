"""What a load on a server says: quantiles of what the server and its clients timed, and rates."""

from collections.abc import Iterator, Mapping

from pydantic import ValidationError

from pipelines import histograms
from pipelines.benchmarks.serving_latency.params import Params
from pipelines.errors import UnknownOutput
from pipelines.families import probe_tool, prometheus, serving
from pipelines.families.serving import Document, Request, Step
from pipelines.records import Histogram, Labels, Measurement, Outcome, Parsed, RawOutput, Unit

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
_PERCENT = 100
_OF_OTHERS = 0.01  # of a step's requests: a server may count one that was cut off
_CLIENT_BUSY = 0.8  # of the time: all clients are one thread, and above it they wait for each other
_REASON_LENGTH = 300


def required(_: Params) -> frozenset[str]:
    """What every server gives; what it times itself is there where its metrics are."""
    timed = {f"client_{what}_{name}" for what in ("request_latency", "first_token") for name in QUANTILES}
    return frozenset(timed | {"client_request_rate", "output_token_rate", "error_ratio"})


def parse(raw: RawOutput) -> Parsed:
    """Judge and read one attempt.

    A step in which the server began anew gives nothing, and neither does one in which somebody else asked, too.

    Raises:
        UnknownOutput: the probe ended well and printed something else than its document.
    """
    found = probe_tool.read(raw, serving.PROBE, Document)
    if isinstance(found, Parsed):
        return found
    try:
        params = Params.model_validate(dict(raw.job.params))
    except ValidationError as e:
        raise UnknownOutput(probe_tool.PROGRAM, "a job with parameters of this benchmark", str(raw.job.params)) from e
    notes = [found.metrics_problem] if found.metrics_problem else []
    failures: list[tuple[Outcome, str]] = []
    measurements: list[Measurement] = []
    timed: list[Histogram] = []
    for step in found.steps:
        labels = {"concurrency": str(step.concurrency), "mix": params.mix, "model": found.model}
        if failure := _failure(step):
            failures.append(failure)
            continue
        measurements += [*_client(step, labels), *_server(step, labels)]
        timed += _histograms(step, labels)
        notes += _notes(step)
    if undone := sorted(set(params.concurrencies) - {step.concurrency for step in found.steps}):
        failures.append((Outcome.TRUNCATED, f"there is no step of concurrency {', '.join(map(str, undone))}"))
    missing = required(params) - {each.metric for each in measurements}
    if missing and not failures:
        failures.append((Outcome.TRUNCATED, f"the document gives no {', '.join(sorted(missing))}"))
    outcome, reason = failures[0] if failures else (Outcome.OK, "")
    return Parsed(
        outcome=outcome,
        reason=reason,
        measurements=tuple(measurements),
        histograms=tuple(timed),
        notes=(*notes, *(text for _, text in failures[1:])),
    )


def _failure(step: Step) -> tuple[Outcome, str] | None:
    where = f"concurrency {step.concurrency}"
    answered = [request for request in step.requests if not request.error]
    if not answered:
        said = step.requests[0].error[:_REASON_LENGTH]
        return Outcome.TOOL_FAILED, f"{where}: none of {len(step.requests)} requests was answered: {said}"
    if step.before is None or step.after is None:
        return None
    if prometheus.is_reset(step.before, step.after):
        return Outcome.TRUNCATED, f"{where}: the server began anew in between, so that its counts say nothing"
    others = serving.answered(step.before, step.after) - len(step.requests)
    if others > max(1.0, len(step.requests) * _OF_OTHERS):
        return Outcome.CONTENDED, f"{where}: the server answered {others:.0f} requests of others at the same time"
    return None


def _client(step: Step, labels: Labels) -> Iterator[Measurement]:
    answered = [request for request in step.requests if not request.error]
    for what, values in _timed(step).items():
        bins = histograms.merged({value: 1} for value in values)
        taken = histograms.percentiles(bins, [q * _PERCENT for q in QUANTILES.values()])
        for name, value in zip(QUANTILES, taken, strict=True):
            yield Measurement(metric=f"client_{what}_{name}", value=value, unit="s", labels=labels)
    tokens = sum(request.counted for request in answered)
    rates: tuple[tuple[str, float, Unit], ...] = (
        ("client_request_rate", len(answered) / step.seconds, "1/s"),
        ("output_token_rate", tokens / step.seconds, "tok/s"),
    )
    for metric, rate, unit in rates:
        if rate:
            yield Measurement(metric=metric, value=rate, unit=unit, labels=labels)
    failed = (len(step.requests) - len(answered)) / len(step.requests)
    yield Measurement(metric="error_ratio", value=failed, unit="ratio", labels=labels)


def _timed(step: Step) -> Mapping[str, list[float]]:
    """Seconds above zero by what they are of; what no request has is not there."""
    answered = [request for request in step.requests if not request.error]
    timed = {
        "request_latency": [request.total_s for request in answered],
        "first_token": [request.first_s for request in answered],
        "token_time": [_token_time(request) for request in answered],
    }
    seconds = {what: [value for value in values if value] for what, values in timed.items()}
    return {what: values for what, values in seconds.items() if values}


def _token_time(request: Request) -> float | None:
    """Mean seconds of a token after the first (time per output token)."""
    if request.total_s is None or request.first_s is None or request.counted < 2:
        return None
    return max(0.0, request.total_s - request.first_s) / (request.counted - 1)


def _server(step: Step, labels: Labels) -> Iterator[Measurement]:
    if step.before is None or step.after is None:
        return
    named = {**labels, "server": serving.kind(step.after) or "unknown"}
    for role, seen in _increases(step).items():
        for name, q in QUANTILES.items():
            value = prometheus.quantile(q, seen)
            if value > 0:
                yield Measurement(metric=f"{role}_{name}", value=value, unit="s", labels=named)
        if role == "request_latency":
            yield Measurement(metric="request_rate", value=seen.count / step.seconds, unit="1/s", labels=named)


def _increases(step: Step) -> Mapping[str, prometheus.Increase]:
    found = {}
    if step.before is not None and step.after is not None:
        for role in serving.ROLES:
            name = serving.histogram(role, step.after)
            if name and (seen := prometheus.increase(step.before, step.after, name)):
                found[role] = seen
    return found


def _notes(step: Step) -> Iterator[str]:
    where = f"concurrency {step.concurrency}"
    for role, seen in _increases(step).items():
        if beyond := [name for name, q in QUANTILES.items() if prometheus.is_beyond(q, seen)]:
            highest = seen.buckets[-2][0]
            yield f"{where}: {role} {', '.join(beyond)} lie above {highest:g} s, the last of the server's bounds"
    if step.client_busy is not None and step.client_busy > _CLIENT_BUSY:
        yield f"{where}: the clients computed for {step.client_busy:.0%} of the time: what they timed is their own, too"
    if uncounted := sum(not request.error and not request.tokens for request in step.requests):
        yield f"{where}: {uncounted} answers came without a count of their tokens; their chunks are counted"
    if errors := [request.error for request in step.requests if request.error]:
        yield f"{where}: {len(errors)} of {len(step.requests)} requests failed: {errors[0][:_REASON_LENGTH]}"


def _histograms(step: Step, labels: Labels) -> Iterator[Histogram]:
    for what, values in _timed(step).items():
        bins = tuple(histograms.merged({value: 1} for value in values).items())
        yield Histogram(metric=f"client_{what}", unit="s", labels=labels, bins=bins)
