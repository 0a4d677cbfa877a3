"""The node's shell: one job after the other on this machine, each to a raw output, whatever happens to its tool.

`RawOutput.facts` holds what the command decided, and what the node saw: filesystem, direct_io (whether it takes
O_DIRECT), dataset (the version whose files it was given), output_truncated (where the tool wrote more than is kept),
price_per_hour (of the node, in the
inventory's currency), beside (the job during which it watched), ended_with (the same, where it was ended with that),
busy (the real work for which it was not started), busy_after (the real work that was there at its end: its numbers are
not to be believed).
"""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from pipelines import (
    approvals,
    benchmark,
    busy,
    companions,
    devices,
    environment,
    gpus,
    guard,
    keys,
    lease,
    process,
    telemetry,
    tools,
)
from pipelines.benchmark import Peer, Workplace
from pipelines.errors import (
    BadParameter,
    DeviceRefused,
    LeaseTimeout,
    LeaseUnusable,
    NotApproved,
    NotEnoughSpace,
    ScratchRefused,
    SizeCapExceeded,
    ToolNotFound,
    ToolNotStarted,
    Unknown,
)
from pipelines.records import Environment, Job, Labels, Node, Outcome, Plan, RawOutput, Refusal
from pipelines.settings import Settings
from pipelines.spool import Delivery, Spool
from pipelines.storage import Store

_OUTPUT_FILE = "output.json"  # nccl-tests looks at the suffix
_KEPT_BYTES = 16 * 2**20  # of the file the tool wrote; 200 times the largest fio document seen

_DEVICE_SCRATCH_BYTES = 2**20  # a job on a raw device writes no more than fio's document elsewhere

_NOT_STAGED = Refusal(outcome=Outcome.NOT_MEASURED, reason="its dataset was not staged; only a run does that")
_NO_PEER = Refusal(
    outcome=Outcome.CONFIG,
    reason="it is measured between two nodes, and this is one; run a suite that has it on both, through Airflow",
)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Machine:
    """This machine, prepared for a run: its environment, its tools, and why nothing may run on it, if so.

    `datasets` has for each version that a job was promised the folder with its files, or why there is none.
    """

    node: Node
    home: Path
    run_id: str
    attempt: int
    environment: Environment
    tools: Mapping[str, tools.Tool]
    refusal: Refusal | None = None
    datasets: Mapping[str, Path | Refusal] = field(default_factory=dict)
    addresses: Mapping[str, str] = field(default_factory=dict)  # of the other nodes, for pairs
    watch: busy.Watch = field(default_factory=busy.Watch)
    approval: approvals.Approval | None = None  # of jobs on raw devices
    telemetry_s: float = 0.0  # how often the machine is asked beside a tool; 0: never


