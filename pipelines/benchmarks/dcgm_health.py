"""dcgm_health: what DCGM's watches saw of the GPUs and links of a node, without putting load on them (dcgmi health)."""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.benchmark import Benchmark, Command, Cost, Floor, Metric, Workplace
from pipelines.errors import UnknownOutput
from pipelines.families import dcgm_tool, probe_tool
from pipelines.records import Labels, Measurement, Outcome, Parsed, RawOutput, Record

_PROBE = "dcgm_health"
_CALLS_S = 5.0
_OVERALL = "Overall Health"
_VALUES = {"Healthy": 1, "Warning": 0, "Failure": 0}
_NAMES = dict.fromkeys(
    ("Internal error", ""), "unnamed"
)  # the first is what dcgmi calls a system that it does not know
_NOTES, _NOTE_LENGTH = 64, 500


class Params(Record):
    watch_s: Annotated[int, Field(ge=1, le=3600)] = Field(
        default=60, description="seconds of watching, where nothing was watched before; DCGM asks for 60"
    )


class _Call(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    what: str
    exit_status: int | None
    timed_out: bool
    stdout: str
    stderr: str


class _Document(probe_tool.Printed):
    calls: tuple[_Call, ...] = Field(strict=False, min_length=1)


class _Node(BaseModel):
    """A part of dcgmi's tree."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    value: str | None = None
    overflow: tuple[str, ...] = ()
    children: Mapping[str, "_Node"] = {}


class _Report(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    body: Mapping[str, _Node]


def case(params: Params) -> str:
    """`all`, `all-600s`."""
    usual: int = Params.model_fields["watch_s"].default
    return "all" if params.watch_s == usual else f"all-{params.watch_s}s"


def cost(params: Params) -> Cost:
    return Cost(seconds=_CALLS_S + params.watch_s, written_bytes=0)


def command(params: Params, _: Workplace) -> Command:
    return Command(argv=(probe_tool.PROGRAM, _PROBE, f"--watch-s={params.watch_s}"))


def required(_: Params) -> frozenset[str]:
    return frozenset({"healthy"})


def floors(_: Params) -> tuple[Floor, ...]:
    return (Floor("healthy", 1.0, "ratio", "DCGM's own judgement of what it watched"),)


def parse(raw: RawOutput) -> Parsed:
    """Judge and read one attempt. A GPU that is not healthy is a measurement.

    Raises:
        UnknownOutput: the probe ended well and printed something else than its document, or dcgmi another report.
    """
    document = probe_tool.read(raw, _PROBE, _Document)
    if isinstance(document, Parsed):
        return document
    for call in document.calls:
        if call.timed_out or call.exit_status is None:
            return Parsed(outcome=Outcome.TRUNCATED, reason=f"dcgmi health {call.what} did not end")
        if call.exit_status:
            return dcgm_tool.failure(call.exit_status, call.stdout + call.stderr)
    calls = {call.what: call for call in document.calls}
    if not {"-f", "-c"} <= set(calls):
        raise UnknownOutput(probe_tool.PROGRAM, "a fetch of the watches and a check", raw.stdout)
    report, watches = _read(calls["-c"].stdout), _read(calls["-f"].stdout)
    if _OVERALL not in report:
        raise UnknownOutput(dcgm_tool.TOOL, f"a report with {_OVERALL}", calls["-c"].stdout)
    measurements = (_healthy(report[_OVERALL], {}), *_parts(report))
    notes = (*_texts(report), *_unwatched(watches, was_set="-s" in calls))
    return Parsed(outcome=Outcome.OK, measurements=measurements, notes=notes[:_NOTES])


def _read(printed: str) -> Mapping[str, _Node]:
    try:
        return _Report.model_validate(dcgm_tool.document(printed)).body
    except (ValidationError, RecursionError) as e:
        raise UnknownOutput(dcgm_tool.TOOL, "a report of its health watches", printed) from e


def _entities(report: Mapping[str, _Node]) -> Iterator[tuple[Labels, _Node]]:
    for group, found in report.items():
        for number, node in found.children.items():
            if not re.fullmatch(r"\d{1,10}", number):
                raise UnknownOutput(dcgm_tool.TOOL, "the number of a GPU, a switch or a link", number)
            yield ({"gpu": number} if group == "GPU" else {"entity": f"{group} {number}"}), node


def _systems(node: _Node) -> Mapping[str, _Node]:
    """`memory` of "Memory system", and what is said of it."""
    errors = node.children.get("Errors", _Node()).children
    return {_NAMES.get(name, name.removesuffix(" system").lower().replace(" ", "_")): errors[name] for name in errors}


def _parts(report: Mapping[str, _Node]) -> Iterator[Measurement]:
    """What it names is not well: DCGM lists no healthy GPU."""
    for labels, node in _entities(report):
        yield _healthy(node, labels)
        for system, each in _systems(node).items():
            if not _value(each):
                severity = (each.value or "").lower()
                said = {**labels, "system": system, "severity": severity}
                yield Measurement(metric="incidents", value=1, unit="1", labels=said)


def _healthy(node: _Node, labels: Labels) -> Measurement:
    return Measurement(metric="healthy", value=_value(node), unit="ratio", labels=labels)


def _value(node: _Node) -> int:
    if node.value not in _VALUES:
        raise UnknownOutput(dcgm_tool.TOOL, "Healthy, Warning or Failure", str(node.value))
    return _VALUES[node.value]


def _texts(report: Mapping[str, _Node]) -> Iterator[str]:
    """What DCGM says, which it breaks into lines of 54 characters."""
    for labels, node in _entities(report):
        where = " ".join(f"{name} {value}" for name, value in labels.items())
        for system, each in _systems(node).items():
            yield f"{where}, {system}: {each.value}: {' '.join(each.overflow)}"[:_NOTE_LENGTH]


def _unwatched(watches: Mapping[str, _Node], *, was_set: bool) -> Iterator[str]:
    off = [name for name, node in watches.items() if node.value != "On"]
    if not was_set and off:
        yield f"somebody else has set the watches, and these are off: {', '.join(off)}"[:_NOTE_LENGTH]


BENCHMARK = Benchmark(
    name="dcgm_health",
    title="Health of the GPUs as DCGM watches them (dcgmi health)",
    caveat="It puts no load on anything: it says what the driver reported meanwhile. Where nothing was watched "
    "before, that is a minute in which the GPUs did nothing, and errors that need load do not show. Where somebody "
    "watches all the time, DCGM warns of power on any GPU that was at its limit for a moment, as busy ones are. It "
    "names only what is not healthy: a GPU without a row of its own is covered by the row of the node.",
    cadence="nightly",
    tool=probe_tool.PROGRAM,
    minimum_version=dcgm_tool.MINIMUM_VERSION,
    version_argv=(probe_tool.PROGRAM, _PROBE, "--version"),
    install_hint=dcgm_tool.INSTALL_HINT,
    writes=False,
    source="https://docs.nvidia.com/datacenter/dcgm/latest/user-guide/feature-overview.html",
    params=Params,
    metrics=(
        Metric("healthy", "ratio", "higher", 0.0, 1.0, "1: healthy, 0: warning or failure; without label gpu the node"),
        Metric("incidents", "1", "lower", 1.0, 64.0, "a system of a GPU that is not healthy (labels system, severity)"),
    ),
    case=case,
    cost=cost,
    required=required,
    command=command,
    version=dcgm_tool.version,
    parse=parse,
    floors=floors,
    needs=frozenset({"gpu"}),
)
