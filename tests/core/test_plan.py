"""Suites and plans."""

from pathlib import Path
from typing import Any

import pytest

from pipelines import keys, plan, stages, storage, suites
from pipelines.datasets import publications, publish
from pipelines.datasets.manifest import Packing
from pipelines.errors import BadFile, BadParameter, BadSelection, QuotaExceeded, Unknown
from pipelines.records import Job, Plan, Suite, SuiteEntry
from pipelines.settings import Settings
from pipelines.storage import Store
from tests import make

NODES = (make.node("gpu-01"), make.node("gpu-02"))
SUITE = Suite(
    name="short",
    description="two profiles",
    entries=(
        SuiteEntry(benchmark="fio", params={"runtime_s": 1}, matrix={"profile": ("seq_read", "rand_write")}, repeats=3),
    ),
)


def planned(suite: Suite = SUITE, **asked: object) -> Plan:
    return plan.make(suite, NODES, run_id=make.RUN_ID, created_at=make.AT, trigger="cli", **asked)  # type: ignore[arg-type]


def test_a_plan_has_a_job_for_every_node_case_and_repeat() -> None:
    assert [(job.node, job.case, job.repeat) for job in planned().jobs] == [
        (node, case, repeat)
        for node in ("gpu-01", "gpu-02")
        for case in ("seq_read", "rand_write")
        for repeat in (1, 2, 3)
    ]


def test_the_same_input_gives_the_same_plan() -> None:
    assert planned() == planned()


def test_every_job_of_a_plan_has_an_id_of_its_own() -> None:
    jobs = planned().jobs
    assert len({job.job_id for job in jobs}) == len(jobs)


def test_a_job_carries_every_parameter_so_that_later_defaults_change_nothing() -> None:
    assert set(planned().jobs[0].params) >= {"profile", "runtime_s", "block_size_bytes", "iodepth"}


def test_overrides_and_repeats_replace_those_of_the_suite() -> None:
    made = planned(overrides={"runtime_s": 2}, repeats=1)
    assert {job.params["runtime_s"] for job in made.jobs} == {2}
    assert len(made.jobs) == 4


def test_an_override_of_a_matrix_leaves_one_job_where_its_combinations_become_the_same() -> None:
    made = planned(overrides={"profile": "mixed"})
    assert [(job.node, job.case, job.repeat) for job in made.jobs] == [
        (node, "mixed", repeat) for node in ("gpu-01", "gpu-02") for repeat in (1, 2, 3)
    ]


def test_an_override_that_no_benchmark_takes_is_refused_with_the_known_names() -> None:
    with pytest.raises(BadParameter, match=r"'colour': there is no such parameter; known: .*runtime_s"):
        planned(overrides={"colour": "red"})


def test_a_parameter_that_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(BadParameter, match="benchmark fio, parameter 'runtime_s'"):
        planned(overrides={"runtime_s": "soon"})


def test_an_unknown_benchmark_is_refused() -> None:
    with pytest.raises(Unknown, match=r"unknown benchmark 'nope'; known: .*fio"):
        planned(Suite(name="s", description="", entries=(SuiteEntry(benchmark="nope"),)))


def test_what_a_node_has_no_feature_for_is_left_out_of_the_plan_and_said() -> None:
    suite = SUITE.model_copy(
        update={
            "entries": (
                SuiteEntry(benchmark="fio", needs=("gpu",)),
                SuiteEntry(benchmark="fio", params={"profile": "seq_read"}, needs=("gpu", "nvme")),
                SuiteEntry(benchmark="iperf3", needs=("gpu",)),
            )
        }
    )
    nodes = (make.node("cpu-01"), make.node("gpu-01", features=("gpu",)), make.node("gpu-02", features=("gpu", "nvme")))
    made = plan.make(suite, nodes, run_id=make.RUN_ID, created_at=make.AT, trigger="cli")
    assert [node.name for node in made.nodes] == ["gpu-01", "gpu-02"]
    assert {(job.node, job.peer, job.case) for job in made.jobs} == {
        ("gpu-01", None, "rand_read"),
        ("gpu-02", None, "rand_read"),
        ("gpu-02", None, "seq_read"),
        ("gpu-02", "gpu-01", "tcp"),
    }
    assert made.left_out == (
        "fio is not run on cpu-01: the inventory does not give it the feature gpu",
        "fio is not run on cpu-01, gpu-01: the inventory does not give it the feature nvme",
        "iperf3 is not run on cpu-01: the inventory does not give it the feature gpu",
    )


