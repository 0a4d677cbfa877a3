"""The node's shell for benchmarks between two nodes: it walks the rounds in which it stands, as client or as server.

The rounds of a run begin when the first node does, which it writes down in the store for all of them; when a round is
over stands in the plan. So a node that is down costs each partner one round and no more, and one that comes late, or
again after its task was killed, goes on in the round in which the others are. The nodes' clocks must agree to seconds.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime

from pydantic import AwareDatetime

from pipelines import benchmark, isolation, keys, node, process
from pipelines.attempt import Machine, Say, ending, measure, refused
from pipelines.errors import KeyNotFound, StoreUnreachable, ToolNotFound, ToolNotStarted, Unknown
from pipelines.records import Job, Name, Outcome, Plan, RawOutput, Record, Refusal
from pipelines.settings import Settings
from pipelines.spool import Delivery, Spool, asking_for
from pipelines.storage import Store

_ASKED_EVERY_S = 0.5  # a refused connection or a busy server gives no event to wait for
_ASKED_AFTER = 10  # attempts, whether the peer has come and will not


class Attendance(Record):
    """A node has come to the rounds of a run. Why it cannot stand in those of a benchmark its peers must know."""

    node: Name
    refusals: Mapping[Name, Refusal] = {}


class Beginning(Record):
    """Which node began the rounds of a run, and when."""

    node: Name
    at: AwareDatetime


def run_rounds(
    settings: Settings, store: Store, plan: Plan, node_name: str, attempt: int, say: Say, *, again: bool = False
) -> tuple[str, ...]:
    """Stand in each of the node's rounds, in order, and store the raw output of each in which it is the client.

    The lease is held for all of them. A job that has a raw output already, of whichever attempt, is not run again; its
    server goes on. A peer that does not answer is a raw output which says so. Returns the keys of the raw outputs.

    What a store that is away does not take is spooled, and sent at the end.

    Raises:
        WrongNode: this machine is another node.
        Unknown: the plan has no such node.
        StoreUnreachable, StoreRefused, SpoolFull, SpoolUnusable: jobs done so far are in the store or the spool; a
            retry goes on after them.
    """
    settings.require_node(node_name)
    if node_name not in {each.name for each in plan.nodes}:
        raise Unknown(f"node in the plan of run {plan.run_id}", node_name, tuple(each.name for each in plan.nodes))
    jobs = plan.pair_jobs_of(node_name, again=again)
    if not jobs:
        return ()
    spool = Spool.of(settings, store)
    spool.send(store, say)
    delivery = Delivery(store, spool, say)
    addresses = {each.name: each.reached_at for each in plan.nodes}
    place, benchmarks = plan.node(node_name), plan.benchmarks_of(node_name)
    with node.prepared(settings, place, plan.run_id, attempt, benchmarks, say) as (prepared, lease_wait_s):
        machine = replace(prepared, addresses=addresses)
        _attend(store, machine, jobs, say, again=again)
        delivery.create(
            keys.environment_key(machine.environment.environment_id), machine.environment.model_dump_json().encode()
        )
        left_of, waited_s = _clock(store, machine, again=again), lease_wait_s
        stored = node.stored_keys(store, plan.run_id, node_name)
        for job in jobs:
            if job.node != node_name:
                _serve(machine, job, store, left_of, say)
            elif job.job_id not in stored:
                raw = _meet(machine, job, store, left_of, waited_s, say)
                waited_s = 0.0  # the first job's row has the wait
                key = keys.raw_key(plan.run_id, node_name, job.job_id, attempt)
                delivery.create(key, raw.model_dump_json().encode())
                stored[job.job_id] = key
    delivery.finish(settings.spool_wait_s)
    return tuple(stored[job.job_id] for job in jobs if job.node == node_name)


def _clock(store: Store, machine: Machine, *, again: bool) -> Callable[[Job], float]:
    """How many seconds the round of a job still lasts, negative when it is over. Begins the rounds if nobody has.

    Raises:
        StoreUnreachable, StoreRefused: when they began cannot be told. The first is retryable, as all that is the
            infrastructure's: the task's retry asks again, and goes on in the round in which the others are.
    """
    if machine.refusal is not None:
        return lambda _: 0.0
    key = keys.exchange_key(machine.run_id, again=again)
    store.create(key, Beginning(node=machine.node.name, at=datetime.now(UTC)).model_dump_json().encode())
    begun = Beginning.model_validate_json(store.read(key)).at
    now, clock = datetime.now(UTC), time.monotonic()
    return lambda job: (begun - now).total_seconds() + (job.closes_s or 0.0) - (time.monotonic() - clock)


def _attend(store: Store, machine: Machine, jobs: Iterable[Job], say: Say, *, again: bool) -> None:
    """Leave word for the peers; that of the last attempt counts. Without it they wait until their rounds are over."""
    found = {name: machine.refusal or machine.tools[name].refusal for name in {job.benchmark for job in jobs}}
    refusals = {name: refusal for name, refusal in found.items() if refusal}
    attendance = Attendance(node=machine.node.name, refusals=refusals)
    key = keys.attendance_key(machine.run_id, machine.node.name, again=again)
    try:
        store.replace(key, attendance.model_dump_json().encode())
    except StoreUnreachable as e:
        say(f"peers do not hear that this node has come: {e}")


def _meet(
    machine: Machine, job: Job, store: Store, left_of: Callable[[Job], float], lease_wait_s: float, say: Say
) -> RawOutput:
    """As client: try until the server answers, or says that it will not, or the round has no time left for the test."""
    what = f"round {job.round}: {job.benchmark} {job.case} repeat {job.repeat} with {job.peer}"
    descriptor = benchmark.get(job.benchmark)
    attempts, problem, attendance = 0, "", None
    while machine.refusal is not None or (left_s := left_of(job)) >= job.seconds:
        limited = job if machine.refusal else job.model_copy(update={"timeout_s": min(job.timeout_s, left_s)})
        raw = measure(machine, limited, lambda _: None, lease_wait_s=lease_wait_s)
        unanswered = descriptor.pair.unanswered(raw) if descriptor.pair and raw.refusal is None else None
        if unanswered is None:
            say(f"{what}: {ending(raw)}")
            return raw
        if unanswered != problem:
            say(f"{what}: {unanswered}; trying again")
            problem = unanswered
        if attendance is None and attempts % _ASKED_AFTER == 0:
            attendance = _attendance_of_peer(store, machine.run_id, job)
        if attendance and job.benchmark in attendance.refusals:
            break
        attempts += 1
        time.sleep(_ASKED_EVERY_S)
    if problem and attendance is None:
        attendance = _attendance_of_peer(store, machine.run_id, job)
    is_silent = attendance is not None and job.benchmark not in attendance.refusals
    facts = {isolation.UNANSWERED: problem} if is_silent else {}
    raw = refused(machine, job, _why(attendance, job, problem), lease_wait_s, facts)
    say(f"{what}: {ending(raw)}")
    return raw


def _attendance_of_peer(store: Store, run_id: str, job: Job) -> Attendance | None:
    """None: it has not come, or the store is away."""
    try:
        found = asking_for(store, 0.0).read(keys.attendance_key(run_id, job.peer or "", again=job.again))
    except (KeyNotFound, StoreUnreachable):
        return None
    return Attendance.model_validate_json(found)


def _why(attendance: Attendance | None, job: Job, problem: str) -> Refusal:
    """Why a client met no server; the problem is that of its last attempt. Pure."""
    if not problem:
        reason = f"its round with {job.peer} was over before this node could begin"
    elif attendance is None:
        reason = f"peer {job.peer} was not heard to come to the rounds: {problem}"
    elif own := attendance.refusals.get(job.benchmark):
        return Refusal(outcome=own.outcome, reason=f"peer {job.peer}: {own.reason}")
    else:
        reason = f"peer {job.peer} did not answer: {problem}"
    return Refusal(outcome=Outcome.NOT_MEASURED, reason=reason)


def _serve(machine: Machine, job: Job, store: Store, left_of: Callable[[Job], float], say: Say) -> None:
    """As server: wait for the one client until it was served or its round is over."""
    what = f"round {job.round}: {job.benchmark} {job.case} repeat {job.repeat} for {job.node}"
    descriptor = benchmark.get(job.benchmark)
    refusal = machine.refusal or machine.tools[job.benchmark].refusal
    if refusal is not None or descriptor.pair is None or job.port is None:
        say(f"{what}: not served{f': {refusal.reason}' if refusal else ''}")
        return
    try:  # once: a round does not wait for a store that is away, and serving again does no harm
        if asking_for(store, 0.0).keys_under(f"{keys.raw_prefix(machine.run_id)}/{job.node}/{job.job_id}"):
            say(f"{what}: done before")
            return
    except StoreUnreachable as e:
        say(f"{what}: whether it was done before cannot be told: {e}")
    argv = descriptor.pair.serve(descriptor.params_of(job), job.port).argv
    while (left_s := left_of(job)) > 0:
        try:
            done = process.run(argv, timeout_s=left_s)
        except (ToolNotFound, ToolNotStarted) as e:
            say(f"{what}: not served: {e}")
            return
        if descriptor.pair.served(done.stdout):
            say(f"{what}: served")
            return
        time.sleep(min(_ASKED_EVERY_S, max(0.0, left_of(job))))  # its port is taken, or somebody else had called
    say(f"{what}: did not come")
