"""The beginning of a new benchmark: a module, a sample and a test that work as they stand, to be changed step by step.

They wrap dd, which every machine has, and which from /dev/zero to /dev/null harms nothing.
"""

import keyword
import re
from collections.abc import Collection, Mapping
from pathlib import Path

_NAME = re.compile(r"[a-z][a-z0-9_]{1,39}")
_NEEDED = ("pipelines/benchmarks", "tests/benchmarks", "tests/samples")

_MODULE = '''\
"""@NAME@: how fast dd copies zeros; replace it by what you measure."""

import re
from typing import Annotated

from pydantic import Field

from pipelines.benchmark import Benchmark, Command, Cost, Metric, Workplace
from pipelines.errors import UnknownOutput
from pipelines.records import Measurement, Outcome, Parsed, RawOutput, Record

_MIB = 2**20
_SLOW_BYTES_PER_S = 1e9
_STARTING_S = 0.5
_COPIED = re.compile(r"^(\\d{1,18}) bytes .*copied, (\\d{1,9}(?:\\.\\d{1,12})?(?:e-\\d{1,2})?) s, ", re.MULTILINE)


class Params(Record):
    """What can be asked of the tool. It refuses what the tool could not run, and no field is a path."""

    mib: Annotated[int, Field(ge=1, le=100_000)] = Field(default=1024, description="MiB that are copied")


def case(params: Params) -> str:
    """What a set of parameters is called in tables: `1024MiB`."""
    return f"{params.mib}MiB"


def cost(params: Params) -> Cost:
    """Expected seconds, and the most bytes that it ever has on the disk. The plan and the guard believe it."""
    return Cost(seconds=_STARTING_S + params.mib * _MIB / _SLOW_BYTES_PER_S, written_bytes=0)


def required(_: Params) -> frozenset[str]:
    """The metrics without which an attempt is not OK."""
    return frozenset({"bandwidth"})


def command(params: Params, _: Workplace) -> Command:
    """A tuple of words: nothing reaches a shell. A tool that writes files does so in the workplace's scratch."""
    return Command(argv=("dd", "if=/dev/zero", "of=/dev/null", "bs=1M", f"count={params.mib}"))


def version(text: str) -> str | None:
    """`9.1` of `dd (coreutils) 9.1`."""
    found = re.search(r"^dd \\(coreutils\\) (\\d+(?:\\.\\d+)+)", text, re.MULTILINE)
    return found[1] if found else None


def parse(raw: RawOutput) -> Parsed:
    """Judge and read one attempt. What is missing stays missing, and is no zero.

    Raises:
        UnknownOutput: the tool ended well and printed something else than its result.
    """
    if raw.refusal is not None:
        return Parsed(outcome=raw.refusal.outcome, reason=raw.refusal.reason)
    if raw.timed_out or raw.signal is not None:
        return Parsed(outcome=Outcome.TRUNCATED, reason="dd was ended before it was done")
    if raw.exit_status:
        said = raw.stderr.strip().rpartition("\\n")[2][:300] or "it gave no reason"
        return Parsed(outcome=Outcome.TOOL_FAILED, reason=f"dd ended with exit status {raw.exit_status}: {said}")
    found = _COPIED.search(raw.stderr)
    seconds = float(found[2]) if found else 0.0
    if found is None or not int(found[1]) or not seconds:
        raise UnknownOutput("dd", "bytes, and the seconds in which they were copied", raw.stderr)
    labels = {"block_size": str(_MIB)}
    measured = Measurement(metric="bandwidth", value=int(found[1]) / seconds, unit="B/s", labels=labels)
    return Parsed(outcome=Outcome.OK, measurements=(measured,))


BENCHMARK = Benchmark(
    name="@NAME@",
    title="Copying zeros (dd)",
    caveat="It shows how fast one processor clears memory, and nothing of any disk.",
    cadence="on demand",
    tool="dd",
    minimum_version=(8, 24),
    version_argv=("dd", "--version"),
    install_hint="apt-get install coreutils",
    writes=False,
    source="https://www.gnu.org/software/coreutils/manual/html_node/dd-invocation.html",
    params=Params,
    metrics=(Metric("bandwidth", "B/s", "higher", 1e6, 1e13, "bytes copied per second"),),
    case=case,
    cost=cost,
    required=required,
    command=command,
    version=version,
    parse=parse,
)
'''

