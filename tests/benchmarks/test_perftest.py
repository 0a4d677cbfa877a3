"""perftest: its document and its table, in the versions that differ, and two nodes that meet by its stand-in."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import benchmark, exchange, plan
from pipelines.benchmark import Peer, Workplace
from pipelines.errors import BadParameter, BadSelection, UnknownOutput
from pipelines.records import Outcome, Parsed, RawOutput, Suite, SuiteEntry
from pipelines.settings import Settings
from pipelines.storage import Store
from pipelines.tournament import Rules
from tests import make, servers
from tests.benchmarks.placed import assert_honest_or_unknown, damaged, each_renumbered, place

FOLDER = Path(__file__).parents[1] / "samples/perftest"
PERFTEST = benchmark.get("perftest")
PAIR = PERFTEST.pair
assert PAIR is not None
GBIT = 10**9 / 8
BANDWIDTH: dict[str, Any] = {"operation": "write"}
LATENCY: dict[str, Any] = {"operation": "read", "measure": "latency"}
KINDS = {"write_bw": BANDWIDTH, "read_lat": LATENCY}


def text(name: str) -> str:
    return (FOLDER / name).read_text()


def raw(params: dict[str, Any], **fields: Any) -> RawOutput:
    checked = PERFTEST.checked_params(params)
    place = Workplace(Path("/s"), Path("/s/o"), True, "6.06", peer=Peer("10.0.0.2", 5300))
    argv = PERFTEST.command(checked, place).argv
    job = make.job(
        benchmark="perftest",
        case=PERFTEST.case(checked),
        params=checked.model_dump(mode="json", exclude_none=True),
    )
    return make.raw(job, **{"tool": "ib_write_bw", "argv": argv, **fields})


def sample(version: str, kind: str, **fields: Any) -> RawOutput:
    both = {"stdout": text(f"{version}-{kind}.txt"), "output": text(f"{version}-{kind}.json")}
    return raw(KINDS[kind], **{**both, **fields})


def values(parsed: Parsed) -> dict[str, float]:
    return {each.metric: each.value for each in parsed.measurements}


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_gives_exactly_the_golden_result(kind: str) -> None:
    golden = Parsed.model_validate_json(text(f"6.24-{kind}.golden.json"))
    assert golden.outcome is Outcome.OK
    assert PERFTEST.parse(sample("6.24", kind)) == golden


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", ["6.06", "6.24"])
def test_document_and_table_say_the_same_and_a_document_that_is_no_json_is_not_needed(version: str, kind: str) -> None:
    whole = PERFTEST.parse(sample(version, kind))
    assert whole.outcome is Outcome.OK
    assert values(PERFTEST.parse(sample(version, kind, output=None))) == values(whole)
    for each in whole.measurements:
        assert PERFTEST.metric(each.metric).low <= each.value <= PERFTEST.metric(each.metric).high


def test_gigabits_and_what_the_table_calls_megabytes_are_bytes_per_second() -> None:
    in_gbits = values(PERFTEST.parse(sample("6.24", "write_bw")))
    in_mib = values(PERFTEST.parse(raw(BANDWIDTH, stdout=text("6.06-write_bw_mib.txt"))))
    assert in_gbits["bandwidth"] == pytest.approx(398.11 * GBIT)
    assert in_mib["bandwidth"] == pytest.approx(in_gbits["bandwidth"], rel=1e-3)


def test_a_document_whose_run_did_not_ask_for_gigabits_is_in_mebibytes() -> None:
    document = text("6.24-write_bw.json").replace("398.11", "47458.40")
    assert "47458.40" in document
    parsed = PERFTEST.parse(raw(BANDWIDTH, argv=("ib_write_bw", "--out_json"), output=document))
    assert values(parsed)["bandwidth"] == pytest.approx(398.11 * GBIT, rel=1e-3)


def test_a_bandwidth_that_its_message_rate_does_not_make_is_refused() -> None:
    document = text("6.24-write_bw.json").replace("398.11", "39.81")
    with pytest.raises(UnknownOutput, match="agree"):
        PERFTEST.parse(sample("6.24", "write_bw", output=document))


def test_a_peak_that_was_not_looked_for_is_no_zero() -> None:
    parsed = PERFTEST.parse(sample("6.24", "write_bw"))
    assert '"BW_peak": 0.00' in text("6.24-write_bw.json")
    assert set(values(parsed)) == {"bandwidth", "message_rate"}


def test_a_deviation_that_overflowed_costs_no_other_number() -> None:
    """perftest adds up truncated squares in an int: a few messages that take 50 ms are enough."""
    document = text("6.24-read_lat.json").replace('"t_stdev": 0.04', '"t_stdev": -nan')
    table = text("6.24-read_lat.txt").replace("\t0.04 ", "\t-nan ")
    assert "-nan" in document
    assert "-nan" in table
    assert PERFTEST.parse(sample("6.24", "read_lat", output=document, stdout=table)) == PERFTEST.parse(
        sample("6.24", "read_lat")
    )


def test_a_warning_within_the_table_is_passed_over() -> None:
    warned = "Conflicting CPU frequency values detected: 1500.000000 != 3300.016000. CPU Frequency is not max.\n"
    table = text("6.06-write_bw.txt").replace("MsgRate[Mpps]\n", f"MsgRate[Mpps]\n{warned}")
    assert warned in table
    assert PERFTEST.parse(sample("6.06", "write_bw", stdout=table)) == PERFTEST.parse(sample("6.06", "write_bw"))


@pytest.mark.parametrize(("name", "status"), [("no_device", 1), ("no_device_read_bw", 7)])
def test_without_a_device_it_is_not_measured_in_the_tools_words(name: str, status: int) -> None:
    parsed = PERFTEST.parse(raw(BANDWIDTH, stderr=text(f"6.06-{name}.err"), exit_status=status))
    assert parsed.outcome is Outcome.NOT_MEASURED
    assert "Did not detect devices" in parsed.reason
    assert not parsed.measurements


def test_gpudirect_with_a_perftest_without_cuda_is_a_matter_of_set_up() -> None:
    ended = raw({"use_cuda": 0}, stderr=text("6.06-no_cuda.err"), exit_status=1)
    assert "--use_cuda=0" in ended.argv
    parsed = PERFTEST.parse(ended)
    assert parsed.outcome is Outcome.CONFIG
    assert parsed.reason.startswith("this perftest was built without CUDA")


def test_a_gpu_whose_memory_the_adapter_may_not_reach_is_a_matter_of_set_up() -> None:
    said = (
        "Couldn't allocate MR with error=14\nfailed to create mr\nFailed to create MR\n Couldn't create IB resources\n"
    )
    parsed = PERFTEST.parse(raw({"use_cuda": 0}, stderr=said, exit_status=1))
    assert parsed.outcome is Outcome.CONFIG
    assert "load nvidia-peermem, or try use_cuda_dmabuf" in parsed.reason
    assert PERFTEST.parse(raw({"use_cuda": 0}, stderr=said, exit_status=None, signal=11)) == parsed  # it may crash then
    assert PERFTEST.parse(raw({}, stderr=said, exit_status=1)).outcome is Outcome.TOOL_FAILED
    crashed = PERFTEST.parse(raw({}, stderr=said, exit_status=None, signal=11))
    assert crashed.outcome is Outcome.TOOL_FAILED
    assert "ended by crashing (signal 11): Couldn't allocate MR" in crashed.reason


def test_dmabuf_is_asked_for_after_the_gpu_that_it_is_about() -> None:
    argv = raw({"use_cuda": 1, "use_cuda_dmabuf": True}).argv
    assert argv.index("--use_cuda_dmabuf") == argv.index("--use_cuda=1") + 1


def test_a_client_that_met_no_server_is_made_again_and_one_that_failed_otherwise_is_not() -> None:
    assert PAIR is not None
    refused = raw(BANDWIDTH, stderr="Couldn't connect to 10.0.0.2:5300\n", exit_status=1)
    assert PAIR.unanswered(refused) == "Couldn't connect to 10.0.0.2:5300"
    assert PERFTEST.parse(refused).outcome is Outcome.NOT_MEASURED
    assert PAIR.unanswered(raw(BANDWIDTH, stderr=text("6.06-no_device.err"), exit_status=1)) is None
    failed = raw(BANDWIDTH, stderr=" Completion with error at client\n", exit_status=1)
    assert PAIR.unanswered(failed) is None
    assert PERFTEST.parse(failed).outcome is Outcome.TOOL_FAILED


def test_a_server_knows_a_client_from_a_port_scan() -> None:
    assert PAIR is not None
    assert PAIR.served(text("6.06-server.txt"))
    assert not PAIR.served(text("6.06-server.txt").partition(" local address")[0])


def test_client_and_server_are_asked_for_the_same_load_and_only_the_client_writes() -> None:
    assert PAIR is not None
    params = PERFTEST.checked_params({"operation": "send", "size_bytes": 4096, "queue_pairs": 4, "device": "mlx5_1"})
    place = Workplace(Path("/s"), Path("/s/o"), True, "6.06", peer=Peer("10.0.0.2", 5300))
    client, server = PERFTEST.command(params, place).argv, PAIR.serve(params, 5300).argv
    assert set(server) < set(client)
    assert set(client) - set(server) == {"--out_json", "--out_json_file=/s/o", "10.0.0.2"}
    assert {"ib_send_bw", "--size=4096", "--qp=4", "--ib-dev=mlx5_1", "--report_gbits"} <= set(server)


@pytest.mark.parametrize(
    ("params", "case"),
    [
        ({}, "write_bw"),
        (LATENCY, "read_lat"),
        ({"size_bytes": 2**20, "queue_pairs": 4, "bidirectional": True, "use_cuda": 3}, "write_bw-1MiB-qp4-both-cuda3"),
        ({"device": "mlx5_1", "ib_port": 2, "gid_index": 3}, "write_bw-mlx5_1-port2-gid3"),
        ({"use_cuda": 1, "use_cuda_dmabuf": True}, "write_bw-cuda1dmabuf"),
    ],
)
def test_a_case_names_what_makes_the_load(params: dict[str, Any], case: str) -> None:
    assert PERFTEST.case(PERFTEST.checked_params(params)) == case


@pytest.mark.parametrize(
    "params",
    [
        {"measure": "latency", "queue_pairs": 2},
        {"measure": "latency", "operation": "write", "use_cuda": 0},
        {"use_cuda_dmabuf": True},
        {"device": "../x"},
        {"size_bytes": 0},
        {"duration_s": 2},
    ],
)
def test_a_parameter_that_perftest_could_not_run_with_is_refused(params: dict[str, Any]) -> None:
    with pytest.raises(BadParameter):
        PERFTEST.checked_params(params)


@settings(max_examples=150)
@given(st.sampled_from(["6.06", "6.24"]), st.sampled_from(list(KINDS)), st.booleans(), st.data())
def test_a_damaged_output_is_parsed_honestly_or_refused(
    version: str, kind: str, of_document: bool, data: st.DataObject
) -> None:
    suffix, where = ("json", "output") if of_document else ("txt", "stdout")
    broken = data.draw(damaged(text(f"{version}-{kind}.{suffix}")))
    status = data.draw(st.sampled_from([0, 1, None]))
    assert_honest_or_unknown(PERFTEST, sample(version, kind, **{where: broken}, exit_status=status))


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_number_in_document_or_table_is_parsed_honestly_or_refused(kind: str) -> None:
    for renumbered in each_renumbered(text(f"6.24-{kind}.json")):
        assert_honest_or_unknown(PERFTEST, sample("6.24", kind, output=renumbered))
    head, line, table = text(f"6.24-{kind}.txt").partition(" #bytes")
    for renumbered in each_renumbered(table):
        assert_honest_or_unknown(PERFTEST, sample("6.24", kind, stdout=head + line + renumbered, output=None))


# --- between two nodes --------------------------------------------------------------------------------------


def _stand(settings: Settings, store: Store, made: Any, node: str) -> list[RawOutput]:
    own = settings.home / node
    own.mkdir(exist_ok=True)
    alone = settings.model_copy(update={"home": own, "lease_dir": own})
    keys = exchange.run_rounds(alone, store, made, node, 1, lambda _: None)
    return [RawOutput.model_validate_json(store.read(key)) for key in keys]


def test_two_nodes_meet_and_the_row_is_marked_as_simulated(
    settings: Settings, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    programs = ("ib_write_bw", "ib_read_lat")
    monkeypatch.setenv("PATH", str(place(tmp_path / "bin", "perftest", *programs)), prepend=":")
    nodes = tuple(make.node(name, address="127.0.0.1", features=("rdma",), free_floor_bytes=0) for name in ("a", "b"))
    entries = tuple(SuiteEntry(benchmark="perftest", params=each, pairs="all") for each in (BANDWIDTH, LATENCY))
    made = plan.make(
        Suite(name="network", description="", entries=entries),
        nodes,
        run_id=make.RUN_ID,
        created_at=make.AT,
        trigger="cli",
        rules=Rules(base_port=servers.free_port(), wait_s=60.0, ports=2),
    )
    assert {job.case for job in made.jobs} == {"write_bw", "read_lat"}
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda name: _stand(settings, store, made, name), ("a", "b")))
    raws = [each for found in results for each in found]
    assert len(raws) == 2
    for each in raws:
        parsed = PERFTEST.parse(each)
        assert (parsed.outcome, parsed.reason) == (Outcome.OK, "")
        assert each.simulated
        assert each.tool_version == "6.06"
        assert each.output
        assert {m.labels["device"] for m in parsed.measurements} == {"mlx5_0"}


def test_a_node_without_rdma_is_not_asked() -> None:
    nodes = tuple(make.node(name, features=()) for name in ("a", "b"))
    entry = SuiteEntry(benchmark="perftest", pairs="all")
    suite = Suite(name="network", description="", entries=(entry,))
    with pytest.raises(BadSelection, match="feature rdma"):
        plan.make(suite, nodes, run_id=make.RUN_ID, created_at=make.AT, trigger="cli")
