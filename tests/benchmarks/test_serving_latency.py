"""serving_latency against a real HTTP server with real Prometheus histograms, whose latencies are known."""

import json
import os
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipelines import benchmark, process
from pipelines.benchmark import Workplace
from pipelines.errors import BadParameter
from pipelines.families import serving
from pipelines.node import run_once
from pipelines.records import Endpoint, Node, Outcome, Parsed, RawOutput
from pipelines.settings import Settings
from tests import make, models, servers
from tests.model_server import LATENCIES, ModelServer, running

SERVING = benchmark.get("serving_latency")
FOLDER = Path(__file__).parents[1] / "samples/serving_latency"
PARAMS: dict[str, Any] = {"mix": "short", "steps": "1,4", "requests": 20, "step_s": 30, "request_s": 30}
LLAMA = Path(__file__).parents[2] / ".venv/llama/usr"  # by infra/bootstrap.sh
HERE = Workplace(Path("/s"), Path("/s/o"), True, "0.1.0")


def of(given: Mapping[str, Any], **fields: Any) -> RawOutput:
    params = SERVING.checked_params(given)
    job = make.job(
        benchmark="serving_latency", case=SERVING.case(params), params=params.model_dump(mode="json", exclude_none=True)
    )
    return make.raw(job, **{"tool": SERVING.tool, "tool_version": "0.1.0", **fields})


def run(server: ModelServer, folder: Path, *, key: str | None = None, **given: Any) -> RawOutput:
    """The probe, as a node starts it, on the server as its inventory names it."""
    params = SERVING.checked_params({**PARAMS, **given})
    place = Workplace(folder, folder / "o", True, "0.1.0", endpoints={"chat": Endpoint(url=server.url)})
    environ = {**os.environ, **({"OPENAI_API_KEY": key} if key else {})}
    argv = SERVING.command(params, place).argv
    done = process.run(argv, timeout_s=120, cwd=folder, environ=environ, passed=SERVING.passed)
    fields = {"exit_status": done.exit_status, "stdout": done.stdout, "stderr": done.stderr}
    return of({**PARAMS, **given}, argv=done.argv, **fields)


def values(parsed: Parsed, concurrency: int) -> dict[str, float]:
    return {each.metric: each.value for each in parsed.measurements if each.labels["concurrency"] == str(concurrency)}


@pytest.mark.integration
def test_a_load_gives_the_quantiles_that_the_servers_histograms_hold(tmp_path: Path) -> None:
    with running(ModelServer()) as server:
        parsed = SERVING.parse(run(server, tmp_path))
    assert (parsed.outcome, parsed.reason) == (Outcome.OK, "")
    assert [note for note in parsed.notes if "computed" not in note] == []  # a server that never waits keeps them busy
    assert len(LATENCIES) == PARAMS["requests"]  # each step observes each of them once
    for concurrency in (1, 4):
        got = values(parsed, concurrency)
        # 5 of 20 requests took at most 0.25 s, 10 at most 0.5 s: linear within the bucket, as PromQL has it
        assert got["request_latency_p50"] == pytest.approx(0.5)
        assert got["request_latency_p90"] == pytest.approx(0.75 + 0.25 * 3 / 5)
        assert got["request_latency_p999"] == pytest.approx(0.75 + 0.25 * 4.98 / 5)
        assert got["first_token_p50"] == pytest.approx(0.25)
        assert got["inter_token_p50"] == pytest.approx(0.05)
        assert got["request_rate"] == pytest.approx(got["client_request_rate"])
        assert got["error_ratio"] == 0
        assert SERVING.required(SERVING.params()) <= set(got)
    for each in parsed.measurements:
        metric = SERVING.metric(each.metric)
        assert metric.low <= each.value <= metric.high
        assert each.unit == metric.unit
        assert each.labels["model"] == "test/model"


@pytest.mark.integration
def test_every_request_is_another_one_and_within_its_bounds(tmp_path: Path) -> None:
    with running(ModelServer()) as server:
        raw = run(server, tmp_path, steps="4", ignore_eos=True)
    asked = server.asked
    assert len(asked) == 1 + PARAMS["requests"]
    texts = [str(each["messages"]) for each in asked]
    assert len({text[:40] for text in texts}) == len(texts)
    assert {each["max_tokens"] for each in asked} <= {most for _, most in serving.MIXES["short"]}
    assert all(each["ignore_eos"] and each["stream"] for each in asked)
    assert values(SERVING.parse(raw), 4)["error_ratio"] == 0


@pytest.mark.integration
def test_a_step_in_which_the_server_began_anew_gives_nothing_and_never_a_negative_count(tmp_path: Path) -> None:
    with running(ModelServer(begins_anew_at=32)) as server:  # 1 to warm up, 20 of the first step
        parsed = SERVING.parse(run(server, tmp_path))
    assert parsed.outcome is Outcome.TRUNCATED
    assert parsed.reason == "concurrency 4: the server began anew in between, so that its counts say nothing"
    assert values(parsed, 1)["request_latency_p50"] == pytest.approx(0.5)
    assert not values(parsed, 4)


