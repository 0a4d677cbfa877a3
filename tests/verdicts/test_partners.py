"""The verdict on a node among its partners: what passes, what fails, and that not knowing is neither."""

import pytest

from pipelines import benchmark
from pipelines.isolation import Judgement
from pipelines.tournament import Met
from pipelines.verdicts import rules

GOODPUT = benchmark.get("iperf3").metric("goodput")


def met(*values: float | None) -> tuple[Met, ...]:
    return tuple(Met(client="gpu-01", server=f"gpu-{n:02d}", value=value) for n, value in enumerate(values, start=2))


def judgement(verdict: str, meetings: tuple[Met, ...], bad_links: tuple[str, ...] = ()) -> Judgement:
    return Judgement.model_validate(
        {
            "node": "gpu-01",
            "benchmark": "iperf3",
            "case": "tcp",
            "verdict": verdict,
            "bad_links": bad_links,
            "meetings": meetings,
            "least": 5e8,
        }
    )


@pytest.mark.parametrize(
    ("given", "verdict", "observed", "reason"),
    [
        (
            judgement("good", met(1e9, 2e9)),
            "pass",
            1.5e9,
            "median 1.50 GB/s; 2 of 2 pairs gave a value; it does well with its partners",
        ),
        (
            judgement("good", met(1e9, 1e9, 1e8), ("gpu-04",)),
            "fail",
            1e9,
            "median 1.00 GB/s; 3 of 3 pairs gave a value; bad link with gpu-04: both do well otherwise",
        ),
        (
            judgement("bad", met(1e8, None, None)),
            "fail",
            1e8,
            "median 100 MB/s; 1 of 3 pairs gave a value; it does badly with partners that are good",
        ),
        (
            judgement("undecided", met(None)),
            "not_measured",
            None,
            "0 of 1 pairs gave a value; no good partner tells whose fault it is",
        ),
        (judgement("undecided", ()), "not_measured", None, "it has met no other node"),
    ],
)
def test_a_node_passes_only_if_it_does_well_with_others(
    given: Judgement, verdict: str, observed: float | None, reason: str
) -> None:
    found = rules.partners(given, GOODPUT, "h200")
    assert (found.verdict, found.observed, found.reason) == (verdict, observed, reason)
    assert (found.node, found.cohort, found.case, found.metric, found.unit) == (
        "gpu-01", "h200", "tcp", "goodput", "B/s",
    )  # fmt: skip
    assert found.expected == 5e8
    assert found.evidence == rules.Meetings(
        meetings=given.meetings, source="half of the median of all pairs of the case"
    )
