"""Parsing fio's json+ documents: ours to typed rows with merged histograms, against json.loads alone as the floor."""

import json
import time
from pathlib import Path

from perf import measure
from pipelines import benchmark
from pipelines.records import Outcome
from tests import make

SAMPLES = Path(__file__).parents[1] / "tests/samples/fio"
DOCUMENTS = 1000


def main(rounds: int = 5) -> None:
    text = max((path.read_text() for path in SAMPLES.glob("*.json") if "golden" not in path.name), key=_completeness)
    raw = make.raw(output=text)
    parse = benchmark.get("fio").parse
    outcome = parse(raw).outcome

    def ours() -> float:
        start = time.perf_counter()
        for _ in range(DOCUMENTS):
            parse(raw)
        return DOCUMENTS / (time.perf_counter() - start)

    def floor() -> float:
        start = time.perf_counter()
        for _ in range(DOCUMENTS):
            json.loads(text)
        return DOCUMENTS / (time.perf_counter() - start)

    series = measure.interleaved({"json.loads": floor, "fleetmark parse": ours}, rounds)
    title = f"Parsing {DOCUMENTS} documents of {len(text) / 1000:.0f} kB, one core (outcome {outcome})"
    measure.show(title, "documents/s", series, {"fleetmark parse": "target: 1,000"})


def _completeness(text: str) -> int:
    """Prefer a whole document with many histogram bins."""
    parsed = benchmark.get("fio").parse(make.raw(output=text))
    return sum(len(each.bins) for each in parsed.histograms) if parsed.outcome is Outcome.OK else 0


if __name__ == "__main__":
    main()