@pytest.mark.integration
def test_requests_of_others_at_the_same_time_are_contention(tmp_path: Path) -> None:
    with running(ModelServer(of_others=1)) as server:
        parsed = SERVING.parse(run(server, tmp_path, steps="2"))
    assert (parsed.outcome, parsed.measurements) == (Outcome.CONTENDED, ())
    assert "20 requests of others" in parsed.reason


@pytest.mark.integration
@pytest.mark.parametrize(
    ("server", "note", "uncounted"),
    [
        (
            ModelServer(has_metrics=False, sends_usage=False),
            "answers with HTTP 404",
            ("concurrency 2: 20 answers came without a count of their tokens; their chunks are counted",),
        ),
        (ModelServer(flavour="llamacpp"), "has no histogram of a server that is known", ()),
    ],
    ids=["none", "others"],
)
def test_a_server_without_metrics_gives_what_its_clients_timed(
    server: ModelServer, note: str, uncounted: tuple[str, ...], tmp_path: Path
) -> None:
    with running(server):
        parsed = SERVING.parse(run(server, tmp_path, steps="2"))
    assert parsed.outcome is Outcome.OK
    assert {each.metric for each in parsed.measurements} >= SERVING.required(SERVING.params())
    assert not any(each.metric.startswith(serving.ROLES) for each in parsed.measurements)
    assert tuple(note for note in parsed.notes if "computed" not in note) == (
        f"{server.url}/metrics {note}",
        *uncounted,
    )


@pytest.mark.integration
@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_the_thoughts_of_a_model_are_tokens_whatever_the_server_calls_them(name: str, tmp_path: Path) -> None:
    with running(ModelServer(says=name)) as server:
        parsed = SERVING.parse(run(server, tmp_path, steps="1", requests=2))
    assert (parsed.outcome, values(parsed, 1)["error_ratio"]) == (Outcome.OK, 0)


@pytest.mark.integration
def test_a_step_begins_no_request_after_its_time(tmp_path: Path) -> None:
    with running(ModelServer()) as server:
        parsed = SERVING.parse(run(server, tmp_path, steps="2", requests=10_000, step_s=0.1))
    assert parsed.outcome is Outcome.OK
    assert 1 + 2 <= len(server.asked) < 1 + 10_000


@pytest.mark.integration
def test_an_answer_without_end_is_bounded_in_bytes(tmp_path: Path) -> None:
    with running(ModelServer(is_endless=True)) as server:
        parsed = SERVING.parse(run(server, tmp_path, steps="1", requests=1))
    assert parsed.outcome is Outcome.TOOL_FAILED
    assert "none of 1 requests was answered: ValueError: the answer has more than" in parsed.reason


@pytest.mark.integration
def test_a_node_puts_load_on_the_server_that_its_inventory_names(settings: Settings) -> None:
    params = SERVING.checked_params({**PARAMS, "steps": "1", "requests": 2})
    job = make.job(benchmark="serving_latency", params=params.model_dump(mode="json", exclude_none=True), timeout_s=120)
    with running(ModelServer()) as server:
        named = make.node(endpoints={"chat": Endpoint(url=server.url)}, free_floor_bytes=0)
        parsed = SERVING.parse(run_once(settings, named, job, say=lambda _: None))
    assert (parsed.outcome, len(server.asked)) == (Outcome.OK, 3)


@pytest.mark.integration
def test_answers_that_are_broken_off_are_failures_and_no_latencies(tmp_path: Path) -> None:
    with running(ModelServer(breaks_off_at=12)) as server:
        parsed = SERVING.parse(run(server, tmp_path, steps="1"))
    got = values(parsed, 1)
    assert parsed.outcome is Outcome.OK
    assert got["error_ratio"] == pytest.approx(0.5)
    assert "10 of 20 requests failed" in parsed.notes[-1]


@pytest.mark.integration
@pytest.mark.parametrize(("status", "outcome"), [(404, Outcome.CONFIG), (503, Outcome.NOT_MEASURED)])
def test_a_server_that_refuses_is_not_measured(status: int, outcome: Outcome, tmp_path: Path) -> None:
    with running(ModelServer(status=status)) as server:
        parsed = SERVING.parse(run(server, tmp_path))
    assert (parsed.outcome, parsed.measurements) == (outcome, ())
    assert f"HTTP {status}" in parsed.reason


@pytest.mark.integration
def test_a_key_is_sent_and_stands_nowhere(tmp_path: Path) -> None:
    with running(ModelServer(key="sk-secret")) as server:
        raw = run(server, tmp_path, key="sk-secret", steps="1")
        refused = run(server, tmp_path, steps="1")
    assert SERVING.parse(raw).outcome is Outcome.OK
    assert "sk-secret" not in raw.model_dump_json()
    assert SERVING.parse(refused).outcome is Outcome.CONFIG


@pytest.mark.integration
def test_an_endpoint_at_which_nobody_answers_is_not_measured(tmp_path: Path) -> None:
    with running(ModelServer()) as server:
        pass
    parsed = SERVING.parse(run(server, tmp_path))
    assert parsed.outcome is Outcome.NOT_MEASURED
    assert "does not answer" in parsed.reason


