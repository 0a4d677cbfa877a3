"""What a raw output of iperf3 says: an outcome, measurements in base units; and whether client and server met."""

import re
from collections.abc import Iterator

from pipelines.benchmarks.iperf3 import document
from pipelines.benchmarks.iperf3.document import Document, End, Sum
from pipelines.benchmarks.iperf3.params import Params
from pipelines.errors import UnknownOutput
from pipelines.families import asked
from pipelines.records import Labels, Measurement, Outcome, Parsed, RawOutput, Unit

_PERCENT = 100
_MS_PER_S = 10**3
_US_PER_S = 10**6
_FULL = 0.95  # of the time asked for
_WRAPPED = 2**53  # more datagrams than anybody sends: a count below zero
_SHORTEST_S = 0.001  # of which a rate is made
_LATE = 0.01  # of the datagrams: so many may come late, after they were counted as lost
_UNDER_WAY_S = 0.25  # for which what was sent last may be under way when the receiver stops
_AWAY = re.compile(r"unable to connect to server|server is busy|unable to (send|receive) control message")
_CONFIG = re.compile(r"not known|No address associated|unrecognized option|parameter|Unknown control message")


def required(params: Params) -> frozenset[str]:
    return frozenset({"goodput"} if params.protocol == "tcp" else {"goodput", "loss", "jitter"})


def unanswered(raw: RawOutput) -> str | None:
    """Why there was no server that was free: it refused, was busy, or sent nothing before iperf3 gave up or was ended.

    `--connect-timeout` is for the connection alone: a kernel accepts for a server that is frozen, and iperf3 3.12 then
    waits for ever (https://github.com/esnet/iperf/issues/1862).
    """
    printed = document.read(raw.stdout)
    error = None if printed is None else _error(raw, printed)
    if printed is None or error is None or printed.start.connected:
        return None
    if raw.timed_out:
        return None if printed.start.connecting_to else "iperf3 was ended before any server had answered"
    return error if _AWAY.search(error) and not _CONFIG.search(error) else None


def _error(raw: RawOutput, printed: Document) -> str | None:
    """What went wrong, in iperf3's words: 3.9 has no `error` in its document, and says it on stderr."""
    if printed.error is not None or not raw.exit_status:
        return printed.error
    said = re.search(r"^iperf3: (?:error - )?(.+)$", raw.stderr, re.MULTILINE)
    return said[1] if said else f"exit status {raw.exit_status}"


def served(text: str) -> bool:
    """Whether a client's streams were connected, so that it was one, and not a port scan."""
    printed = document.read(text)
    return printed is not None and bool(printed.start.connected)


def parse(raw: RawOutput) -> Parsed:
    """Judge and read one attempt of a client.

    Raises:
        UnknownOutput: iperf3 ended well and printed something else than its document.
    """
    params = asked.params(raw, Params, "iperf3")
    if isinstance(params, Parsed):
        return params
    printed = document.read(raw.stdout)
    if printed is None:
        outcome, reason = _without_document(raw)
        return Parsed(outcome=outcome, reason=reason)
    if (error := _error(raw, printed)) is not None:
        reason = unanswered(raw) or _interrupted(raw) or f"iperf3: {error}"
        return Parsed(outcome=_of_error(raw, printed, error), reason=reason)
    if params.direction == "both" and printed.end.sum_received_bidir_reverse is None:
        reason = "this iperf3 does not tell the two directions apart: 3.12 or later does"
        return Parsed(outcome=Outcome.CONFIG, reason=reason)
    measurements = tuple(_measurements(params, printed))
    reason = _interrupted(raw) or _short(params, printed) or _missing(params, measurements)
    return Parsed(outcome=Outcome.TRUNCATED if reason else Outcome.OK, reason=reason, measurements=measurements)


def _interrupted(raw: RawOutput) -> str:
    if raw.timed_out:
        return f"iperf3 was ended after {raw.job.timeout_s:g} s"
    return f"iperf3 was ended by signal {raw.signal}" if raw.signal is not None else ""


def _without_document(raw: RawOutput) -> tuple[Outcome, str]:
    if reason := _interrupted(raw):
        return Outcome.TRUNCATED, f"{reason}, before its document was written"
    if raw.exit_status:
        said = next((line.strip() for line in (raw.stderr + raw.stdout).splitlines() if line.strip()), "no reason")
        outcome = Outcome.CONFIG if _CONFIG.search(said) else Outcome.TOOL_FAILED
        return outcome, f"iperf3 ended with exit status {raw.exit_status}: {said[:300]}"
    raise UnknownOutput("iperf3", "a JSON document", raw.stdout)


