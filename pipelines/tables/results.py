"""The results of runs in short: of each metric of each case on each node the median of its repeats and their spread."""

from typing import Any

from pipelines.errors import Unknown
from pipelines.records import Labels, Record
from pipelines.tables.engine import quoted
from pipelines.tables.query import Reader
from pipelines.tables.render import Column, Result

_NAMED = 10  # runs that a sentence about an unknown one lists


class Summary(Record):
    """One metric of one case on one node in one run. Values in `unit`; the spread is the least and the greatest."""

    run_id: str
    node: str
    benchmark: str
    case: str
    metric: str
    median: float
    low: float
    high: float
    repeats: int  # that were measured and believed
    unit: str
    labels: Labels


def results(
    reader: Reader,
    run: str | None = None,
    node: str | None = None,
    benchmark: str | None = None,
    case: str | None = None,
    metric: str | None = None,
) -> tuple[Summary, ...]:
    """The summaries that match, by run, node, benchmark, case and metric; `run` defaults to the newest that has any.

    Raises:
        Unknown: no complete run has that id, or no result has that node, benchmark, case or metric.
    """
    given = {"node": node, "benchmark": benchmark, "case": case, "metric": metric}
    wanted = {column: value for column, value in given.items() if value is not None}
    if run is None:
        run = _newest(reader, wanted)
    elif not reader.query(f"SELECT 1 FROM completed WHERE run_id = {quoted(run)}").rows:  # noqa: S608
        newest = reader.query(f"SELECT run_id FROM completed ORDER BY night DESC, run_id DESC LIMIT {_NAMED}")  # noqa: S608
        raise Unknown("complete run", run, tuple(row[0] for row in newest.rows))
    if run is None:
        return ()
    conditions = _conditions({"month": f"{run[:4]}-{run[4:6]}", "run_id": run} | wanted)
    answer = reader.query(
        f"""
        SELECT run_id, node, benchmark, "case", metric, median(value) AS median, min(value) AS low, max(value) AS high,
               count(*) AS repeats, unit, labels
        FROM results WHERE {conditions}
        GROUP BY run_id, node, benchmark, "case", metric, unit, labels
        ORDER BY run_id, node, benchmark, "case", metric, labels
        """  # noqa: S608
    )
    if not answer.rows:
        _refuse_unknown(reader, wanted)
    return tuple(Summary.model_validate(_record(answer.names, row)) for row in answer.rows)


def as_result(summaries: tuple[Summary, ...]) -> Result:
    """The summaries as rows to render."""
    types = {
        "median": "DOUBLE",
        "low": "DOUBLE",
        "high": "DOUBLE",
        "repeats": "BIGINT",
        "labels": "MAP(VARCHAR, VARCHAR)",
    }
    columns = tuple(Column(name=name, type=types.get(name, "VARCHAR")) for name in Summary.model_fields)
    return Result(columns=columns, rows=tuple(tuple(summary.model_dump().values()) for summary in summaries))


def _newest(reader: Reader, wanted: dict[str, str]) -> str | None:
    source = f"results WHERE {_conditions(wanted)}" if wanted else "completed"
    rows = reader.query(f"SELECT max(run_id) FROM {source}").rows  # noqa: S608
    if rows[0][0] is None:
        _refuse_unknown(reader, wanted)
    return rows[0][0] and str(rows[0][0])


def _refuse_unknown(reader: Reader, wanted: dict[str, str]) -> None:
    """Name the first condition that nothing satisfies; a combination that has no rows is no error."""
    for column, value in wanted.items():
        known = reader.query(f'SELECT DISTINCT "{column}" FROM latest ORDER BY 1').rows  # noqa: S608
        names = tuple(str(row[0]) for row in known)
        if value not in names:
            raise Unknown(column, value, names)


def _conditions(wanted: dict[str, str]) -> str:
    return " AND ".join(f'"{column}" = {quoted(value)}' for column, value in wanted.items())


def _record(names: tuple[str, ...], row: tuple[Any, ...]) -> dict[str, Any]:
    return {name: value if name != "labels" else value or {} for name, value in zip(names, row, strict=True)}
