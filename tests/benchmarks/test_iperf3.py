"""iperf3's parser on real documents, its command, and what it calls a peer that is not there."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import benchmark, plan, suites
from pipelines.benchmark import Peer, Workplace
from pipelines.errors import BadParameter, UnknownOutput
from pipelines.records import Outcome, Parsed, RawOutput
from tests import make

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests/samples/iperf3"
IPERF3 = benchmark.get("iperf3")
PAIR = IPERF3.pair
assert PAIR is not None
RUNS: dict[str, dict[str, Any]] = {
    "tcp4": {"streams": 4, "duration_s": 1},
    "reverse": {"direction": "reverse", "duration_s": 1},
    "bidir": {"direction": "both", "streams": 2, "duration_s": 1},
    "udp": {"protocol": "udp", "udp_rate": 12_500_000, "duration_s": 1},
}


def text(name: str) -> str:
    return (FOLDER / f"3.12-{name}.json").read_text()


def raw(name: str, params: dict[str, Any] | None = None, **fields: Any) -> RawOutput:
    checked = IPERF3.checked_params(RUNS.get(name, {}) if params is None else params)
    job = make.job(benchmark="iperf3", case=IPERF3.case(checked), params=checked.model_dump(mode="json"))
    return make.raw(job, **{"tool": "iperf3", "stdout": text(name), **fields})


def values(parsed: Parsed) -> dict[tuple[str, str], float]:
    return {(each.metric, each.labels["direction"]): each.value for each in parsed.measurements}


@pytest.mark.parametrize("name", RUNS)
def test_a_real_output_gives_exactly_the_golden_result(name: str) -> None:
    golden = Parsed.model_validate_json((FOLDER / f"3.12-{name}.golden.json").read_text())
    assert golden.outcome is Outcome.OK
    assert IPERF3.parse(raw(name)) == golden


@pytest.mark.parametrize("name", RUNS)
def test_every_value_lies_in_its_honest_range_in_its_metrics_unit(name: str) -> None:
    for each in IPERF3.parse(raw(name)).measurements:
        metric = IPERF3.metric(each.metric)
        assert metric.low <= each.value <= metric.high
        assert each.unit == metric.unit


def test_goodput_is_what_the_receiver_got_in_bytes_per_second() -> None:
    end = json.loads(text("tcp4"))["end"]
    assert end["sum_received"]["bytes"] != end["sum_sent"]["bytes"]
    got = values(IPERF3.parse(raw("tcp4")))
    assert got["goodput", "forward"] == pytest.approx(end["sum_received"]["bits_per_second"] / 8)
    assert got["retransmits", "forward"] == end["sum_sent"]["retransmits"]


def test_both_directions_at_once_are_two_goodputs() -> None:
    end = json.loads(text("bidir"))["end"]
    got = values(IPERF3.parse(raw("bidir")))
    assert got["goodput", "forward"] == pytest.approx(end["sum_received"]["bits_per_second"] / 8)
    assert got["goodput", "reverse"] == pytest.approx(end["sum_received_bidir_reverse"]["bits_per_second"] / 8)


def test_datagrams_that_were_lost_are_no_goodput() -> None:
    document = json.loads(text("udp"))
    received = document["end"]["sum_received"]
    received["lost_packets"] = received["packets"] // 2
    got = values(IPERF3.parse(raw("udp", stdout=json.dumps(document))))
    whole = values(IPERF3.parse(raw("udp")))
    assert got["loss", "forward"] == pytest.approx(0.5)
    assert got["goodput", "forward"] == pytest.approx(whole["goodput", "forward"] / 2)


@pytest.mark.parametrize("name", ["refused", "busy", "silent"])
def test_a_peer_that_is_not_there_or_busy_is_not_measured_although_the_exit_status_is_0(name: str) -> None:
    assert PAIR is not None
    assert PAIR.unanswered(raw(name)) == json.loads(text(name))["error"]
    parsed = IPERF3.parse(raw(name))
    assert parsed.outcome is Outcome.NOT_MEASURED
    assert not parsed.measurements


def test_a_client_that_was_ended_before_its_server_answered_is_not_measured() -> None:
    assert PAIR is not None
    frozen = raw("frozen", exit_status=1, timed_out=True)
    reason = "iperf3 was ended before any server had answered"
    assert PAIR.unanswered(frozen) == reason
    assert IPERF3.parse(frozen) == Parsed(outcome=Outcome.NOT_MEASURED, reason=reason)


@pytest.mark.parametrize("connected", [True, False])
def test_a_client_that_was_ended_after_its_server_had_answered_is_truncated(connected: bool) -> None:
    assert PAIR is not None
    document = json.loads(text("terminated"))
    if not connected:
        document["start"]["connected"] = []
    ended = raw("terminated", stdout=json.dumps(document), exit_status=1, timed_out=True)
    assert PAIR.unanswered(ended) is None
    assert IPERF3.parse(ended) == Parsed(outcome=Outcome.TRUNCATED, reason="iperf3 was ended after 60 s")


def test_a_client_that_somebody_else_ended_says_nothing_of_its_peer() -> None:
    assert PAIR is not None
    ended = raw("frozen", exit_status=1)
    assert PAIR.unanswered(ended) is None
    assert IPERF3.parse(ended).outcome is Outcome.TOOL_FAILED


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("server_killed", Outcome.TRUNCATED),
        ("terminated", Outcome.TRUNCATED),
        ("unknown_name", Outcome.CONFIG),
    ],
)
def test_an_error_is_no_measurement_and_no_reason_to_try_again(name: str, outcome: Outcome) -> None:
    assert PAIR is not None
    assert PAIR.unanswered(raw(name)) is None
    parsed = IPERF3.parse(raw(name))
    assert (parsed.outcome, parsed.measurements) == (outcome, ())
    assert parsed.reason == f"iperf3: {json.loads(text(name))['error']}"


def test_a_server_knows_a_client_from_a_port_scan() -> None:
    assert PAIR is not None
    assert PAIR.served(text("server_served"))
    assert PAIR.served(text("server_client_killed"))
    assert not PAIR.served(text("server_scanned"))
    assert not PAIR.served("")


def test_a_test_shorter_than_asked_is_truncated() -> None:
    parsed = IPERF3.parse(raw("tcp4", {"streams": 4, "duration_s": 10}))
    assert parsed.outcome is Outcome.TRUNCATED
    assert parsed.reason.endswith(" of 10 s were measured forward")


def test_no_byte_is_no_goodput_of_0() -> None:
    document = json.loads(text("tcp4"))
    document["end"]["sum_received"]["bytes"] = 0
    parsed = IPERF3.parse(raw("tcp4", stdout=json.dumps(document)))
    assert (parsed.outcome, parsed.reason) == (Outcome.TRUNCATED, "the document gives no goodput forward")


def test_a_client_that_was_ended_without_a_word_is_truncated() -> None:
    parsed = IPERF3.parse(raw("tcp4", stdout="", exit_status=None, signal=9, timed_out=True))
    assert parsed.outcome is Outcome.TRUNCATED


def test_the_rate_of_udp_is_that_of_all_streams_together_in_bits() -> None:
    place = Workplace(Path("/s"), Path("/s/o"), True, "3.12", peer=Peer("10.0.0.2", 5300))
    argv = IPERF3.command(IPERF3.checked_params({"protocol": "udp", "streams": 4, "udp_rate": 1_000_000}), place).argv
    assert "--bitrate=2000000" in argv
    assert {"--client=10.0.0.2", "--port=5300"} <= set(argv)


@pytest.mark.parametrize(
    ("params", "case"),
    [
        ({}, "tcp"),
        ({"streams": 8, "direction": "both"}, "tcp-both-j8"),
        ({"protocol": "udp"}, "udp"),
        ({"protocol": "udp", "udp_rate": 1000}, "udp-r1000"),
    ],
)
def test_a_case_names_what_makes_the_load(params: dict[str, Any], case: str) -> None:
    assert IPERF3.case(IPERF3.checked_params(params)) == case


def test_the_suite_network_has_every_node_do_each_kind_of_load_in_minutes() -> None:
    nodes = tuple(make.node(f"gpu-{number:04}") for number in range(1000))
    suite = suites.load(ROOT / "infra/suites", "network")
    made = plan.make(suite, nodes, run_id=make.RUN_ID, created_at=make.AT, trigger="cli")
    assert {job.case for job in made.jobs} == {"tcp", "tcp-j8", "tcp-reverse", "tcp-both", "udp"}
    assert max(made.seconds_by_node().values()) <= 6 * 60
    assert max(job.closes_s or 0 for job in made.jobs) <= 15 * 60


def test_a_parameter_that_iperf3_could_not_run_with_is_refused() -> None:
    with pytest.raises(BadParameter):
        IPERF3.checked_params({"streams": 0})


@given(st.text())
def test_garbage_raises_the_one_documented_error(garbage: str) -> None:
    with pytest.raises(UnknownOutput):
        IPERF3.parse(raw("tcp4", stdout=garbage))


@given(st.data())
def test_a_document_that_is_cut_off_raises_the_one_documented_error(data: st.DataObject) -> None:
    whole = text("bidir").rstrip()
    with pytest.raises(UnknownOutput):
        IPERF3.parse(raw("bidir", stdout=whole[: data.draw(st.integers(0, len(whole) - 1))]))
