"""iperf3: what the network between two nodes carries, TCP and UDP, in either direction or both at once."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, ValidationError, model_validator

from pipelines.benchmark import Benchmark, Command, Cost, Metric, Pair, Peer, Workplace
from pipelines.errors import UnknownOutput
from pipelines.records import Labels, Measurement, Outcome, Parsed, RawOutput, Record, Unit

_PORT = 5201  # iperf3's own
_BITS_PER_BYTE = 8
_PERCENT = 100
_MS_PER_S = 10**3
_US_PER_S = 10**6
_FULL = 0.95  # of the time asked for
_CONNECT_TIMEOUT_MS = 5000
_SETTLING_S = 1.0  # connecting, and exchanging the results
_AWAY = re.compile(
    r"Connection refused|server is busy|timed out|No route to host|Network is unreachable|Host is down"
    r"|Temporary failure in name resolution|Operation now in progress"
)
_CONFIG = re.compile(r"not known|No address associated|unrecognized option|parameter|Unknown control message")

Direction = Literal["forward", "reverse", "both"]


class Params(Record):
    """One load between two nodes. None of it is a path, an address or free text."""

    protocol: Literal["tcp", "udp"] = Field(default="tcp", description="TCP for goodput, UDP for loss and jitter")
    streams: Annotated[int, Field(ge=1, le=128)] = Field(default=1, description="connections side by side")
    direction: Direction = Field(
        default="forward", description="forward: from client to server; reverse: back; both: at once"
    )
    duration_s: Annotated[int, Field(ge=1, le=3600)] = Field(default=5, description="seconds that are measured")
    omit_s: Annotated[int, Field(ge=0, le=60)] = Field(default=1, description="seconds before them, not counted")
    udp_rate: Annotated[int, Field(ge=1000, le=10**11)] = Field(
        default=125_000_000, description="of UDP, bytes per second and direction that are sent, all streams together"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.udp_rate < self.streams:
            raise ValueError("less than a byte per second for each stream")
        return self


def case(params: Params) -> str:
    """`tcp`, `tcp-reverse-j8`, `udp-r1000000`."""
    tokens: list[str] = [params.protocol]
    if params.direction != "forward":
        tokens.append(params.direction)
    if params.streams != 1:
        tokens.append(f"j{params.streams}")
    if params.protocol == "udp" and params.udp_rate != Params.model_fields["udp_rate"].default:
        tokens.append(f"r{params.udp_rate}")
    return "-".join(tokens)


def cost(params: Params) -> Cost:
    return Cost(seconds=params.omit_s + params.duration_s + _SETTLING_S, written_bytes=0)


def required(params: Params) -> frozenset[str]:
    return frozenset({"goodput"} if params.protocol == "tcp" else {"goodput", "loss", "jitter"})


def command(params: Params, workplace: Workplace) -> Command:
    """The client. Its document holds the server's as well."""
    peer = workplace.peer or Peer("localhost", _PORT)  # as somebody would try it by hand
    rate = params.udp_rate * _BITS_PER_BYTE // params.streams  # iperf3 takes that of each stream
    argv = (
        "iperf3",
        f"--client={peer.address}",
        f"--port={peer.port}",
        "--json",
        "--get-server-output",
        f"--connect-timeout={_CONNECT_TIMEOUT_MS}",
        f"--time={params.duration_s}",
        f"--omit={params.omit_s}",
        f"--parallel={params.streams}",
        *(("--udp", f"--bitrate={rate}") if params.protocol == "udp" else ()),
        *{"forward": (), "reverse": ("--reverse",), "both": ("--bidir",)}[params.direction],
    )
    return Command(argv=argv, labels={"peer_address": peer.address})


def serve(_: Params, port: int) -> Command:
    return Command(argv=("iperf3", "--server", "--one-off", f"--port={port}", "--json"))


