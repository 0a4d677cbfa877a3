"""Validation of a batch with Great Expectations: which rows are believed, and what is missing. The only place of GX.

Its import costs 6 to 8 s of CPU and 270 MB, so it happens in here and once per batch. The decision is published in one
step before any landing file is written, and every landing file follows from it and the parsed rows alone: a retry, or a
second validator beside this one, lands the same rows.
"""

import json
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import keys, stages
from pipelines.errors import KeyNotFound, NotInstalled, ValidationBroken
from pipelines.records import Plan, Record, Validation
from pipelines.storage import Store
from pipelines.tables import expectations, files, quarantine, schema, subjects
from pipelines.tables.expectations import Expectation, Finding
from pipelines.tables.render import format_value

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_ONLY_ITSELF = (
    b"""<head><meta http-equiv="Content-Security-Policy" content="default-src 'self' data: 'unsafe-inline'">"""
)
"""Data Docs would have the reader's browser load scripts and styles of eight hosts (CSP Level 3, 3.3)."""
_EXAMPLES = 5
_LANDED_AS_PARSED = ("environments", "histograms", "telemetry", "runs")


class Decision(Record):
    """What validation decided about a batch: its short form, and the rows that are not believed, by position."""

    validation: Validation
    reasons: Mapping[int, str]


class Judged(Record):
    """A batch judged: how each expectation fared, the reasons by row, and Great Expectations' own results."""

    findings: tuple[Finding, ...]
    reasons: Mapping[int, str]
    results: Mapping[str, Any]


def validate_batch(store: Store, batch: str) -> Validation:
    """Judge the batch's rows once; write the validation pages and the landing files.

    Raises:
        KeyNotFound: the batch was never parsed.
        NotInstalled: Great Expectations is not in this environment.
        ValidationBroken: Great Expectations could not evaluate an expectation.
    """
    names = (*_LANDED_AS_PARSED, "measurements")
    parsed = {name: files.read(store, keys.parsed_key(batch, name), schema.SINCE.get(name)) for name in names}
    decision = _decided(store, batch) or _decide(store, batch, parsed)
    accepted, refused = quarantine.split(parsed["measurements"], decision.reasons)
    landing = {**parsed, "measurements": accepted, "quarantine": refused}
    for name in sorted(landing):
        files.create(store, keys.landing_key(batch, name), landing[name])
    return decision.validation


def _decide(store: Store, batch: str, parsed: Mapping[str, "pa.Table"]) -> Decision:
    """Judge, publish the pages, then the decision; when another validator was first, its decision is the one."""
    from pipelines.report import validation_page

    plan = stages.load_plan(store, keys.run_of(batch))
    with tempfile.TemporaryDirectory(prefix="fleetmark-docs-") as docs:
        judged = judge(plan, parsed["runs"], parsed["measurements"], Path(docs))
        _publish_docs(store, plan.run_id, Path(docs))
    validation = Validation(
        run_id=plan.run_id,
        success=all(finding.holds for finding in judged.findings),
        rows=parsed["measurements"].num_rows,
        quarantined=len(judged.reasons),
        failed=tuple(finding.sentence for finding in judged.findings if not finding.holds),
    )
    whole = {"batch_id": batch, "validation": validation.model_dump(mode="json"), "results": judged.results}
    store.replace(keys.report_key(plan.run_id, "validation.json"), _json(whole))
    _, refused = quarantine.split(parsed["measurements"], judged.reasons)
    page = validation_page.render(plan, batch, validation, judged.findings, parsed["runs"], refused)
    store.replace(keys.report_key(plan.run_id, "validation.html"), page.encode())
    made = Decision(validation=validation, reasons=judged.reasons)
    store.create(keys.decision_key(batch), made.model_dump_json().encode())
    return _decided(store, batch) or made


def _decided(store: Store, batch: str) -> Decision | None:
    try:
        return Decision.model_validate_json(store.read(keys.decision_key(batch)))
    except KeyNotFound:
        return None


def judge(plan: Plan, runs: "pa.Table", measurements: "pa.Table", docs: Path | None = None) -> Judged:
    """Hold the batch's rows against every expectation; build Great Expectations' Data Docs in the folder `docs`.

    Raises:
        NotInstalled, ValidationBroken: see `validate_batch`.
    """
    context = _context()
    frames = subjects.of_batch(plan, runs, measurements)
    held = expectations.of_batch(subjects.benchmarks_of(plan))
    findings: list[Finding] = []
    reasons: dict[int, list[str]] = {}
    results: dict[str, Any] = {}
    for subject, group in groupby(held, key=lambda expectation: expectation.subject):
        frame, expected = frames[subject], tuple(group)
        outcome = _run(context, subject, frame, expected)
        results[subject] = outcome.to_json_dict()
        for expectation, failing in zip(expected, _failing(outcome, expected), strict=True):
            sentences = _sentences(expectation, frame, failing)
            findings.append(_finding(expectation, frame, failing, sentences))
            if subject == "measurements":
                for row, sentence in zip(failing, sentences, strict=True):
                    reasons.setdefault(row, []).append(sentence)
    if docs is not None:
        _build_docs(context, docs)
    for row, sentence in quarantine.of_failed_jobs(runs, measurements).items():
        reasons.setdefault(row, []).insert(0, sentence)
    joined = {row: "; ".join(sentences) for row, sentences in reasons.items()}
    return Judged(findings=tuple(findings), reasons=joined, results=results)


