"""Approvals: who may decide, that it is decided once, and that a node goes by nothing else."""

from datetime import UTC, datetime
from typing import Any

import pytest

from pipelines import approvals, keys, node, plan, stages
from pipelines.approvals import Answer, Approval
from pipelines.errors import AlreadyDecided, CorruptObject, NotApproved
from pipelines.records import Node, Outcome, Plan, RawOutput, Suite, SuiteEntry
from pipelines.settings import Settings
from pipelines.storage import Store
from tests import make

AT = datetime(2026, 11, 21, 2, 30, tzinfo=UTC)
YES = Answer(granted=True, by=("bob",), asked_by="ann", at=AT)
FIO = SuiteEntry(benchmark="fio", params={"size_bytes": 2**20, "runtime_s": 0.1, "ramp_s": 0.0})
DISK = SuiteEntry(benchmark="raw_device", params={"size_bytes": 2**20})
SECOND_DISK = SuiteEntry(benchmark="raw_device", params={"size_bytes": 2**20, "device": 1})


def planned(*entries: SuiteEntry, serials: tuple[str, ...] = ("SERIAL-1",), run_id: str = make.RUN_ID) -> Plan:
    place: Node = make.node(devices=serials, free_floor_bytes=0)
    suite = Suite(name="disks", description="", entries=entries or (DISK,))
    return plan.make(suite, (place,), run_id=run_id, created_at=make.AT, trigger="manual")


def published(store: Store, made: Plan) -> str:
    """The hash of what has been published."""
    stages.publish_plan(store, made)
    return keys.sha256(store.read(keys.plan_key(made.run_id)))


# --- who may ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, ""),
        ({"by": ("Bob B.", "bob")}, ""),
        ({"asked_by": None, "scheduled": True}, ""),
        ({"by": ()}, "nobody answered in time"),
        ({"by": (), "granted": False}, "nobody answered in time"),
        ({"granted": False}, "bob refused"),
        ({"by": ("ann",)}, "ann started the run, and another person has to approve it"),
        ({"by": ("Ann A.", "ann")}, "Ann A. started the run, and another person has to approve it"),
        ({"asked_by": None}, "it is not known who started the run, and another person has to approve it"),
        ({"by": ("ann",), "scheduled": True}, "ann started the run, and another person has to approve it"),
    ],
)
def test_only_another_person_than_the_one_who_started_the_run_can_approve(changed: dict[str, Any], reason: str) -> None:
    decided = approvals.decide(planned(), "0" * 64, YES.model_copy(update=changed))
    assert (decided.granted, decided.reason) == (not reason, reason)


def test_what_is_asked_names_every_node_disk_and_what_is_written(store: Store) -> None:
    made = planned(DISK, SECOND_DISK, FIO, serials=("SERIAL-1", "SERIAL-2"))
    sha256 = published(store, made)
    asked = approvals.question(store, make.RUN_ID)
    assert asked is not None
    assert (asked.plan, asked.subject) == (sha256, f"Overwrite 2 disks? Run {make.RUN_ID}")
    assert "| `gpu-01` | `SERIAL-1` | 1 | 1 MB |" in asked.body
    assert "| `gpu-01` | `SERIAL-2` | 1 | 1 MB |" in asked.body


def test_nothing_is_asked_about_a_run_that_writes_to_no_disk(store: Store) -> None:
    published(store, planned(FIO))
    assert approvals.question(store, make.RUN_ID) is None


# --- decided once, and believed by its hash -----------------------------------------------------------------


def test_a_decision_stays_and_the_same_again_is_the_same(store: Store) -> None:
    sha256 = published(store, planned())
    first = approvals.record(store, make.RUN_ID, sha256, YES)
    again = approvals.record(store, make.RUN_ID, sha256, YES.model_copy(update={"by": ("eve",)}))
    assert again == first
    assert first[0].devices == {"gpu-01": ("SERIAL-1",)}
    with pytest.raises(AlreadyDecided, match=r"on 2026-11-21 02:30:00 UTC \(approved\); start another run"):
        approvals.record(store, make.RUN_ID, sha256, YES.model_copy(update={"granted": False}))
    assert approvals.load(store, make.RUN_ID, first[1])[1] == first[0]


def test_a_no_does_not_become_a_yes(store: Store) -> None:
    sha256 = published(store, planned())
    approvals.record(store, make.RUN_ID, sha256, YES.model_copy(update={"granted": False}))
    with pytest.raises(AlreadyDecided, match="not approved: bob refused"):
        approvals.record(store, make.RUN_ID, sha256, YES)