_SAMPLE = """\
1024+0 records in
1024+0 records out
1073741824 bytes (1.1 GB, 1.0 GiB) copied, 0.0589564 s, 18.2 GB/s
"""

_TEST = '''\
"""@NAME@: real outputs, damaged ones, and the tool itself."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import benchmark, process
from pipelines.benchmark import Workplace
from pipelines.errors import BadParameter, UnknownOutput
from pipelines.records import Measurement, Outcome, Parsed, RawOutput
from tests import make

BENCHMARK = benchmark.get("@NAME@")
SAMPLE = (Path(__file__).parents[1] / "samples/@NAME@/9.1-default.txt").read_text()


def raw(stderr: str, **fields: Any) -> RawOutput:
    job = make.job(benchmark=BENCHMARK.name, case="1024MiB", params={"mib": 1024})
    return make.raw(job, tool=BENCHMARK.tool, **{"stderr": stderr, **fields})


def test_a_real_output_gives_exactly_this_result() -> None:
    value = 1073741824 / 0.0589564
    measured = Measurement(metric="bandwidth", value=value, unit="B/s", labels={"block_size": "1048576"})
    assert BENCHMARK.parse(raw(SAMPLE)) == Parsed(outcome=Outcome.OK, measurements=(measured,))


def test_the_tool_itself_gives_a_value_in_the_honest_range(tmp_path: Path) -> None:
    params = BENCHMARK.checked_params({"mib": 16})
    argv = BENCHMARK.command(params, Workplace(tmp_path, tmp_path / "output", True, "9.1")).argv
    done = process.run(argv, timeout_s=60, cwd=tmp_path)
    parsed = BENCHMARK.parse(raw(done.stderr, exit_status=done.exit_status, signal=done.signal))
    assert parsed.outcome is Outcome.OK
    (measured,) = parsed.measurements
    metric = BENCHMARK.metric(measured.metric)
    assert metric.low <= measured.value <= metric.high


def test_a_tool_that_failed_is_no_measurement() -> None:
    parsed = BENCHMARK.parse(raw("dd: error writing '/dev/full': No space left on device\\n", exit_status=1))
    assert (parsed.outcome, parsed.measurements) == (Outcome.TOOL_FAILED, ())


def test_a_parameter_that_the_tool_could_not_run_with_is_refused() -> None:
    with pytest.raises(BadParameter):
        BENCHMARK.checked_params({"mib": 0})


@given(st.integers(0, len(SAMPLE)), st.text(max_size=20), st.integers(0, len(SAMPLE)))
def test_a_damaged_output_is_parsed_honestly_or_refused(start: int, put: str, end: int) -> None:
    try:
        parsed = BENCHMARK.parse(raw(SAMPLE[:start] + put + SAMPLE[end:]))
    except UnknownOutput:
        return
    assert all(measured.value > 0 for measured in parsed.measurements)
'''


def problem_with(name: str, known: Collection[str]) -> str | None:
    """Why a new benchmark cannot be called so; None when it can. Pure."""
    if not _NAME.fullmatch(name) or keyword.iskeyword(name) or keyword.issoftkeyword(name):
        return (
            "a name has 2 to 40 small letters, digits and underscores, begins with a letter, and is no Python keyword"
        )
    if name in known:
        return "there is a benchmark of that name"
    return None


def files(name: str) -> Mapping[str, str]:
    """What is written, by its path below the root of a checkout. Pure."""
    return {
        f"pipelines/benchmarks/{name}.py": _MODULE.replace("@NAME@", name),
        f"tests/samples/{name}/9.1-default.txt": _SAMPLE,
        f"tests/benchmarks/test_{name}.py": _TEST.replace("@NAME@", name),
    }


def write(root: Path, name: str) -> tuple[Path, ...]:
    """Write them into the checkout at `root`; what is there already is never overwritten.

    Raises:
        FileExistsError: a part of a benchmark of that name is there.
        FileNotFoundError: `root` is no checkout.
    """
    if absent := [folder for folder in _NEEDED if not (root / folder).is_dir()]:
        raise FileNotFoundError(f"{root} has no {absent[0]}: it is no checkout of fleetmark")
    made = {root / path: text for path, text in files(name).items()}
    taken = [path for path in (root / "pipelines/benchmarks" / name, *made) if path.exists()]
    if taken:
        raise FileExistsError(f"{taken[0].relative_to(root)} is there already")
    for path, text in made.items():
        path.parent.mkdir(exist_ok=True)
        with path.open("x") as file:
            file.write(text)
    return tuple(made)