def run_jobs(
    settings: Settings,
    store: Store,
    plan: Plan,
    node_name: str,
    attempt: int,
    say: Say,
    approval: approvals.Approval | None = None,
) -> tuple[str, ...]:
    """Run the jobs that the node does alone, in the plan's order, and store each raw output before anyone judges it.

    Those on raw devices are left out; with an `approval`, which may say no, they and no others are run.

    The lease is taken once for all of them, so that the repeats of a case follow each other. A job that has a raw
    output already, of whichever attempt, is not run again. The datasets that the others need are staged before the
    first of them runs. What a store that is away does not take is spooled, and sent at the end; what an earlier task
    left in the spool, of whichever run, is sent first. Returns the key of each job's raw output, in plan order.

    Raises:
        WrongNode: this machine is another node.
        Unknown: the plan has no such node.
        StoreUnreachable, StoreRefused, SpoolFull, SpoolUnusable: jobs done so far are in the store or the spool; a
            retry goes on after them.
    """
    settings.require_node(node_name)
    jobs = plan.device_jobs_of(node_name) if approval else plan.solo_jobs_of(node_name)
    if not plan.jobs_of(node_name) and not plan.pair_jobs_of(node_name):
        raise Unknown(f"node in the plan of run {plan.run_id}", node_name, tuple(node.name for node in plan.nodes))
    spool = Spool.of(settings, store)
    spool.send(store, say)
    stored = stored_keys(store, plan.run_id, node_name)
    if all(job.job_id in stored for job in jobs):
        return tuple(stored[job.job_id] for job in jobs)
    delivery = Delivery(store, spool, say)
    benchmarks = plan.benchmarks_of(node_name)
    with prepared(settings, plan.node(node_name), plan.run_id, attempt, benchmarks, say) as (machine, waited_s):
        delivery.create(
            keys.environment_key(machine.environment.environment_id), machine.environment.model_dump_json().encode()
        )
        if waited_s:  # another attempt of this very run may have held the lease
            stored = stored_keys(store, plan.run_id, node_name)
        missing = [(number, job) for number, job in enumerate(jobs, start=1) if job.job_id not in stored]
        approved = replace(machine, approval=approval)
        with _with_datasets(settings, store, approved, (job for _, job in missing), say) as ready:
            for number, job in missing:
                first_s = waited_s if job is missing[0][1] else 0.0  # the first job's row has the wait
                watchers = plan.watchers_of(job)
                with companions.watching(watchers, partial(_watch, ready, say)) as watched:
                    raw = measure(ready, job, say, f"{number}/{len(jobs)} ", first_s)
                beside = {each.job_id: watched[each.job_id] or _unwatched(ready, each) for each in watchers}
                for job_id, ended in {**beside, job.job_id: raw}.items():
                    key = keys.raw_key(plan.run_id, node_name, job_id, attempt)
                    delivery.create(key, ended.model_dump_json().encode())
                    stored[job_id] = key
    delivery.finish(settings.spool_wait_s)
    return tuple(stored[job.job_id] for job in jobs)


def run_once(settings: Settings, node: Node, job: Job, *, say: Say, run_id: str | None = None) -> RawOutput:
    """Run one job on this machine, with lease and guard, and give its raw output back; nothing is stored."""
    run_id = run_id or keys.run_id(datetime.now(UTC), "bench")
    with prepared(settings, node, run_id, 1, {job.benchmark}, say) as (machine, waited_s):
        return measure(machine, job, say, lease_wait_s=waited_s)


def _watch(machine: Machine, say: Say, job: Job, started: Callable[[int], None]) -> RawOutput:
    """A job beside another, which is the one that is sampled."""
    return measure(replace(machine, telemetry_s=0.0), job, say, "beside it: ", started=started)


def _unwatched(machine: Machine, job: Job) -> RawOutput:
    refusal = Refusal(outcome=Outcome.TOOL_FAILED, reason="it was to run beside another job, and gave no result")
    return refused(machine, job, refusal, 0.0, {"beside": job.beside or ""})


def measure(
    machine: Machine,
    job: Job,
    say: Say,
    progress: str = "",
    lease_wait_s: float = 0.0,
    started: Callable[[int], None] = lambda _: None,
) -> RawOutput:
    """One job: guard, command, tool, raw output. The caller holds the lease; `started` is told the tool's group.

    A tool that fails, hangs or is killed gives a raw output that says so; one that may not or cannot be started, one
    with a refusal. Nothing is raised for either. Whether real work runs here is asked before and after.
    """
    what = f"{progress}{job.benchmark} {job.case} repeat {job.repeat}"
    say(f"{what}: about {job.seconds:.0f} s")
    try:
        raw = _run(machine, job, lease_wait_s, started)
    except (ScratchRefused, SizeCapExceeded, NotEnoughSpace, DeviceRefused, NotApproved, BadParameter, Unknown) as e:
        raw = refused(machine, job, Refusal(outcome=Outcome.CONFIG, reason=str(e)), lease_wait_s)
    except (ToolNotFound, ToolNotStarted) as e:
        raw = refused(machine, job, Refusal(outcome=Outcome.NOT_MEASURED, reason=str(e)), lease_wait_s)
    say(f"{what}: {ending(raw)}")
    return raw


def ending(raw: RawOutput) -> str:
    """How an attempt ended, in a few words. Pure."""
    if raw.refusal is not None:
        return f"{raw.refusal.outcome}: {raw.refusal.reason}"
    how = f"exit {raw.exit_status}" if raw.signal is None else f"signal {raw.signal}"
    beside = f", and then {raw.facts['busy_after']}" if "busy_after" in raw.facts else ""
    return f"{how}{', timed out' if raw.timed_out else ''}, {raw.duration_s:.1f} s{beside}"


