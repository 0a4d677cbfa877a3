"""The node's shell: the jobs of a run on this machine, one after the other, each kept before anyone judges it."""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

from pipelines import approvals, busy, companions, environment, guard, keys, lease, tools
from pipelines.attempt import Machine, Say, contended, measure, refused
from pipelines.errors import LeaseTimeout, LeaseUnusable, ScratchRefused, Unknown
from pipelines.records import Job, Node, Outcome, Plan, RawOutput, Refusal
from pipelines.settings import Settings
from pipelines.spool import Delivery, Spool
from pipelines.storage import Store


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


def run_once(settings: Settings, node: Node, job: Job, *, say: Say) -> RawOutput:
    """Run one job on this machine, with lease and guard, and give its raw output back; nothing is stored."""
    run_id = keys.run_id(datetime.now(UTC), "bench")
    with prepared(settings, node, run_id, 1, {job.benchmark}, say) as (machine, waited_s):
        return measure(machine, job, say, lease_wait_s=waited_s)


def _watch(machine: Machine, say: Say, job: Job, started: Callable[[int], None]) -> RawOutput:
    """A job beside another, which is the one that is sampled."""
    return measure(replace(machine, telemetry_s=0.0), job, say, "beside it: ", started=started)


def _unwatched(machine: Machine, job: Job) -> RawOutput:
    refusal = Refusal(outcome=Outcome.TOOL_FAILED, reason="it was to run beside another job, and gave no result")
    return refused(machine, job, refusal, 0.0, {"beside": job.beside or ""})


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
        yield _look(settings, node, run_id, attempt, benchmarks, say, watch, contended(seen)), 0.0
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


def stored_keys(store: Store, run_id: str, node: str) -> dict[str, str]:
    """The key of the last raw output of each job of the node."""
    found = store.keys_under(f"{keys.raw_prefix(run_id)}/{node}")
    return {key.split("/")[-2]: key for key in found}
