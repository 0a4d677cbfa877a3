"""perftest_loopback: what one RDMA adapter of this node carries to itself; no other node and no switch is in it."""

from pydantic import ValidationError

from pipelines.benchmark import Benchmark, Command, Cost, Workplace
from pipelines.errors import UnknownOutput
from pipelines.families import perftest_results, perftest_tool, probe_tool
from pipelines.families.perftest_results import Ended
from pipelines.families.perftest_tool import Params
from pipelines.records import Parsed, RawOutput, Record

_PROBE = "perftest_loopback"
_STARTING_S = 2.0  # two programs and the probe
_WITHIN = 3.0  # times what is expected; the job's own timeout is longer


class _Program(Record):
    """How client or server ended."""

    argv: tuple[str, ...]
    exit_status: int | None
    signal: int | None
    timed_out: bool
    stdout: str
    stderr: str


class _Client(_Program):
    output: str | None


class _Document(probe_tool.Printed):
    """What the probe prints. No server: it did not end by itself."""

    client: _Client
    server: _Program | None


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
    try:
        params = Params.model_validate(dict(raw.job.params))
    except ValidationError as e:
        raise UnknownOutput(_PROBE, "a job with parameters of this benchmark", str(dict(raw.job.params))) from e
    return perftest_results.parse(_ended(raw, found), params)


def _ended(raw: RawOutput, document: _Document) -> Ended:
    """The client; or the server, where the client met none because it had failed."""
    client, server = document.client, document.server
    met_none = perftest_results.unanswered(client.stdout, client.stderr) is not None
    who = server if met_none and server is not None and server.exit_status else client
    return Ended(
        argv=who.argv,
        exit_status=who.exit_status,
        signal=who.signal,
        timed_out=who.timed_out,
        timeout_s=raw.job.timeout_s,
        stdout=who.stdout,
        stderr=who.stderr,
        output=client.output if who is client else None,
    )


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