def version(text: str) -> str | None:
    """`3.12` of `iperf 3.12 (cJSON 1.7.15)`."""
    found = re.search(r"^iperf (3(?:\.\d+)+\S*)", text, re.MULTILINE)
    return found.group(1) if found else None


# --- what it prints -----------------------------------------------------------------------------------------


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class _Sum(_Part):
    """`sum_sent`, `sum_received`. `packets` and what follows are UDP's."""

    bytes: Annotated[int, Field(ge=0)]
    seconds: NonNegativeFloat
    retransmits: int | None = None
    packets: int | None = None
    lost_packets: int | None = None
    jitter_ms: float | None = None


class _Sender(_Part):
    mean_rtt: int | None = None  # microseconds; 0 where the other side sends
    sender: bool = True


class _Stream(_Part):
    sender: _Sender | None = None


class _Cpu(_Part):
    host_total: NonNegativeFloat
    remote_total: NonNegativeFloat


class _End(_Part):
    streams: tuple[_Stream, ...] = ()
    sum_sent: _Sum | None = None
    sum_received: _Sum | None = None
    sum_sent_bidir_reverse: _Sum | None = None
    sum_received_bidir_reverse: _Sum | None = None
    cpu_utilization_percent: _Cpu | None = None


class _TestStart(_Part):
    blksize: Annotated[int, Field(gt=0)]


class _Start(_Part):
    connected: tuple[Mapping[str, Any], ...] = ()
    test_start: _TestStart | None = None


class _Document(_Part):
    """What client and server print with `--json`. iperf3 3.12 exits with 0 whatever `error` says."""

    start: _Start
    end: _End = _End()
    error: str | None = None


def _document(printed: str) -> _Document | None:
    start = printed.find("{")
    if start < 0:
        return None
    try:
        return _Document.model_validate(json.JSONDecoder().raw_decode(printed, start)[0])
    except (ValueError, RecursionError):  # pydantic's and json's own are ValueErrors
        return None


def unanswered(raw: RawOutput) -> str | None:
    """Why there was no server that was free: what iperf3 says when it is refused, gets no answer, or comes second."""
    document = _document(raw.stdout)
    if document is None or document.error is None or document.end.sum_received is not None:
        return None
    return document.error if _AWAY.search(document.error) and not document.start.connected else None


def served(printed: str) -> bool:
    """Whether a client's streams were connected, so that it was one, and not a port scan."""
    document = _document(printed)
    return document is not None and bool(document.start.connected)


def parse(raw: RawOutput) -> Parsed:
    """Judge and read one attempt of a client.

    Raises:
        UnknownOutput: iperf3 ended well and printed something else than its document.
    """
    if raw.refusal is not None:
        return Parsed(outcome=raw.refusal.outcome, reason=raw.refusal.reason)
    try:
        params = Params.model_validate(dict(raw.job.params))
    except ValidationError as e:
        raise UnknownOutput("iperf3", "a job with parameters of this benchmark", str(dict(raw.job.params))) from e
    document = _document(raw.stdout)
    if document is None:
        return Parsed(outcome=(ended := _without_document(raw))[0], reason=ended[1])
    if document.error is not None:
        return Parsed(outcome=_of_error(raw, document), reason=f"iperf3: {document.error}")
    measurements = tuple(_measurements(params, document))
    reason = _interrupted(raw) or _short(params, document) or _missing(params, measurements)
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


def _of_error(raw: RawOutput, document: _Document) -> Outcome:
    if unanswered(raw) is not None:
        return Outcome.NOT_MEASURED
    if document.start.connected:  # it began
        return Outcome.TRUNCATED
    return Outcome.CONFIG if _CONFIG.search(document.error or "") else Outcome.TOOL_FAILED


def _ways(params: Params, end: _End) -> Iterator[tuple[str, _Sum | None, _Sum | None]]:
    """Each direction with what its sender and its receiver counted."""
    if params.direction != "both":
        yield params.direction, end.sum_sent, end.sum_received
    else:
        yield "forward", end.sum_sent, end.sum_received
        yield "reverse", end.sum_sent_bidir_reverse, end.sum_received_bidir_reverse


