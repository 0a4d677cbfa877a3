"""A benchmark of tests that are about datasets: coreutils' sha256sum over the files that its job is given."""

from pipelines.benchmark import Benchmark, Command, Cost, Metric, Workplace
from pipelines.records import Measurement, Outcome, Parsed, RawOutput, Record


class Params(Record):
    file: str


def command(params: Params, workplace: Workplace) -> Command:
    return Command(argv=("sha256sum", f"{workplace.files}/{params.file}"))


def parse(raw: RawOutput) -> Parsed:
    if raw.exit_status != 0:
        return Parsed(outcome=Outcome.TOOL_FAILED, reason=raw.stderr)
    return Parsed(outcome=Outcome.OK, measurements=(Measurement(metric="files", value=1.0, unit="1"),))


BENCHMARK = Benchmark(
    name="sha256sum",
    title="sha256sum",
    caveat="It is no measurement.",
    cadence="on demand",
    tool="sha256sum",
    minimum_version=(8,),
    version_argv=("sha256sum", "--version"),
    install_hint="apt-get install coreutils",
    writes=False,
    source="coreutils",
    params=Params,
    metrics=(Metric("files", "1", "neither", 1, 1, "files that were read"),),
    case=lambda _: "read",
    cost=lambda _: Cost(seconds=0.1, written_bytes=0),
    required=lambda _: frozenset({"files"}),
    command=command,
    version=lambda text: text.split("\n")[0].split()[-1],
    parse=parse,
    files=lambda params: (params.file,),
)
