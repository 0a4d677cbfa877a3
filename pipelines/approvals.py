"""Approvals of jobs on raw devices: a second person lets a run write to the disks that its plan names, or does not.

A run is decided about once, and the approval is in the store for good. But about disks a node does not believe the
store, to which others write too: Airflow tells it the hash of the approval, and that has the hash of the plan.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import AwareDatetime, ValidationError

from pipelines import keys
from pipelines.errors import AlreadyDecided, BadParameter, CorruptObject, NotApproved
from pipelines.records import DeviceSerial, Job, Name, Plan, Record
from pipelines.storage import Store


class Answer(Record):
    """What came of asking. `by` are the names that Airflow has for who answered; none where nobody did in time."""

    granted: bool
    by: tuple[str, ...] = ()
    asked_by: str | None = None  # who started the run
    scheduled: bool = False  # nobody did: the schedule
    at: AwareDatetime


class Approval(Record):
    run_id: Name
    plan: str  # sha256 of the plan's object
    devices: Mapping[Name, tuple[DeviceSerial, ...]]  # by node, those that the plan has jobs on
    granted: bool
    reason: str = ""  # why it was not granted
    by: str | None = None
    asked_by: str | None = None
    at: AwareDatetime


@dataclass(frozen=True)
class Question:
    """What a second person is asked about a run; `plan` is the hash of what was shown."""

    plan: str
    subject: str
    body: str  # Markdown


def question(store: Store, run_id: str) -> Question | None:
    """What has to be asked before the run's jobs on raw devices may run; None where it has none."""
    data = store.read(keys.plan_key(run_id))
    made = Plan.model_validate_json(data)
    if not made.device_nodes():
        return None
    count = sum(len(devices) for devices in _devices(made).values())
    return Question(
        plan=keys.sha256(data),
        subject=f"Overwrite {count} {'disk' if count == 1 else 'disks'}? Run {made.run_id}",
        body="\n".join(_body(made)),
    )


def _body(made: Plan) -> list[str]:
    lines = [
        f"Suite `{made.suite}` writes random data to these disks, in place of what is on them. "
        "Whoever started the run cannot approve it. A disk that is mounted, partitioned, signed or part of another "
        "device is refused by its node even so.",
        "",
        "| node | disk | jobs | overwritten |",
        "|---|---|---|---|",
    ]
    for node, serials in _devices(made).items():
        for serial in serials:
            jobs = [job for job in made.device_jobs_of(node) if job.device == serial]
            most_mb = max(job.written_bytes for job in jobs) / 1e6
            lines.append(f"| `{node}` | `{serial}` | {len(jobs)} | {most_mb:,.0f} MB |")
    return lines


def _devices(made: Plan) -> dict[str, tuple[str, ...]]:
    return {
        node: tuple(dict.fromkeys(job.device for job in made.device_jobs_of(node) if job.device))
        for node in made.device_nodes()
    }


def decide(made: Plan, plan: str, answer: Answer) -> Approval:
    """What the answer means for the run whose plan has this hash. Pure."""
    reason = _against(answer)
    return Approval(
        run_id=made.run_id,
        plan=plan,
        devices=_devices(made),
        granted=not reason,
        reason=reason,
        by=answer.by[0] if answer.by else None,
        asked_by=answer.asked_by,
        at=answer.at,
    )


def _against(answer: Answer) -> str:
    if not answer.by:
        return "nobody answered in time"
    if not answer.granted:
        return f"{answer.by[0]} refused"
    if answer.asked_by in answer.by:
        return f"{answer.by[0]} started the run, and another person has to approve it"
    if answer.asked_by is None and not answer.scheduled:
        return "it is not known who started the run, and another person has to approve it"
    return ""


def record(store: Store, run_id: str, plan: str, answer: Answer) -> tuple[Approval, str]:
    """Decide and write it down; the approval and the hash of its object. One that says the same is there to stay.

    Raises:
        CorruptObject: the plan is not the one that was shown.
        AlreadyDecided: otherwise, about this run or its plan.
    """
    approval = decide(_plan(store, run_id, plan), plan, answer)
    data = approval.model_dump_json().encode()
    if not store.create(keys.approval_key(run_id), data):
        data = store.read(keys.approval_key(run_id))
        before = _read(store, run_id, data)
        if (before.plan, before.granted) != (approval.plan, approval.granted):
            decision = "approved" if before.granted else f"not approved: {before.reason}"
            raise AlreadyDecided(run_id, f"{before.at:%F %T}", decision)
        approval = before
    return approval, keys.sha256(data)


def load(store: Store, run_id: str, sha256: str) -> tuple[Plan, Approval]:
    """The approval of this hash, and the plan that it is about.

    Raises:
        CorruptObject: what is in the store is not what was decided, or the plan is not what was shown.
    """
    data = store.read(keys.approval_key(run_id))
    if keys.sha256(data) != sha256:
        raise CorruptObject(store.url(keys.approval_key(run_id)), "it is not what was decided about this run")
    approval = _read(store, run_id, data)
    return _plan(store, run_id, approval.plan), approval


def allowed(approval: Approval | None, job: Job) -> str:
    """The serial number of the disk that a job may write to. Pure.

    Raises:
        BadParameter: the inventory has no such disk.
        NotApproved: nobody has said that the job may.
    """
    if job.device is None:
        problem = "the inventory has no such disk of this node: its serial number has to stand in `devices`"
        raise BadParameter(job.benchmark, "device", problem)
    if approval is None:
        raise NotApproved(
            "a raw device is written to only in a run of the DAG fleet_benchmark, once a second person has approved it "
            "in the Airflow UI"
        )
    if not approval.granted:
        raise NotApproved(approval.reason)
    if job.device not in approval.devices.get(job.node, ()):
        raise NotApproved(f"what was approved is not about disk {job.device} of {job.node}")
    return job.device


def _plan(store: Store, run_id: str, sha256: str) -> Plan:
    data = store.read(keys.plan_key(run_id))
    if keys.sha256(data) != sha256:
        raise CorruptObject(store.url(keys.plan_key(run_id)), "it is not the plan that was shown for approval")
    return Plan.model_validate_json(data)


def _read(store: Store, run_id: str, data: bytes) -> Approval:
    try:
        return Approval.model_validate_json(data)
    except ValidationError as e:
        raise CorruptObject(store.url(keys.approval_key(run_id)), str(e.errors()[0]["msg"])) from e
