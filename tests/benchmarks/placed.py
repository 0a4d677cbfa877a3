"""Stand-ins of tools, put where a PATH finds them; and outputs that are damaged."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from pipelines.benchmark import Benchmark
from pipelines.errors import UnknownOutput
from pipelines.records import Outcome, RawOutput

STANDINS = Path(__file__).parents[1] / "standins"
ENDED = st.fixed_dictionaries(
    {},
    optional={
        "exit_status": st.one_of(st.none(), st.integers(-1, 255)),
        "signal": st.one_of(st.none(), st.integers(1, 31)),
        "timed_out": st.booleans(),
    },
)
"""How a tool may have ended, as fields of a raw output."""

WRONG = (2**70, 10**400, 1e308, 5e-324, -1, 0, None, True, "NaN", "warm", [], {})
"""What may stand in a document where something else belongs."""

NO_NUMBER = ("nan", "inf", "-1", "0", "1e999", "9" * 400, "9" * 20, '"x"', "null", "", "7.5")
"""What may stand in a text where another number belongs."""


def place(folder: Path, standin: str, *names: str, **how: object) -> Path:
    """The stand-in in the folder, under each of the names; `how` it behaves, once it differs from its default."""
    for name in names or (standin,):
        link = folder / name
        link.unlink(missing_ok=True)
        link.symlink_to(STANDINS / standin)
    if how:
        (folder / f"{standin}.json").write_text(json.dumps(how))
    return folder


@st.composite
def damaged(draw: st.DrawFn, whole: str) -> str:
    """The text with a part cut out, doubled or overwritten; or with one of its numbers replaced."""
    kind = draw(st.sampled_from(["cut", "splice", "number"]))
    if kind == "cut":
        return whole[: draw(st.integers(0, len(whole)))]
    if kind == "number":
        number = draw(st.sampled_from(list(re.finditer(r"[0-9.]+", whole))))
        put = draw(st.sampled_from(NO_NUMBER))
        return whole[: number.start()] + put + whole[number.end() :]
    start = draw(st.integers(0, len(whole)))
    end = draw(st.integers(start, min(len(whole), start + 200)))
    put = draw(st.one_of(st.just(""), st.just(whole[start:end] * 2), st.text(max_size=20)))
    return whole[:start] + put + whole[end:]


def each_altered(part: Any, whole: Any) -> Iterator[Any]:
    """The JSON document `whole` with each value of this part of it, one after the other, gone or of each wrong kind.

    Of long lists and tables the first ones stand for all.
    """
    for key in list(part)[:50] if isinstance(part, dict) else range(len(part[:3])):
        right = part[key]
        for part[key] in WRONG:
            yield whole
        if isinstance(part, dict):
            del part[key]
            yield whole
        part[key] = right
        if isinstance(right, dict | list):
            yield from each_altered(right, whole)


def each_renumbered(whole: str) -> Iterator[str]:
    """The text with each of its numbers, one after the other, replaced by each of what it cannot be."""
    for number in re.finditer(r"[0-9]+(\.[0-9]+)?", whole):
        for put in NO_NUMBER:
            yield whole[: number.start()] + put + whole[number.end() :]


def assert_honest_or_unknown(descriptor: Benchmark, raw: RawOutput) -> None:
    """What is parsed is finite, no zero that could only stand for nothing, and has a reason or all that is required."""
    try:
        parsed = descriptor.parse(raw)
    except UnknownOutput:
        return
    assert (parsed.outcome is Outcome.OK) == (not parsed.reason)
    for each in parsed.measurements:
        assert math.isfinite(each.value)
        assert each.value > 0 or (each.value == 0 and descriptor.metric(each.metric).low == 0)
        assert all(each.labels.values())
        assert each.unit == descriptor.metric(each.metric).unit
    if parsed.outcome is Outcome.OK:
        assert descriptor.required(descriptor.params_of(raw.job)) <= {each.metric for each in parsed.measurements}