def test_a_test_between_two_nodes_that_has_one_is_left_out_and_said() -> None:
    entries = (SuiteEntry(benchmark="fio"), SuiteEntry(benchmark="iperf3"), SuiteEntry(benchmark="iperf3", repeats=2))
    suite = SUITE.model_copy(update={"entries": entries})

    def planned_alone(suite: Suite) -> Plan:
        return plan.make(suite, (make.node("gpu-01"),), run_id=make.RUN_ID, created_at=make.AT, trigger="cli")

    assert planned_alone(suite).left_out == (
        "iperf3 is not run on gpu-01: it measures between two nodes, and there is no other for it",
    )
    with pytest.raises(BadSelection, match="between two nodes"):
        planned_alone(suite.model_copy(update={"entries": entries[1:]}))


def test_a_suite_for_which_no_node_has_the_features_is_refused_with_their_names() -> None:
    suite = SUITE.model_copy(update={"entries": (SuiteEntry(benchmark="fio", needs=("gpu",)),)})
    with pytest.raises(BadSelection, match=r"fio is not run on gpu-01, gpu-02: .* the feature gpu"):
        planned(suite)


def test_a_preview_shows_the_command_in_the_nodes_own_scratch() -> None:
    job = planned().jobs[0]
    argv = plan.preview(job, Path("/mnt/nvme"))
    assert argv[0] == "fio"
    assert f"--directory=/mnt/nvme/fleetmark-{job.job_id}" in argv


def test_the_id_of_a_job_without_a_dataset_is_what_it_was_before_there_were_any() -> None:
    for job in planned().jobs:
        named_by = [make.RUN_ID, job.node, job.benchmark, dict(job.params), job.repeat]
        assert job.job_id == keys.content_id(named_by)


def test_a_job_has_the_version_that_its_suite_names_and_another_id_for_each() -> None:
    suite = with_dataset("weights@latest")
    (first,), (second,) = (jobs_of_one(suite, {"weights@latest": f"weights@{digit * 32}"}) for digit in "ab")
    (without,) = jobs_of_one(SUITE)
    assert (first.dataset, second.dataset, without.dataset) == (f"weights@{'a' * 32}", f"weights@{'b' * 32}", None)
    assert len({first.job_id, second.job_id, without.job_id}) == 3


def test_entries_that_differ_in_their_dataset_alone_are_jobs_of_their_own() -> None:
    one, other = (with_dataset(name).entries for name in ("small", "large"))
    suite = SUITE.model_copy(update={"entries": one + other})
    assert [job.dataset for job in jobs_of_one(suite, {"small": f"s@{'a' * 32}", "large": f"l@{'b' * 32}"})] == [
        f"s@{'a' * 32}",
        f"l@{'b' * 32}",
    ]


def test_a_dataset_that_was_not_resolved_is_refused() -> None:
    with pytest.raises(Unknown, match=r"unknown dataset 'weights@v2'; known: weights$"):
        planned(with_dataset("weights@v2"), datasets={"weights": f"weights@{'a' * 32}"})


def test_a_suite_that_names_a_dataset_is_planned_with_the_version_that_its_tag_is_on(
    settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "w/model.bin").write_bytes(b"w" * 100)
    packing = Packing(format="blob", shard_bytes=2**16)
    wanted = publications.Request(source=str(tmp_path / "w"), dataset="weights", tag="v1", packing=packing)
    made = publish.publish(settings, storage.open_store(settings), wanted, make.AT, lambda _: None)
    suite = settings.model_copy(update={"suites": tmp_path})
    for named in ("weights@v1", made.reference, f"weights@{made.version[:8]}"):
        write_suite(tmp_path, named)
        jobs = stages.make_plan(suite, stages.Request(suite="mine"), make.RUN_ID, make.AT).jobs
        assert {job.dataset for job in jobs} == {made.reference}


@pytest.mark.parametrize("named", ["weights", "weights@v2"])
def test_an_unknown_dataset_is_refused_when_the_plan_is_made(settings: Settings, tmp_path: Path, named: str) -> None:
    write_suite(tmp_path, named)
    with pytest.raises(Unknown, match="unknown dataset 'weights'; known: none"):
        stages.make_plan(
            settings.model_copy(update={"suites": tmp_path}), stages.Request(suite="mine"), make.RUN_ID, make.AT
        )


def test_a_suite_without_a_dataset_is_planned_without_a_store(settings: Settings) -> None:
    nowhere = settings.model_copy(update={"store": "gopher://nowhere"})
    assert stages.make_plan(nowhere, stages.Request(suite="quick"), make.RUN_ID, make.AT).jobs