@contextmanager
def prepared(
    settings: Settings, node: Node, run_id: str, attempt: int, benchmarks: Collection[str], say: Say
) -> Iterator[tuple[Machine, float]]:
    """The machine under its lease, leftovers reclaimed; and the seconds waited for the lease.

    Of the tools those of `benchmarks` are looked for, and are what its environment says of tools. Where real work runs
    the lease is not taken, and every job is refused.
    """
    watch = busy.Watch(busy.parsed(settings.busy))
    if (seen := watch.after()).state != "free":
        say(seen.reason)
        yield _look(settings, node, run_id, attempt, benchmarks, say, watch, _contended(seen)), 0.0
        return
    try:
        with lease.held(settings.lease_dir, run_id, node.name, settings.lease_wait_s, say) as waited_s:
            yield _look(settings, node, run_id, attempt, benchmarks, say, watch), waited_s
            return
    except LeaseTimeout as e:
        refusal, waited_s = Refusal(outcome=Outcome.CONTENDED, reason=str(e)), e.waited_s
    except LeaseUnusable as e:
        refusal, waited_s = Refusal(outcome=Outcome.CONFIG, reason=str(e)), 0.0
    yield _look(settings, node, run_id, attempt, benchmarks, say, watch, refusal), waited_s


def _contended(seen: busy.Answer) -> Refusal:
    return Refusal(outcome=Outcome.CONTENDED, reason=seen.reason)


def _look(
    settings: Settings,
    node: Node,
    run_id: str,
    attempt: int,
    benchmarks: Collection[str],
    say: Say,
    watch: busy.Watch,
    refusal: Refusal | None = None,
) -> Machine:
    if refusal is None:
        try:
            guard.reclaim(node, settings.home, say)
        except ScratchRefused as e:  # said once here; every job is refused with it
            say(str(e))
    found = tools.find_all(of=benchmarks)
    seen = environment.snapshot(settings.home / node.scratch, found.values())
    period_s = settings.telemetry_s
    return Machine(node, settings.home, run_id, attempt, seen, found, refusal, watch=watch, telemetry_s=period_s)


@contextmanager
def _with_datasets(
    settings: Settings, store: Store, machine: Machine, jobs: Iterable[Job], say: Say
) -> Iterator[Machine]:
    """The machine with the files of every dataset that the jobs name, for the time of the block."""
    wanted = tuple(dict.fromkeys(job.dataset for job in jobs if job.dataset))
    if not wanted or machine.refusal is not None:
        yield machine
        return
    from pipelines.datasets import names
    from pipelines.datasets.given import given

    staging_id = names.staging_of_run(machine.run_id, machine.attempt)
    with given(settings, store, wanted, node=machine.node.name, staging_id=staging_id, say=say) as found:
        yield replace(machine, datasets=found)