def _context() -> Any:
    """An ephemeral context: nothing on the disk, no analytics, no progress bars."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    try:
        import great_expectations as gx
        from great_expectations.data_context.types.base import ProgressBarsConfig
    except ImportError as e:
        raise NotInstalled("great_expectations", "validate") from e
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    return context


def _run(context: Any, subject: str, frame: "pd.DataFrame", expected: Sequence[Expectation]) -> Any:
    import great_expectations as gx

    asset = context.data_sources.add_pandas(subject).add_dataframe_asset(subject)
    whole = asset.add_batch_definition_whole_dataframe("batch")
    suite = context.suites.add(gx.ExpectationSuite(name=subject, expectations=[_as_gx(each) for each in expected]))
    definition = gx.ValidationDefinition(name=subject, data=whole, suite=suite)
    # Rows are named by the frame's own index: naming them by a column costs 10 times as much when every row fails.
    return context.validation_definitions.add(definition).run(
        batch_parameters={"dataframe": frame}, result_format={"result_format": "COMPLETE"}
    )


def _as_gx(expectation: Expectation) -> Any:
    import great_expectations as gx

    gxe: Any = gx.expectations
    says: dict[str, Any] = {"description": expectation.says, "meta": {"says": expectation.says}}
    match expectation:
        case expectations.Present(column=column):
            return gxe.ExpectColumnValuesToNotBeNull(column=column, **says)
        case expectations.Absent(column=column):
            return gxe.ExpectColumnValuesToBeNull(column=column, **says)
        case expectations.OneOf(column=column, allowed=allowed):
            return gxe.ExpectColumnValuesToBeInSet(column=column, value_set=list(allowed), **says)
        case expectations.Within(column=column, low=low, high=high):
            return gxe.ExpectColumnValuesToBeBetween(column=column, min_value=low, max_value=high, **says)
        case expectations.Same(column=column, expected=other):
            return gxe.ExpectColumnPairValuesToBeEqual(column_A=column, column_B=other, **says)
        case expectations.Unique(columns=columns):
            return gxe.ExpectCompoundColumnsToBeUnique(column_list=list(columns), **says)


def _failing(outcome: Any, expected: Sequence[Expectation]) -> Iterator[tuple[int, ...]]:
    """The positions of the rows that fail each expectation, in the order of `expected`."""
    by_sentence = {result.expectation_config.meta["says"]: result for result in outcome.results}
    for expectation in expected:
        result = by_sentence[expectation.says]
        rows = tuple(int(row) for row in result.result.get("unexpected_index_list") or ())
        if result.exception_info.get("raised_exception", True) or result.success is bool(rows):
            raise ValidationBroken(expectation.says, str(result.exception_info)[:2000])
        yield rows


def _sentences(expectation: Expectation, frame: "pd.DataFrame", failing: Sequence[int]) -> list[str]:
    named = [column for column in frame.columns if " " not in column]  # all but the columns of single metrics
    return [expectation.explain(row) for row in frame.loc[list(failing), named].to_dict("records")]


def _finding(expectation: Expectation, frame: "pd.DataFrame", failing: Sequence[int], said: Sequence[str]) -> Finding:
    checked = len(frame)
    observed = f"{checked - len(failing):,} of {checked:,} rows"
    if isinstance(expectation, expectations.Within):
        values = frame[expectation.column].dropna()
        checked = len(values)
        low, high = (format_value(v, expectation.unit) for v in (values.min(), values.max()))
        observed = f"{low} .. {high} in {checked:,} rows" if checked else "no rows"
    examples = tuple(Counter(said))[:_EXAMPLES]
    return Finding(expectation=expectation, checked=checked, failed=len(failing), observed=observed, examples=examples)


def _build_docs(context: Any, folder: Path) -> None:
    site = {
        "class_name": "SiteBuilder",
        "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder)},
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
    }
    context.add_data_docs_site("docs", site_config=site)
    context.build_data_docs(site_names=["docs"])


def _publish_docs(store: Store, run: str, folder: Path) -> None:
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".gif"):
        data = path.read_bytes()
        if path.suffix == ".html":
            data = data.replace(b"<head>", _ONLY_ITSELF, 1)
        store.replace(f"{keys.docs_prefix(run)}/{path.relative_to(folder).as_posix()}", data)


def _json(body: Any) -> bytes:
    """Strict JSON: what is not a number is the string "NaN" or "Infinity"."""
    strict = json.loads(json.dumps(body), parse_constant=str)
    return json.dumps(strict, ensure_ascii=False, allow_nan=False).encode()
