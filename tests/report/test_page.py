"""The page of a run: what it says, that it is safe, and that it stays readable for a fleet."""

import re
from dataclasses import replace
from html import unescape
from statistics import median

import pytest

from pipelines.records import RawOutput
from pipelines.tables.render import format_value
from tests.report.runs import rendered
from tests.tables.batches import Batch, batch, killed

HOSTILE = "<script>alert(1)</script> & \"'><img src=x onerror=alert(1)>"


def text(page: str) -> str:
    """What a reader sees of a page, on one line."""
    body = page.partition("<body>")[2]
    return " ".join(unescape(re.sub(r"<title>.*?</title>|<[^>]+>", " ", body)).split())


def values(made: Batch, metric: str) -> list[float]:
    return [row["value"] for row in made.measurements if row["metric"] == metric]


def test_the_page_shows_the_median_of_the_repeats_in_human_units() -> None:
    made = batch(repeats=3).with_row(0, value=1.5e9)
    shown = format_value(median(values(made, "read_bandwidth")), "B/s")
    assert f"read_bandwidth {shown}" in text(rendered(made))


def test_a_quiet_night_has_a_headline_that_says_so() -> None:
    assert "All 2 jobs measured" in text(rendered(batch()))


def test_what_went_wrong_is_the_headline() -> None:
    def second_is_killed(raw: RawOutput) -> RawOutput:
        return killed(raw) if raw.job.case.startswith("rand_read") and raw.job.repeat == 2 else raw

    made = batch(profiles=("rand_read", "checkpoint"), instead=second_is_killed)
    slow = [n for n, row in enumerate(made.measurements) if row["metric"] == "write_bandwidth"]
    for position in slow:
        made = made.with_row(position, value=120e6)
    page = text(rendered(made, failed=("Every value is a number: 1 of 9 do not hold",)))
    assert "1 floor not reached; 1 of 4 jobs not measured; 1 expectation of the batch not met" in page
    assert "not reached 120 MB/s 500 MB/s" in page
    assert "truncated fio ended early, on a signal (exit status 128)" in page
    assert "Every value is a number: 1 of 9 do not hold" in page


def test_a_floor_that_was_not_measured_is_not_shown_as_reached() -> None:
    page = text(rendered(batch(profiles=("checkpoint",), instead=killed)))
    assert "floors reached 0 of 1" in page
    assert "not measured none 500 MB/s none of 2 planned repeats gave a value: truncated" in page


def test_what_the_plan_left_out_of_the_suite_is_said_beside_what_was_not_measured() -> None:
    made = batch()
    sentence = "llama_bench is not run on gpu-01: the inventory does not give it the feature gpu"
    page = text(rendered(replace(made, plan=made.plan.model_copy(update={"left_out": (sentence,)}))))
    assert f"Not planned {sentence}" in page
    assert "Not planned" not in text(rendered(made))


@pytest.mark.parametrize("place", ["note", "reason", "notes"])
def test_text_from_people_and_tools_is_inert(place: str) -> None:
    made = batch(note=HOSTILE if place == "note" else "")
    hostile = {"reason": {"outcome": "tool_failed", "reason": HOSTILE}, "notes": {"notes": [HOSTILE]}}.get(place, {})
    page = rendered(replace(made, runs=({**made.runs[0], **hostile}, *made.runs[1:])))
    assert HOSTILE in text(page)
    assert "<script" not in page
    assert "<img" not in page


def test_the_page_names_where_its_numbers_come_from() -> None:
    made = batch(repeats=1)
    page = text(rendered(made))
    for origin in (
        made.plan.run_id,
        f"plans/{made.plan.run_id}.json",
        "fio 3.33",
        "env-1",
        "6.1.0-30-amd64",
        "memory 1.08 TB",
    ):
        assert origin in page
    assert f"{made.runs[0]['raw_key']} {made.runs[0]['raw_sha256']}" in page
    assert "measurements version 4, runs version 3" in page


def test_a_fleet_is_shown_as_one_card_for_each_case_and_not_for_each_node() -> None:
    nodes = tuple(f"gpu-{n:02d}" for n in range(13))
    page = rendered(batch(profiles=("rand_read", "seq_write"), nodes=nodes, repeats=1))
    assert page.count('<article class="card">') == 2
    assert "13 of 13 nodes complete" in text(page)


def test_a_run_in_which_nothing_was_measured_has_a_page() -> None:
    made = batch(repeats=1)
    refused = {
        **made.runs[0],
        "outcome": "not_measured",
        "reason": "fio is not installed on this node",
        "raw_key": None,
    }
    page = text(rendered(replace(made, runs=(refused,), measurements=(), histograms=())))
    assert "1 of 1 job not measured" in page
    assert "not_measured fio is not installed on this node" in page
    assert "0 of 1 repeats" in page


def test_a_simulated_run_says_so() -> None:
    made = batch(repeats=1)
    page = rendered(replace(made, runs=({**made.runs[0], "simulated": True},)))
    assert "Simulated: some of these numbers come from no hardware." in text(page)
