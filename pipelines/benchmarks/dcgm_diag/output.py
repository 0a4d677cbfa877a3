"""What a diagnostic of DCGM says of each GPU: which tests it passed, which errors it has, and how fast it was."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping

from pipelines.benchmarks.dcgm_diag.document import Diagnostic, Result, Said, read
from pipelines.errors import UnknownOutput
from pipelines.families import dcgm_tool
from pipelines.records import Measurement, Outcome, Parsed, RawOutput

_RAN = (0, 226, 205)  # nothing failed; something failed; a GPU is to be isolated (DCGM_ST_NVVS_*_ERROR)
_SEVERITIES = ("none", "monitor", "isolate", "unknown", "triage", "configuration", "reset")
_CATEGORIES = (
    "none", "performance_threshold", "performance_violation", "software_configuration", "software_library", "xid",
    "cuda", "eud", "software_other", "thermal", "memory", "nvlink", "nvswitch", "pcie", "power", "hardware_other",
    "internal",
)  # fmt: skip
_CONFIGURATION = _SEVERITIES.index("configuration")
_PER_GB, _PER_GIGAFLOP = 10**9, 2**30  # PcieMain.cpp divides by 1e9, DiagnosticPlugin.cpp by 1024 * 1024 * 1024
_OF_GPU = r"(?:GPU (\d{1,6}):? )?"  # a result of several GPUs says whose each number is
_BANDWIDTH = re.compile(_OF_GPU + r"\b([A-Za-z][A-Za-z ]{0,40}?) bandwidth:\s*(\d{1,9}(?:\.\d{1,6})?) GB/s")
_GIGAFLOPS = re.compile(_OF_GPU + r"calculated at approximately (\d{1,12}(?:\.\d{1,6})?) gigaflops")
_NOTES, _NOTE_LENGTH = 64, 300

Labelled = tuple[tuple[str, str], ...]


def parse(raw: RawOutput) -> Parsed:
    """Judge and read one attempt. A GPU that fails a test is a measurement; a diagnostic that did not run is none.

    Raises:
        UnknownOutput: it ended well, or with a result, and printed something else than a diagnostic.
    """
    if raw.refusal is not None:
        return Parsed(outcome=raw.refusal.outcome, reason=raw.refusal.reason)
    if raw.timed_out or raw.exit_status is None:
        how = f"after {raw.job.timeout_s:g} s" if raw.timed_out else f"by signal {raw.signal}"
        return Parsed(outcome=Outcome.TRUNCATED, reason=f"dcgmi diag was ended {how}")
    diagnostic = read(raw.stdout)
    if diagnostic is None:
        if raw.exit_status == 0:
            raise UnknownOutput(dcgm_tool.TOOL, "a diagnostic", raw.stdout)
        return dcgm_tool.failure(raw.exit_status, raw.stdout + raw.stderr)
    if diagnostic.runtime_error is not None:
        parsed = dcgm_tool.failure(raw.exit_status, raw.stdout, diagnostic.runtime_error)
        is_mig = "MIG" in diagnostic.runtime_error and parsed.outcome is Outcome.TOOL_FAILED
        return parsed.model_copy(update={"outcome": Outcome.CONFIG}) if is_mig else parsed
    if raw.exit_status not in _RAN:
        return dcgm_tool.failure(raw.exit_status, raw.stderr)
    return _judged(diagnostic, raw.exit_status)


def _judged(diagnostic: Diagnostic, exit_status: int) -> Parsed:
    passed = _passed(diagnostic)
    notes = tuple(_notes(diagnostic))[:_NOTES]
    reason, outcome = "", Outcome.OK
    if exit_status and not any(result.fails or result.warnings for _, result in _results(diagnostic)):
        reason = f"dcgmi ended with exit status {exit_status}, though no test in its result failed"
        return Parsed(outcome=Outcome.TOOL_FAILED, reason=reason, notes=notes)
    if not passed:
        if any(result.fails for _, result in _results(diagnostic)):
            outcome = Outcome.CONFIG
        elif any(result.skipped for _, result in _results(diagnostic)):
            outcome = Outcome.NOT_MEASURED
        else:
            outcome = Outcome.TRUNCATED
        reason = "; ".join(notes[:3]) or "none of its tests has a result"
    measurements = [_measured("passed", value, labels) for labels, value in passed.items()]
    measurements += [_measured("errors", count, labels) for labels, count in _errors(diagnostic).items()]
    measurements += _numbers(diagnostic)
    return Parsed(outcome=outcome, reason=reason, measurements=tuple(measurements), notes=notes)


def _passed(diagnostic: Diagnostic) -> Mapping[Labelled, int]:
    """1 or 0 for each test and GPU that it tells of. A skipped one has none, nor one whose set-up is at fault."""
    found: dict[Labelled, int] = {}
    for test, result in _results(diagnostic):
        if result.passes or (result.fails and not _is_configuration(result)):
            for about in result.about:
                labels = (*about.items(), ("test", test))
                found[labels] = min(found.get(labels, 1), int(result.passes))
    return found


def _errors(diagnostic: Diagnostic) -> Counter[Labelled]:
    return Counter(
        (
            *about.items(),
            ("test", test),
            ("severity", _word(_SEVERITIES, said.error_severity)),
            ("category", _word(_CATEGORIES, said.error_category)),
            ("error", "unknown" if said.error_id is None else str(said.error_id)),
        )
        for test, result in _results(diagnostic)
        if not result.skipped
        for about in result.about
        for said in result.warnings
    )


def _numbers(diagnostic: Diagnostic) -> Iterator[Measurement]:
    """The rates in what a test says beside its status; each once."""
    seen: dict[tuple[str, Labelled], float] = {}
    for test, result in _results(diagnostic):
        for gpu in (about["gpu"] for about in result.about if "gpu" in about):
            place = (("gpu", gpu), ("test", test))
            for text in result.info:
                for whose, words, number in _BANDWIDTH.findall(text):
                    if whose in ("", gpu):
                        direction = "_".join(words.lower().split())
                        seen["bandwidth", (*place, ("direction", direction))] = float(number) * _PER_GB
                for whose, number in _GIGAFLOPS.findall(text):
                    if whose in ("", gpu):
                        seen["flops", place] = float(number) * _PER_GIGAFLOP
    for (metric, labels), value in seen.items():
        unit = "B/s" if metric == "bandwidth" else "FLOP/s"
        yield Measurement.model_validate({"metric": metric, "value": value, "unit": unit, "labels": dict(labels)})


def _results(diagnostic: Diagnostic) -> Iterator[tuple[str, Result]]:
    for test in diagnostic.tests:
        for result in test.all_results:
            yield test.label, result


def _notes(diagnostic: Diagnostic) -> Iterator[str]:
    for test, result in _results(diagnostic):
        if result.passes and not result.warnings:
            continue
        how = "was skipped" if result.skipped else "passed with a warning"
        if result.fails:
            how = "failed because of the node's set-up" if _is_configuration(result) else "failed"
        where = ", ".join(
            " ".join(f"{name} {value}" for name, value in about.items()) or "node" for about in result.about
        )
        said = "; ".join([each.text for each in result.warnings] or result.info) or "no reason given"
        yield f"{test} {how} on {where}: {said}"[:_NOTE_LENGTH]


def _is_configuration(result: Result) -> bool:
    """Whether all that it warns of is configuration, which says nothing about the GPU."""
    return bool(result.warnings) and all(_says_configuration(each) for each in result.warnings)


def _says_configuration(said: Said) -> bool:
    return said.error_severity == _CONFIGURATION


def _word(words: tuple[str, ...], number: int | None) -> str:
    if number is None:
        return "unknown"
    return words[number] if 0 <= number < len(words) else str(number)


def _measured(metric: str, value: int, labels: Labelled) -> Measurement:
    return Measurement(metric=metric, value=value, unit="ratio" if metric == "passed" else "1", labels=dict(labels))
