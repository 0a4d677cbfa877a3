"""How values and results are shown."""

import csv
import io
import json
from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.tables import render


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (1.237e9, "B/s", "1.24 GB/s"),
        (999.6e6, "B/s", "1.00 GB/s"),
        (85e-6, "s", "85.0 µs"),
        (125.0, "s", "125 s"),
        (-3.2e-9, "s", "-3.20 ns"),
        (0.0, "s", "0 s"),
        (45_200.0, "1/s", "45.2 k/s"),
        (512.0, "1/s", "512 /s"),
        (0.031, "ratio", "3.10 %"),
        (12_345.0, "1", "12,345"),
        (1.98e9, "Hz", "1.98 GHz"),
        (61.25, "°C", "61.2 °C"),
        (7.0, "furlong", "7.00 furlong"),
    ],
)
def test_a_value_is_shown_with_three_digits_and_its_prefix(value: float, unit: str, shown: str) -> None:
    assert render.format_value(value, unit) == shown


_SCALE = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}


@given(st.floats(min_value=1, max_value=9e17))
def test_a_shown_value_reads_back_within_half_a_percent(value: float) -> None:
    number, _, unit = render.format_value(value, "B/s").partition(" ")
    assert float(number.replace(",", "")) * _SCALE[unit.removesuffix("B/s")] == pytest.approx(value, rel=0.006)


RESULT = render.Result(
    columns=(
        render.Column(name="node", type="VARCHAR"),
        render.Column(name="value", type="DOUBLE"),
        render.Column(name="unit", type="VARCHAR"),
        render.Column(name="started_at", type="TIMESTAMP WITH TIME ZONE"),
        render.Column(name="night", type="DATE"),
        render.Column(name="labels", type="MAP(VARCHAR, VARCHAR)"),
    ),
    rows=(
        ("gpu-01", 1.25e9, "B/s", datetime(2026, 11, 21, 2, 0, tzinfo=UTC), date(2026, 11, 21), {"direct_io": "1"}),
        ("gpu, 02", float("inf"), "s", None, None, {}),
    ),
)


def test_a_table_shows_values_with_their_units() -> None:
    assert render.as_table(RESULT).splitlines()[2].split() == [
        "gpu-01", "1.25", "GB/s", "2026-11-21T02:00:00Z", "2026-11-21", "direct_io=1",
    ]  # fmt: skip


def test_a_table_is_as_wide_as_its_widest_row_needs() -> None:
    wide = render.Result(columns=(render.Column(name="reason", type="VARCHAR"),), rows=(("x" * 300,),))
    assert "x" * 300 in render.as_table(wide)


def test_json_keeps_base_units_and_says_null_where_there_is_no_number() -> None:
    first, second = json.loads(render.as_json(RESULT))
    assert first == {
        "node": "gpu-01",
        "value": 1.25e9,
        "unit": "B/s",
        "started_at": "2026-11-21T02:00:00Z",
        "night": "2026-11-21",
        "labels": {"direct_io": "1"},
    }
    assert second["value"] is None


def test_csv_quotes_what_holds_a_comma() -> None:
    header, first, second = csv.reader(io.StringIO(render.as_csv(RESULT)))
    assert header == list(RESULT.names)
    assert first == ["gpu-01", "1250000000.0", "B/s", "2026-11-21T02:00:00Z", "2026-11-21", '{"direct_io": "1"}']
    assert second == ["gpu, 02", "", "s", "", "", "{}"]