def _short(params: Params, document: _Document) -> str:
    for way, _, received in _ways(params, document.end):
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


def _measurements(params: Params, document: _Document) -> Iterator[Measurement]:
    shared = {"protocol": params.protocol, "streams": str(params.streams)}
    if params.protocol == "udp":
        shared["udp_rate"] = str(params.udp_rate)
    for way, sent, received in _ways(params, document.end):
        labels = {**shared, "direction": way}
        if params.protocol == "tcp":
            yield from _tcp(labels, sent, received)
        elif received is not None and document.start.test_start is not None:
            yield from _udp(labels, received, document.start.test_start.blksize)
    labels = {**shared, "direction": params.direction}
    round_trips = [
        stream.sender.mean_rtt for stream in document.end.streams if stream.sender and stream.sender.mean_rtt
    ]
    if round_trips:
        yield _value("rtt_mean", sum(round_trips) / len(round_trips) / _US_PER_S, "s", labels)
    if (cpu := document.end.cpu_utilization_percent) is not None:
        yield _value("client_cores", cpu.host_total / _PERCENT, "1", labels)
        yield _value("server_cores", cpu.remote_total / _PERCENT, "1", labels)


def _tcp(labels: Labels, sent: _Sum | None, received: _Sum | None) -> Iterator[Measurement]:
    """What arrived is the goodput; what was sent may still lie in a buffer. No byte is no measurement of a rate."""
    if received is not None and received.seconds and received.bytes:
        yield _value("goodput", received.bytes / received.seconds, "B/s", labels)
    if sent is not None and sent.retransmits is not None:
        yield _value("retransmits", sent.retransmits, "1", labels)


def _udp(labels: Labels, received: _Sum, datagram_bytes: int) -> Iterator[Measurement]:
    """From what was not lost: the receiver's bytes in the client's document are the sender's in some versions."""
    if not received.packets or received.lost_packets is None or not received.seconds:
        return
    arrived = received.packets - received.lost_packets
    yield _value("loss", received.lost_packets / received.packets, "ratio", labels)
    if arrived > 0:
        yield _value("goodput", arrived * datagram_bytes / received.seconds, "B/s", labels)
        if received.jitter_ms is not None:
            yield _value("jitter", received.jitter_ms / _MS_PER_S, "s", labels)


def _value(metric: str, value: float, unit: Unit, labels: Labels) -> Measurement:
    return Measurement(metric=metric, value=value, unit=unit, labels=labels)


BENCHMARK = Benchmark(
    name="iperf3",
    title="Network between two nodes (iperf3)",
    tool="iperf3",
    minimum_version=(3, 12),  # the oldest that was run
    version_argv=("iperf3", "--version"),
    install_hint="apt-get install iperf3",
    writes=False,
    source="https://software.es.net/iperf/invoking.html",
    params=Params,
    metrics=(
        Metric("goodput", "B/s", "higher", 1.0, 1e12, "payload that arrived per second, all streams together"),
        Metric("retransmits", "1", "lower", 0.0, 1e9, "TCP segments that were sent again"),
        Metric("rtt_mean", "s", "lower", 1e-6, 60.0, "mean round trip of the client's streams under load"),
        Metric("loss", "ratio", "lower", 0.0, 1.0, "share of the UDP datagrams that did not arrive"),
        Metric("jitter", "s", "lower", 0.0, 10.0, "variation of the UDP datagrams' transit time (RFC 3550)"),
        Metric("client_cores", "1", "neither", 0.0, 1024.0, "processor cores that the client's iperf3 kept busy"),
        Metric("server_cores", "1", "neither", 0.0, 1024.0, "processor cores that the server's iperf3 kept busy"),
    ),
    case=case,
    cost=cost,
    required=required,
    command=command,
    version=version,
    parse=parse,
    pair=Pair(serve=serve, unanswered=unanswered, served=served),
)
