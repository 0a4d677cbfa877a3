"""Stand-ins of tools, put where a PATH finds them; and outputs that are damaged."""

import json
import math
import re
from pathlib import Path

from hypothesis import strategies as st

from pipelines.benchmark import Benchmark
from pipelines.errors import UnknownOutput
from pipelines.records import Outcome, RawOutput

STANDINS = Path(__file__).parents[1] / "standins"


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
        put = draw(st.sampled_from(["nan", "inf", "-1", "0", "1e999", "9" * 400, "9" * 20, '"x"', "null", "", "7.5"]))
        return whole[: number.start()] + put + whole[number.end() :]
    start = draw(st.integers(0, len(whole)))
    end = draw(st.integers(start, min(len(whole), start + 200)))
    put = draw(st.one_of(st.just(""), st.just(whole[start:end] * 2), st.text(max_size=20)))
    return whole[:start] + put + whole[end:]


def assert_honest_or_unknown(descriptor: Benchmark, raw: RawOutput) -> None:
    """What is parsed is finite, above zero but for a spread or a lag, and has a reason or all that is required."""
    try:
        parsed = descriptor.parse(raw)
    except UnknownOutput:
        return
    assert (parsed.outcome is Outcome.OK) == (not parsed.reason)
    for each in parsed.measurements:
        assert math.isfinite(each.value)
        assert each.value > 0 or each.metric in {"thread_spread", "straggler_lag"}
        assert each.unit == descriptor.metric(each.metric).unit
    if parsed.outcome is Outcome.OK:
        assert descriptor.required(descriptor.params_of(raw.job)) <= {each.metric for each in parsed.measurements}
