"""iperf3: what the network between two nodes carries, TCP and UDP, in either direction or both at once."""

import re

from pipelines.benchmark import Benchmark, Command, Cost, Metric, Pair, Peer, Workplace
from pipelines.benchmarks.iperf3.output import parse, required, served, unanswered
from pipelines.benchmarks.iperf3.params import Params, case

_PORT = 5201  # iperf3's own
_BITS_PER_BYTE = 8
_CONNECT_TIMEOUT_MS = 5000
_SETTLING_S = 1.0  # connecting, and exchanging the results


def cost(params: Params) -> Cost:
    return Cost(seconds=params.omit_s + params.duration_s + _SETTLING_S, written_bytes=0)


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


BENCHMARK = Benchmark(
    name="iperf3",
    title="Network between two nodes (iperf3)",
    caveat="It says what TCP or UDP of the two kernels carries between two nodes at that time, with both ends' "
    "processors in it; not what RDMA carries, and not what many pairs at once would leave each other.",
    cadence="nightly",
    tool="iperf3",
    minimum_version=(3, 9),  # the oldest that was run, of Ubuntu 22.04 and RHEL 9
    version_argv=("iperf3", "--version"),
    install_hint="apt-get install iperf3",
    writes=False,
    source="https://software.es.net/iperf/invoking.html",
    params=Params,
    metrics=(
        Metric("goodput", "B/s", "higher", 1.0, 1e12, "payload that arrived per second, all streams together"),
        Metric("retransmits", "1", "lower", 0.0, 1e9, "TCP segments that were sent again"),
        Metric(
            "rtt_mean", "s", "lower", 1e-6, 60.0, "mean round trip of the streams that the client sends, under load"
        ),
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