@pytest.mark.integration
def test_llama_server_answers_every_request_of_a_load(tmp_path: Path) -> None:
    """It ends each connection after a stream, lists its model by path and has metrics without a histogram."""
    model = models.write(tmp_path / "tiny-f16.gguf", "f16")
    port = servers.free_port()
    libraries = LLAMA / "lib/x86_64-linux-gnu"
    loader = next(libraries.glob("ld-linux*.so.*"))
    program = (str(loader), "--library-path", f"{libraries}:{libraries}/llama", str(LLAMA / "bin/llama-server"))
    where = ("--model", str(model), "--alias", "tiny", "--host", "127.0.0.1", "--port", str(port))
    argv = (*program, *where, "--metrics", "--no-webui", "--parallel", "2", "--ctx-size", "4096")

    def is_up() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    with servers.running(tmp_path, {"llama-server": argv}, is_up):
        server = ModelServer(url=f"http://127.0.0.1:{port}")
        raw = run(server, tmp_path, steps="1,2", requests=6, api="completions", ignore_eos=True)
    parsed = SERVING.parse(raw)
    assert (parsed.outcome, parsed.reason) == (Outcome.OK, "")
    for concurrency in (1, 2):
        got = values(parsed, concurrency)
        assert got["error_ratio"] == 0
        assert SERVING.required(SERVING.params()) <= set(got)
    tokens = [each["tokens"] for step in json.loads(raw.stdout)["steps"] for each in step["requests"]]
    assert sorted(tokens) == sorted([most for _, most in serving.MIXES["short"]] * 4)


def test_an_endpoint_that_the_inventory_does_not_name_is_configuration() -> None:
    argv = SERVING.command(SERVING.params(), HERE).argv
    assert "--url=" in argv
    done = process.run(argv, timeout_s=60)
    parsed = SERVING.parse(of({}, exit_status=done.exit_status, stdout=done.stdout, stderr=done.stderr))
    assert parsed.outcome is Outcome.CONFIG
    assert "the inventory has no endpoint 'chat' of this node" in parsed.reason


@pytest.mark.parametrize("name", ["vllm", "no_metrics"])
def test_a_real_output_gives_exactly_the_golden_result(name: str) -> None:
    golden = Parsed.model_validate_json((FOLDER / f"0.1.0-{name}.golden.json").read_text())
    assert SERVING.parse(of(PARAMS, stdout=(FOLDER / f"0.1.0-{name}.json").read_text())) == golden


def test_a_quantile_above_the_last_bound_is_that_bound_and_is_noted() -> None:
    document = json.loads((FOLDER / "0.1.0-vllm.json").read_text())
    for step in document["steps"]:
        for series in step["after"]["histograms"]["vllm:e2e_request_latency_seconds"]:
            series["buckets"]["+Inf"] += 1
    parsed = SERVING.parse(of(PARAMS, stdout=json.dumps(document)))
    assert values(parsed, 4)["request_latency_p999"] == 2.5
    assert "concurrency 4: request_latency p99, p999 lie above 2.5 s, the last of the server's bounds" in parsed.notes


def test_clients_that_are_busy_themselves_are_noted() -> None:
    document = json.loads((FOLDER / "0.1.0-vllm.json").read_text())
    document["steps"][1]["client_busy"] = 0.93
    parsed = SERVING.parse(of(PARAMS, stdout=json.dumps(document)))
    note = "concurrency 4: the clients computed for 93% of the time: what they timed is their own, too"
    assert (parsed.outcome, parsed.notes) == (Outcome.OK, (note,))


def test_a_step_that_is_missing_is_no_whole_measurement() -> None:
    document = json.loads((FOLDER / "0.1.0-vllm.json").read_text())
    del document["steps"][1]
    parsed = SERVING.parse(of(PARAMS, stdout=json.dumps(document)))
    assert (parsed.outcome, parsed.reason) == (Outcome.TRUNCATED, "there is no step of concurrency 4")


@pytest.mark.parametrize("given", [{"endpoint": "http://x/"}, {"steps": "1,1"}, {"steps": "0"}, {"steps": "2000"}])
def test_a_load_that_cannot_be_made_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(BadParameter):
        SERVING.checked_params(given)


@pytest.mark.parametrize("url", ["http://user:pass@host/", "file:///etc", "http://h/?key=1", "http://h/ x"])
def test_an_endpoint_is_an_address_without_secrets(url: str) -> None:
    with pytest.raises(ValueError, match="url"):
        Node.model_validate({**make.node().model_dump(), "endpoints": {"chat": {"url": url}}})


@pytest.mark.parametrize(
    ("given", "case"),
    [
        ({}, "chat-mixed"),
        ({"mix": "short", "api": "completions", "steps": "1,8"}, "chat-short-completions-c1_8"),
        ({"model": "meta-llama/Llama-3.1-8B"}, "chat-mixed-meta-llama_Llama-3.1-8B"),
    ],
)
def test_a_case_names_what_makes_the_load(given: dict[str, Any], case: str) -> None:
    assert SERVING.case(SERVING.checked_params(given)) == case
