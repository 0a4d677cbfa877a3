"""Judging a run: one verdict for each floor of each case on each node, from its rows."""

from dataclasses import replace

from pipelines.records import RawOutput
from pipelines.tables import repeats
from pipelines.verdicts import judge
from tests.report.runs import landed
from tests.tables.batches import Batch, batch, killed


def verdicts(made: Batch) -> list[tuple[str, str, str]]:
    return [(each.node, each.metric, each.verdict) for each in judge.floors(made.plan, landed(made))]


def test_each_node_has_a_verdict_for_its_checkpoint_and_none_for_cases_without_a_floor() -> None:
    made = batch(profiles=("rand_read", "checkpoint"), nodes=("gpu-01", "gpu-02"))
    assert [(node, metric) for node, metric, _ in verdicts(made)] == [
        ("gpu-01", "write_bandwidth"),
        ("gpu-02", "write_bandwidth"),
    ]


def test_a_case_whose_every_repeat_was_killed_is_not_measured() -> None:
    assert verdicts(batch(profiles=("checkpoint",), instead=killed)) == [("gpu-01", "write_bandwidth", "not_measured")]


def test_a_planned_case_without_any_row_is_not_measured() -> None:
    made = batch(profiles=("checkpoint",))
    assert verdicts(replace(made, runs=(), measurements=())) == [("gpu-01", "write_bandwidth", "not_measured")]


def test_a_value_in_quarantine_does_not_count_and_its_reason_is_the_evidence() -> None:
    made = batch(profiles=("checkpoint",), repeats=1)
    position = next(n for n, row in enumerate(made.measurements) if row["metric"] == "write_bandwidth")
    rows = landed(made.with_row(position, value=9e15), {position: "write_bandwidth 9e+15 B/s is outside"})
    found = list(judge.floors(made.plan, rows))
    assert [each.verdict for each in found] == ["not_measured"]
    assert found[0].evidence.absent[0].reason == "write_bandwidth 9e+15 B/s is outside"


def test_every_planned_repeat_is_either_measured_or_absent() -> None:
    def second_is_killed(raw: RawOutput) -> RawOutput:
        return killed(raw) if raw.job.repeat == 2 else raw

    made = batch(profiles=("rand_read", "mixed"), nodes=("gpu-01", "gpu-02"), repeats=3, instead=second_is_killed)
    for each in repeats.of_run(made.plan, landed(made)):
        assert [one.repeat for one in each.measured] == [1, 3]
        assert [one.repeat for one in each.absent] == [2]
        assert each.absent[0].reason.startswith("truncated: ")