SHARED = """
[[nodes]]
name = "gpu-01"
queue = "gpu-01"
scratch = "scratch"

[[nodes]]
name = "gpu-02"
queue = "gpu-02"
scratch = "scratch"

[tenants.ml]
node_minutes_per_day = 1

[rounds]
within_nights = 2
"""


@pytest.fixture
def shared(settings: Settings, tmp_path: Path) -> Settings:
    (tmp_path / "fleet.toml").write_text(SHARED)
    return settings.model_copy(update={"inventory": tmp_path / "fleet.toml"})


def test_an_ad_hoc_run_beyond_its_tenants_quota_is_refused_when_it_is_planned(shared: Settings) -> None:
    with pytest.raises(QuotaExceeded, match=r"tenant ml: .* of 1\.0 a day"):
        stages.make_plan(shared, stages.Request(suite="quick", tenant="ml"), make.RUN_ID, make.AT)
    assert stages.make_plan(shared, stages.Request(suite="quick"), make.RUN_ID, make.AT).tenant == "default"


def test_the_nightly_run_goes_round_the_nodes_and_whoever_names_nodes_gets_them(shared: Settings) -> None:
    def planned_nodes(**asked: Any) -> list[str]:
        made = stages.make_plan(shared, stages.Request(suite="quick", **asked), make.RUN_ID, make.AT)
        return [node.name for node in made.nodes]

    assert planned_nodes(trigger="schedule") == ["gpu-01"], "nobody was covered yet, and half of them is one"
    assert planned_nodes() == ["gpu-01", "gpu-02"]
    assert planned_nodes(trigger="schedule", nodes=("gpu-02",)) == ["gpu-02"]


def test_a_dataset_that_cannot_be_a_name_is_refused_by_line_and_field(tmp_path: Path) -> None:
    write_suite(tmp_path, "../weights")
    with pytest.raises(BadFile, match=r"mine\.toml, line 5, field benchmarks\[0\]\.dataset"):
        suites.load(tmp_path, "mine")


def with_dataset(name: str) -> Suite:
    entries = tuple(entry.model_copy(update={"dataset": name}) for entry in SUITE.entries)
    return SUITE.model_copy(update={"entries": entries})


def jobs_of_one(suite: Suite, datasets: dict[str, str] | None = None) -> tuple[Job, ...]:
    """The jobs of one case on one node."""
    made = plan.make(
        suite,
        NODES[:1],
        run_id=make.RUN_ID,
        created_at=make.AT,
        trigger="cli",
        overrides={"profile": "mixed"},
        repeats=1,
        datasets=datasets,
    )
    return made.jobs


def write_suite(folder: Path, dataset: str) -> None:
    (folder / "mine.toml").write_text(
        f'description = "x"\n\n[[benchmarks]]\nbenchmark = "fio"\ndataset = "{dataset}"\n'
    )


def test_a_plan_survives_its_json() -> None:
    made = planned()
    assert Plan.model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize("name", ["quick", "storage", "nightly"])
def test_the_shipped_suites_can_be_planned(settings: Settings, name: str) -> None:
    made = stages.make_plan(settings, stages.Request(suite=name), make.RUN_ID, make.AT)
    node = made.nodes[0]
    assert made.jobs
    assert all(job.written_bytes <= node.scratch_cap_bytes for job in made.jobs)


def test_the_quick_suite_takes_less_than_90_seconds(settings: Settings) -> None:
    made = stages.make_plan(settings, stages.Request(suite="quick"), make.RUN_ID, make.AT)
    assert sum(job.seconds for job in made.jobs) < 90


def test_an_unknown_suite_is_refused(settings: Settings) -> None:
    with pytest.raises(Unknown, match=r"unknown suite 'fast'; known: .*quick, .*storage"):
        suites.load(settings.suites, "fast")


def test_a_malformed_suite_is_refused_by_line_and_field(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text('description = "x"\n\n[[benchmarks]]\nbenchmark = "fio"\nrepeats = 0\n')
    with pytest.raises(BadFile, match=r"bad\.toml, line 5, field benchmarks\[0\]\.repeats"):
        suites.load(tmp_path, "bad")


def test_a_published_plan_is_what_a_retry_finds(store: Store) -> None:
    first = stages.publish_plan(store, planned())
    second = stages.publish_plan(store, planned(note="asked again"))
    assert second == first


def test_a_run_that_was_never_planned_is_unknown(store: Store) -> None:
    with pytest.raises(Unknown, match="unknown run"):
        stages.load_plan(store, make.RUN_ID)
