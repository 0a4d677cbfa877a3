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
from tests.benchmarks.placed import assert_honest_or_unknown, each_altered

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


def text(name: str, version: str = "3.12") -> str:
    return (FOLDER / f"{version}-{name}.json").read_text()


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


def test_the_round_trip_is_that_of_the_streams_that_the_client_sends() -> None:
    """Of the others its kernel has one as well, of their acknowledgements: 4 us where it is 200."""
    streams = [stream["sender"] for stream in json.loads(text("bidir", "3.18"))["end"]["streams"]]
    assert [(stream["sender"], stream["mean_rtt"]) for stream in streams] == [
        (True, 46),
        (True, 358),
        (False, 4),
        (False, 4),
    ]
    got = values(IPERF3.parse(raw("bidir", stdout=text("bidir", "3.18"))))
    assert got["rtt_mean", "both"] == pytest.approx((46 + 358) / 2 / 1e6)


@pytest.mark.parametrize(
    ("version", "name"),
    [("3.9", "tcp4"), ("3.9", "reverse"), ("3.9", "udp"), ("3.18", "tcp4"), ("3.18", "bidir"), ("3.18", "udp")],
)
def test_an_older_and_a_newer_version_give_all_that_is_required(version: str, name: str) -> None:
    parsed = IPERF3.parse(raw(name, stdout=text(name, version)))
    assert (parsed.outcome, parsed.reason) == (Outcome.OK, "")
    end = json.loads(text(name, version))["end"]
    received = end["sum"] if (version, name) == ("3.9", "udp") else end["sum_received"]
    got = values(parsed)["goodput", "reverse" if name == "reverse" else "forward"]
    assert got == pytest.approx(received["bytes"] / received["seconds"], rel=0.01)
    for each in parsed.measurements:
        assert IPERF3.metric(each.metric).low <= each.value <= IPERF3.metric(each.metric).high


def test_two_directions_that_a_version_does_not_tell_apart_are_no_measurement() -> None:
    """3.9 prints either sum under the same name, so that only one of them is read."""
    assert "bidir_reverse" not in text("bidir", "3.9")
    parsed = IPERF3.parse(raw("bidir", stdout=text("bidir", "3.9")))
    assert (parsed.outcome, parsed.measurements) == (Outcome.CONFIG, ())
    assert parsed.reason == "this iperf3 does not tell the two directions apart: 3.12 or later does"


def test_an_error_that_stands_on_stderr_alone_is_one() -> None:
    assert PAIR is not None
    said = "iperf3: error - unable to send control message: Bad file descriptor\n"
    refused = raw("refused", stdout=text("refused", "3.9"), stderr=said, exit_status=1)
    assert PAIR.unanswered(refused) == "unable to send control message: Bad file descriptor"
    assert IPERF3.parse(refused).outcome is Outcome.NOT_MEASURED
    assert PAIR.unanswered(raw("busy", stdout=text("busy", "3.18"), exit_status=1))
    killed = IPERF3.parse(raw("tcp4", stdout=text("server_killed", "3.18"), exit_status=1))
    assert (killed.outcome, killed.reason) == (Outcome.TRUNCATED, "iperf3: control socket has closed unexpectedly")


def test_datagrams_that_were_lost_are_no_goodput() -> None:
    document = json.loads(text("udp"))
    received = document["end"]["sum_received"]
    received["lost_packets"] = received["packets"] // 2
    got = values(IPERF3.parse(raw("udp", stdout=json.dumps(document))))
    whole = values(IPERF3.parse(raw("udp")))
    assert got["loss", "forward"] == pytest.approx(0.5)
    assert got["goodput", "forward"] == pytest.approx(whole["goodput", "forward"] / 2)


@pytest.mark.parametrize(("lost", "ratio"), [(-3, 0.0), (0, 0.0), (382, 1.0)])
def test_datagrams_that_come_after_they_were_counted_as_lost_are_no_negative_loss(lost: int, ratio: float) -> None:
    """iperf3 takes the loss of the omitted time from the whole: what of it comes late makes the rest negative."""
    document = json.loads(text("udp"))
    document["end"]["sum_received"]["lost_packets"] = lost
    parsed = IPERF3.parse(raw("udp", stdout=json.dumps(document)))
    assert values(parsed)["loss", "forward"] == ratio
    assert (parsed.outcome is Outcome.OK) == (lost < 382)


def test_datagrams_after_the_last_that_arrived_are_lost_although_iperf3_does_not_count_them() -> None:
    """Of four seconds the receiver's firewall dropped all datagrams of the last two."""
    end = json.loads(text("udp_end_lost"))["end"]
    assert end["sum_received"]["lost_percent"] < 1
    params = {"protocol": "udp", "udp_rate": 12_500_000, "duration_s": 4}
    got = values(IPERF3.parse(raw("udp_end_lost", params)))
    assert got["loss", "forward"] == pytest.approx(1 - (17325 - 257) / 34530)
    assert got["goodput", "forward"] == pytest.approx((17325 - 257) * 1448 / 4, rel=0.01)


def test_where_no_datagram_arrived_all_are_lost_and_there_is_no_goodput_of_0() -> None:
    document = json.loads(text("udp_end_lost"))
    document["end"]["sum_received"] |= {"packets": 0, "lost_packets": 0}
    params = {"protocol": "udp", "udp_rate": 12_500_000, "duration_s": 4}
    parsed = IPERF3.parse(raw("udp_end_lost", params, stdout=json.dumps(document)))
    assert values(parsed)["loss", "forward"] == 1
    assert (parsed.outcome, parsed.reason) == (
        Outcome.TRUNCATED,
        "the document gives no goodput forward, jitter forward",
    )


def test_counts_of_datagrams_that_contradict_each_other_give_no_loss() -> None:
    """As of iperf3 3.1 with `--omit`: -104080 of 81068 (https://github.com/esnet/iperf/issues/412)."""
    document = json.loads(text("udp"))
    document["end"]["sum_received"]["lost_packets"] = -490
    parsed = IPERF3.parse(raw("udp", stdout=json.dumps(document)))
    assert parsed.outcome is Outcome.TRUNCATED
    assert not {"loss", "goodput"} & {each.metric for each in parsed.measurements}


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
    assert PAIR.served(text("server_udp"))
    assert "18446744073709551" in text("server_udp")  # of what the client sent, and 3.9 does not say
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


@pytest.mark.parametrize("name", RUNS)
def test_a_document_with_a_wrong_value_is_parsed_honestly_or_refused(name: str) -> None:
    document = {key: part for key, part in json.loads(text(name)).items() if key in {"start", "end"}}
    for altered in each_altered(document, document):
        assert_honest_or_unknown(IPERF3, raw(name, stdout=json.dumps(altered)))


@given(st.text())
def test_garbage_raises_the_one_documented_error(garbage: str) -> None:
    with pytest.raises(UnknownOutput):
        IPERF3.parse(raw("tcp4", stdout=garbage))


@given(st.data())
def test_a_document_that_is_cut_off_raises_the_one_documented_error(data: st.DataObject) -> None:
    whole = text("bidir").rstrip()
    with pytest.raises(UnknownOutput):
        IPERF3.parse(raw("bidir", stdout=whole[: data.draw(st.integers(0, len(whole) - 1))]))
