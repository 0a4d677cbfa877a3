"""One attempt at one job on this machine, to a raw output, whatever happens to its tool.

`RawOutput.facts` holds what the command decided, and what the node saw:

- filesystem, direct_io: of the scratch directory, and whether it takes O_DIRECT
- dataset: the version whose files it was given; device, device_name: the disk that it wrote to
- output_truncated: the tool wrote more than is kept
- price_per_hour: of the node, in the inventory's currency
- beside, ended_with: the job during which it watched, and with which it was ended
- busy: the real work for which it was not started
- busy_after: the real work that was there at its end; its numbers are not to be believed
"""

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines import approvals, benchmark, busy, devices, gpus, guard, memory, process, telemetry, tools
from pipelines.benchmark import Benchmark, Peer, Workplace
from pipelines.errors import (
    BadParameter,
    DeviceRefused,
    NotApproved,
    NotEnoughSpace,
    ScratchRefused,
    SizeCapExceeded,
    ToolNotFound,
    ToolNotStarted,
    Unknown,
)
from pipelines.records import Environment, Job, Labels, Node, Outcome, RawOutput, Refusal

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


def contended(seen: busy.Answer) -> Refusal:
    return Refusal(outcome=Outcome.CONTENDED, reason=seen.reason)


def _run(machine: Machine, job: Job, lease_wait_s: float, started: Callable[[int], None]) -> RawOutput:
    if machine.refusal is not None:
        return refused(machine, job, machine.refusal, lease_wait_s)
    descriptor = benchmark.get(job.benchmark)
    if refusal := machine.tools[job.benchmark].refusal:
        return refused(machine, job, refusal, lease_wait_s)
    given = _given(machine, job, descriptor)
    if isinstance(given, Refusal):
        return refused(machine, job, given, lease_wait_s)
    if (seen := machine.watch.before()).state != "free":
        return refused(machine, job, contended(seen), lease_wait_s)
    scratch_bytes = _DEVICE_SCRATCH_BYTES if job.device else job.written_bytes
    with _disk(machine, job) as disk, guard.scratch(machine.node, machine.home, job.job_id, scratch_bytes) as scratch:
        place = replace(
            given,
            scratch=scratch.path,
            output=scratch.path / _OUTPUT_FILE,
            direct_io=scratch.direct_io,
            device=disk.path if disk else None,
        )
        command = descriptor.command(descriptor.params_of(job), place)
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
        written, truncated = _read(scratch.path / _OUTPUT_FILE)
    facts = {
        "filesystem": scratch.filesystem,
        "direct_io": str(scratch.direct_io).lower(),
        "dataset": job.dataset,
        "price_per_hour": f"{machine.node.price_per_hour:g}" if machine.node.price_per_hour else None,
        "device": disk and disk.serial,
        "device_name": disk and disk.name,
        "busy_after": seen.reason if seen.state != "free" else None,
        "output_truncated": "true" if truncated else None,
    }
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
        facts={**command.labels, **{name: fact for name, fact in facts.items() if fact is not None}},
        telemetry=told,
    )


def _given(machine: Machine, job: Job, descriptor: Benchmark) -> Workplace | Refusal:
    """What the job finds on the machine, its scratch directory excepted; or what it lacks there."""
    dataset = machine.datasets.get(job.dataset, _NOT_STAGED) if job.dataset else None
    if isinstance(dataset, Refusal):
        return dataset
    files = dataset or (Path(machine.node.files) if machine.node.files else None)
    wanted = descriptor.files(descriptor.params_of(job))
    if missing := [name for name in wanted if files is None or not (files / name).is_file()]:
        return _without(missing[0], files)
    cpus = len(os.sched_getaffinity(0))
    if problem := memory.lacking(descriptor.memory(descriptor.params_of(job), cpus)):
        return Refusal(outcome=Outcome.CONFIG, reason=f"{problem}; ask for less of it")
    peer = Peer(machine.addresses[job.peer], job.port) if job.peer and job.port and machine.addresses else None
    if descriptor.pair and peer is None:
        return _NO_PEER
    tool = machine.tools[job.benchmark]
    return Workplace(
        scratch=Path(),
        output=Path(),
        direct_io=False,
        tool_version=tool.version or "",
        files=files,
        peer=peer,
        cpus=cpus,
        gpus=gpus.count(machine.environment.facts),
        endpoints=machine.node.endpoints,
        tool_help=tool.help,
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