def _of_error(raw: RawOutput, printed: Document, error: str) -> Outcome:
    if unanswered(raw) is not None:
        return Outcome.NOT_MEASURED
    if printed.start.connected or raw.timed_out:  # it began
        return Outcome.TRUNCATED
    return Outcome.CONFIG if _CONFIG.search(error) else Outcome.TOOL_FAILED


def _ways(params: Params, end: End) -> Iterator[tuple[str, Sum | None, Sum | None]]:
    """Each direction with what its sender and its receiver counted."""
    if params.direction != "both":
        yield params.direction, end.sum_sent, end.sum_received or end.sum
    else:
        yield "forward", end.sum_sent, end.sum_received
        yield "reverse", end.sum_sent_bidir_reverse, end.sum_received_bidir_reverse


def _short(params: Params, printed: Document) -> str:
    for way, _, received in _ways(params, printed.end):
        if received is None:
            return f"the document has no {way} sum of what was received"
        if received.seconds < params.duration_s * _FULL:
            return f"{received.seconds:g} of {params.duration_s} s were measured {way}"
    return ""


def _missing(params: Params, measurements: tuple[Measurement, ...]) -> str:
    ways = {"forward", "reverse"} if params.direction == "both" else {params.direction}
    found = {(each.metric, each.labels["direction"]) for each in measurements}
    missing = [f"{name} {way}" for name in sorted(required(params)) for way in sorted(ways) if (name, way) not in found]
    return f"the document gives no {', '.join(missing)}" if missing else ""


def _measurements(params: Params, printed: Document) -> Iterator[Measurement]:
    shared = {"protocol": params.protocol, "streams": str(params.streams)}
    if params.protocol == "udp":
        shared["udp_rate"] = str(params.udp_rate)
    for way, sent, received in _ways(params, printed.end):
        labels = {**shared, "direction": way}
        if params.protocol == "tcp":
            yield from _tcp(labels, sent, received)
        elif received is not None and printed.start.test_start is not None:
            yield from _udp(labels, sent, received, printed.start.test_start.blksize)
    labels = {**shared, "direction": params.direction}
    senders = [stream.sender for stream in printed.end.streams if stream.sender and stream.sender.sender]
    if round_trips := [sender.mean_rtt for sender in senders if sender.mean_rtt and sender.mean_rtt > 0]:
        yield _value("rtt_mean", sum(round_trips) / len(round_trips) / _US_PER_S, "s", labels)
    if (cpu := printed.end.cpu_utilization_percent) is not None:
        for end, percent in (("client", cpu.host_total), ("server", cpu.remote_total)):
            if percent >= 0:
                yield _value(f"{end}_cores", percent / _PERCENT, "1", labels)


def _tcp(labels: Labels, sent: Sum | None, received: Sum | None) -> Iterator[Measurement]:
    """What arrived is the goodput; what was sent may still lie in a buffer. No byte is no measurement of a rate."""
    if received is not None and received.seconds >= _SHORTEST_S and received.bytes > 0:
        yield _value("goodput", received.bytes / received.seconds, "B/s", labels)
    if sent is not None and sent.retransmits is not None and sent.retransmits >= 0:
        yield _value("retransmits", sent.retransmits, "1", labels)


def _udp(labels: Labels, sent: Sum | None, received: Sum, datagram_bytes: int) -> Iterator[Measurement]:
    """From what was not lost: the receiver's bytes in the client's document are the sender's in some versions.

    What was lost in the omitted time is taken from the whole. Where some of it came late, after that time, the rest is
    less than nothing (iperf_udp_recv): nothing was lost. Beyond those few, and above all, the counts are not right.
    A receiver counts up to the last datagram that it saw. What was sent after that, while nothing arrived any more, is
    lost as well, and iperf3 does not say so.
    """
    packets, lost = received.packets, received.lost_packets
    if packets is None or packets < 0 or lost is None or received.seconds < _SHORTEST_S:
        return
    told = (sent.packets if sent is not None else None) or packets
    ended_early = told - packets > told * _UNDER_WAY_S / received.seconds
    expected = told if ended_early and told < _WRAPPED else packets
    if not expected or not -_LATE * packets <= lost <= packets:
        return
    arrived = packets - max(0, lost)
    yield _value("loss", (expected - arrived) / expected, "ratio", labels)
    if arrived:
        yield _value("goodput", arrived * datagram_bytes / received.seconds, "B/s", labels)
        if received.jitter_ms is not None and received.jitter_ms >= 0:
            yield _value("jitter", received.jitter_ms / _MS_PER_S, "s", labels)


def _value(metric: str, value: float, unit: Unit, labels: Labels) -> Measurement:
    return Measurement(metric=metric, value=value, unit=unit, labels=labels)