def test_a_plan_that_was_exchanged_after_it_was_shown_is_not_decided_about(store: Store) -> None:
    sha256 = published(store, planned())
    store.replace(keys.plan_key(make.RUN_ID), planned(serials=("OTHER-DISK",)).model_dump_json().encode())
    with pytest.raises(CorruptObject, match="not the plan that was shown"):
        approvals.record(store, make.RUN_ID, sha256, YES)
    assert not store.exists(keys.approval_key(make.RUN_ID))


def test_what_somebody_else_put_into_the_store_is_not_believed(settings: Settings, store: Store) -> None:
    """A plan or an approval that was exchanged after the decision starts nothing on a node."""
    made = planned()
    no, sha256 = approvals.record(store, make.RUN_ID, published(store, made), YES.model_copy(update={"granted": False}))
    key = keys.approval_key(make.RUN_ID)
    written = store.read(key)
    store.replace(key, no.model_copy(update={"granted": True, "reason": ""}).model_dump_json().encode())
    with pytest.raises(CorruptObject, match="not what was decided"):
        stages.measure_devices(settings, store, make.RUN_ID, "gpu-01", 1, print, approval=sha256)
    store.replace(key, written)
    store.replace(keys.plan_key(make.RUN_ID), planned(serials=("OTHER-DISK",)).model_dump_json().encode())
    with pytest.raises(CorruptObject, match="not the plan that was shown"):
        stages.measure_devices(settings, store, make.RUN_ID, "gpu-01", 1, print, approval=sha256)
    assert store.keys_under(keys.raw_prefix(make.RUN_ID)) == []


# --- on the node --------------------------------------------------------------------------------------------


def refusals(store: Store, stored: tuple[str, ...]) -> list[tuple[Outcome, str]]:
    raws = [RawOutput.model_validate_json(store.read(key)) for key in stored]
    assert all(raw.refusal and raw.argv == () for raw in raws)
    return [(raw.refusal.outcome, raw.refusal.reason) for raw in raws if raw.refusal]


def test_a_refused_run_has_rows_that_say_who_refused_and_its_other_jobs_run(settings: Settings, store: Store) -> None:
    made = planned(FIO, DISK)
    _, sha256 = approvals.record(store, make.RUN_ID, published(store, made), YES.model_copy(update={"granted": False}))
    (key,) = stages.measure(settings, store, make.RUN_ID, "gpu-01", 1, print)
    assert RawOutput.model_validate_json(store.read(key)).exit_status == 0
    stored = stages.measure_devices(settings, store, make.RUN_ID, "gpu-01", 1, print, approval=sha256)
    assert refusals(store, stored) == [(Outcome.CONFIG, "not approved: bob refused")]


def test_a_device_that_the_inventory_does_not_list_is_refused_without_asking_anybody(
    settings: Settings, store: Store
) -> None:
    made = planned(SECOND_DISK)
    assert (made.device_nodes(), made.jobs[0].device) == ((), None)
    published(store, made)
    stored = stages.measure(settings, store, make.RUN_ID, "gpu-01", 1, print)
    ((outcome, reason),) = refusals(store, stored)
    assert (outcome, reason.partition(": ")) == (
        Outcome.CONFIG,
        (
            "benchmark raw_device, parameter 'device'",
            ": ",
            "the inventory has no such disk of this node: its serial number has to stand in `devices`",
        ),
    )


def test_an_approval_is_about_its_disks_alone() -> None:
    made = planned(DISK, SECOND_DISK, serials=("SERIAL-1", "SERIAL-2"))
    decided = approvals.decide(planned(), "0" * 64, YES)
    assert approvals.allowed(decided, made.jobs[0]) == "SERIAL-1"
    with pytest.raises(NotApproved, match="what was approved is not about disk SERIAL-2 of gpu-01"):
        approvals.allowed(decided, made.jobs[1])


def test_without_an_approval_a_node_names_the_place_where_it_is_given(settings: Settings) -> None:
    (job,) = planned().jobs
    raw = node.run_once(settings, make.node(devices=("SERIAL-1",)), job, say=print)
    assert raw.refusal is not None
    assert raw.refusal.outcome is Outcome.CONFIG
    assert "once a second person has approved it in the Airflow UI" in raw.refusal.reason


def test_an_approved_disk_that_the_machine_does_not_have_is_a_matter_of_set_up(
    settings: Settings, store: Store
) -> None:
    _, sha256 = approvals.record(store, make.RUN_ID, published(store, planned()), YES)
    stored = stages.measure_devices(settings, store, make.RUN_ID, "gpu-01", 1, print, approval=sha256)
    assert refusals(store, stored) == [(Outcome.CONFIG, "raw device SERIAL-1: this machine has no such device")]


def test_an_approval_reads_back_as_it_was_written() -> None:
    decided = approvals.decide(planned(), "0" * 64, YES)
    assert Approval.model_validate_json(decided.model_dump_json()) == decided
