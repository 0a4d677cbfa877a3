"""perftest: what RDMA carries between two nodes, and how long a message takes; from host or GPU memory."""

from pipelines.benchmark import Benchmark, Command, Pair, Peer, Workplace
from pipelines.families import asked, perftest_results, perftest_tool
from pipelines.families.perftest_results import Ended
from pipelines.families.perftest_tool import Params
from pipelines.records import Parsed, RawOutput

_PORT = 18515  # perftest's own


def command(params: Params, workplace: Workplace) -> Command:
    """The client, which writes its document."""
    peer = workplace.peer or Peer("localhost", _PORT)  # as somebody would try it by hand
    argv = (
        perftest_tool.program(params),
        f"--port={peer.port}",
        *perftest_tool.arguments(params),
        "--out_json",
        f"--out_json_file={workplace.output}",
        peer.address,
    )
    return Command(argv=argv, labels={"peer_address": peer.address})


def serve(params: Params, port: int) -> Command:
    return Command(argv=(perftest_tool.program(params), f"--port={port}", *perftest_tool.arguments(params)))


def unanswered(raw: RawOutput) -> str | None:
    """Why there was no server: nobody listened on its port. One that listens is free, for it ends after its client."""
    return perftest_results.unanswered(raw.stdout, raw.stderr) if raw.exit_status else None


def parse(raw: RawOutput) -> Parsed:
    """Judge and read one attempt of a client.

    Raises:
        UnknownOutput: perftest ended well and printed something else than its results.
    """
    params = asked.params(raw, Params, "perftest")
    if isinstance(params, Parsed):
        return params
    ended = Ended.model_validate({name: getattr(raw, name) for name in Ended.model_fields})
    return perftest_results.parse(ended, params, raw.job.timeout_s)


BENCHMARK = Benchmark(
    name="perftest",
    title="RDMA between two nodes (perftest)",
    caveat="It says what one pair of adapters does for one kind of verb and one size while the rest of the fabric is "
    "quiet: not what many pairs at once leave each other, and not what a collective reaches. With GPUDirect it tells "
    "whether the way to the memory of one GPU is as good as that to the host's, for one adapter.",
    cadence="nightly",
    tool="ib_write_bw",
    programs=perftest_tool.PROGRAMS,
    minimum_version=perftest_tool.MINIMUM_VERSION,
    version_argv=("ib_write_bw", "--version"),
    install_hint=perftest_tool.INSTALL_HINT,
    writes=False,
    source=perftest_tool.SOURCE,
    params=Params,
    metrics=perftest_tool.metrics(),
    case=perftest_tool.case,
    cost=perftest_tool.cost,
    required=perftest_tool.required,
    command=command,
    version=perftest_tool.version,
    parse=parse,
    pair=Pair(
        serve=serve, unanswered=unanswered, served=perftest_results.served, compared="bandwidth"
    ),  # latency cases have none, and are not compared
    needs=frozenset({"rdma"}),
)