def _run(machine: Machine, job: Job, lease_wait_s: float, started: Callable[[int], None]) -> RawOutput:
    refusal = machine.refusal
    if refusal is None:
        descriptor = benchmark.get(job.benchmark)
        refusal = machine.tools[job.benchmark].refusal
    if refusal is not None:
        return refused(machine, job, refusal, lease_wait_s)
    dataset = machine.datasets.get(job.dataset, _NOT_STAGED) if job.dataset else None
    if isinstance(dataset, Refusal):
        return refused(machine, job, dataset, lease_wait_s)
    params = descriptor.params_of(job)
    files = dataset or (Path(machine.node.files) if machine.node.files else None)
    if missing := [name for name in descriptor.files(params) if files is None or not (files / name).is_file()]:
        return refused(machine, job, _without(missing[0], files), lease_wait_s)
    peer = Peer(machine.addresses[job.peer], job.port) if job.peer and job.port and machine.addresses else None
    if descriptor.pair and peer is None:
        return refused(machine, job, _NO_PEER, lease_wait_s)
    if (seen := machine.watch.before()).state != "free":
        return refused(machine, job, _contended(seen), lease_wait_s)
    tool = machine.tools[job.benchmark]
    scratch_bytes = _DEVICE_SCRATCH_BYTES if job.device else job.written_bytes
    with _disk(machine, job) as disk, guard.scratch(machine.node, machine.home, job.job_id, scratch_bytes) as scratch:
        output = scratch.path / _OUTPUT_FILE
        path = disk.path if disk else None
        place = Workplace(
            scratch.path,
            output,
            scratch.direct_io,
            tool.version or "",
            files,
            peer,
            path,
            cpus=len(os.sched_getaffinity(0)),
            gpus=gpus.count(machine.environment.facts),
            endpoints=machine.node.endpoints,
            tool_help=tool.help,
        )
        command = descriptor.command(params, place)
        with telemetry.sampling(machine.telemetry_s) as sampler:

            def begun(group: int) -> None:
                scratch.record(group)
                started(group)
                sampler.start()

            done = process.run(
                command.argv, timeout_s=job.timeout_s, cwd=scratch.path, passed=descriptor.passed, started=begun
            )
            told = sampler.stop()
        seen = machine.watch.after()
        written, truncated = _read(output)
    facts = {**command.labels, "filesystem": scratch.filesystem, "direct_io": str(scratch.direct_io).lower()}
    facts |= {"busy_after": seen.reason} if seen.state != "free" else {}
    facts |= {"dataset": job.dataset} if job.dataset else {}
    price = machine.node.price_per_hour
    facts |= {"price_per_hour": f"{price:g}"} if price else {}
    facts |= {"device": disk.serial, "device_name": disk.name} if disk else {}
    return _raw(
        machine,
        job,
        lease_wait_s,
        argv=done.argv,
        exit_status=done.exit_status,
        signal=done.signal,
        timed_out=done.timed_out,
        output=written,
        stdout=done.stdout,
        stderr=done.stderr,
        started_at=done.started_at,
        duration_s=done.duration_s,
        facts={**facts, **({"output_truncated": "true"} if truncated else {})},
        telemetry=told,
    )


def _disk(machine: Machine, job: Job) -> AbstractContextManager[devices.Device | None]:
    """The disk of a job that writes to one, once it may."""
    if benchmark.get(job.benchmark).device is None:
        return nullcontext()
    return devices.claimed(approvals.allowed(machine.approval, job), job.written_bytes)


def _without(name: str, files: Path | None) -> Refusal:
    nowhere = "its suite names no dataset, and the inventory names no folder of files of this node"
    where = f"{files} has none" if files else nowhere
    return Refusal(outcome=Outcome.CONFIG, reason=f"it reads {name}, and {where}")


def refused(
    machine: Machine, job: Job, refusal: Refusal, lease_wait_s: float, facts: Labels | None = None
) -> RawOutput:
    """The raw output of a job whose tool is not started, or met nobody."""
    seen = machine.watch.seen
    facts = {**(facts or {}), **({"busy": seen.reason} if seen.state != "free" else {})}
    return _raw(machine, job, lease_wait_s, refusal=refusal, started_at=datetime.now(UTC), duration_s=0.0, facts=facts)


def _raw(machine: Machine, job: Job, lease_wait_s: float, **ended: Any) -> RawOutput:
    tool = machine.tools.get(job.benchmark, tools.Tool(job.benchmark))
    return RawOutput(
        run_id=machine.run_id,
        job=job,
        attempt=machine.attempt,
        hostname=os.uname().nodename,
        tool=tool.name,
        tool_version=tool.version,
        environment_id=machine.environment.environment_id,
        simulated=tool.simulated,
        lease_wait_s=lease_wait_s,
        **ended,
    )


def _read(path: Path) -> tuple[str | None, bool]:
    """What the tool wrote, and whether that is not all of it; None when it wrote no such file."""
    if path.is_symlink() or not path.is_file():
        return None, False
    with path.open("rb") as file:
        data = file.read(_KEPT_BYTES + 1)
    return data[:_KEPT_BYTES].decode(errors="replace"), len(data) > _KEPT_BYTES


def stored_keys(store: Store, run_id: str, node: str) -> dict[str, str]:
    """The key of the last raw output of each job of the node."""
    found = store.keys_under(f"{keys.raw_prefix(run_id)}/{node}")
    return {key.split("/")[-2]: key for key in found}
