"""perftest_loopback: what one RDMA adapter of this node carries to itself; no other node and no switch is in it."""

from pipelines.benchmark import Benchmark, Command, Cost, Workplace
from pipelines.families import asked, perftest_results, perftest_tool, probe_tool
from pipelines.families.perftest_results import Ended
from pipelines.families.perftest_tool import Params
from pipelines.records import Parsed, RawOutput

_PROBE = "perftest_loopback"
_STARTING_S = 2.0  # two programs and the probe
_WITHIN = 3.0  # times what is expected; the job's own timeout is longer


class _Document(probe_tool.Printed):
    """What the probe prints. No server: it did not end by itself."""

    client: Ended
    server: Ended | None


def cost(params: Params) -> Cost:
    return Cost(seconds=perftest_tool.cost(params).seconds + _STARTING_S, written_bytes=0)


def command(params: Params, _: Workplace) -> Command:
    within = f"--within={cost(params).seconds * _WITHIN:g}"
    return Command(
        argv=(probe_tool.PROGRAM, _PROBE, within, perftest_tool.program(params), *perftest_tool.arguments(params))
    )


def parse(raw: RawOutput) -> Parsed:
    """Judge and read one attempt.

    Raises:
        UnknownOutput: the probe ended well and printed something else than its document, or perftest did.
    """
    found = probe_tool.read(raw, _PROBE, _Document)
    if isinstance(found, Parsed):
        return found
    params = asked.of_run(raw, Params, _PROBE)
    return perftest_results.parse(_telling(found), params, raw.job.timeout_s)


def _telling(document: _Document) -> Ended:
    """How the client ended; or the server, where the client met none because it had failed."""
    client, server = document.client, document.server
    met_none = perftest_results.unanswered(client.stdout, client.stderr) is not None
    return server if met_none and server is not None and (server.exit_status or server.signal) else client


BENCHMARK = Benchmark(
    name="perftest_loopback",
    title="RDMA adapter of the node, with itself (perftest)",
    caveat="The messages do not leave the adapter, or turn at its port: it says what PCI Express, memory and the "
    "adapter can do, and nothing of cables, switches and other nodes. Both ends share the adapter's link to the host, "
    "so that the bandwidth may lie below that between two nodes.",
    cadence="nightly",
    tool=probe_tool.PROGRAM,
    minimum_version=perftest_tool.MINIMUM_VERSION,
    version_argv=(probe_tool.PROGRAM, _PROBE, "--version"),
    install_hint=perftest_tool.INSTALL_HINT,
    writes=False,
    source=perftest_tool.SOURCE,
    params=Params,
    metrics=perftest_tool.metrics(),
    case=perftest_tool.case,
    cost=cost,
    required=perftest_tool.required,
    command=command,
    version=perftest_tool.version,
    parse=parse,
    needs=frozenset({"rdma"}),
)
