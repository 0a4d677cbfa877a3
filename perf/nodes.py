"""Many light edge workers in one process: every call of the real worker and of the real task, and no tool behind them.

`python -m perf.nodes FIRST LAST SECONDS KEYS` is the nodes of the inventory from FIRST to before LAST; their private
keys lie in the folder KEYS. Each is Airflow's own worker, except that it does not fork: its task asks through Airflow's
own client what a task of a node asks, lasts for SECONDS, and stores raw outputs that are real outputs of fio.
"""

import asyncio
import json
import os
import random
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from airflow.api_fastapi.auth.tokens import JWTGenerator
from airflow.configuration import conf
from airflow.providers.edge3.cli import api_client
from airflow.providers.edge3.cli.dataclasses import Job as EdgeJob
from airflow.providers.edge3.cli.worker import EdgeWorker
from airflow.providers.edge3.models.edge_worker import EdgeWorkerState
from airflow.sdk.api.client import Client

from pipelines import arrivals, inventory, keys, plan, settings, stages, storage
from pipelines.records import Job, Plan, RawOutput
from pipelines.storage import Store
from tests.benchmarks import fio_samples
from tests.tables.batches import ENVIRONMENT

_THREADS = 16
_signing: ContextVar[JWTGenerator] = ContextVar("_signing")
api_client.jwt_generator = _signing.get  # type: ignore[assignment]  # Airflow's has one key a process


class Task:
    """What stands where the worker expects a task's process: its requests in threads, and what it waits for in none."""

    def __init__(self, workload: Any, logfile: Path, lasts_s: float) -> None:
        self.ti, self.logfile, self.lasts_s = workload.ti, logfile, lasts_s
        url = conf.get("core", "execution_api_server_url")
        self.client = Client(base_url=url, token=workload.token)
        self.running = asyncio.create_task(self._run())

    def is_alive(self) -> bool:
        return not self.running.done()

    @property
    def exitcode(self) -> int:
        if problem := self.running.exception():
            print(f"{self.ti.task_id} {self.ti.map_index}: {problem!r}", file=sys.stderr)
        return 1 if problem else 0

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        node, run_id = await asyncio.to_thread(self._begin)
        ends = loop.time() + self.lasts_s
        while (left := ends - loop.time()) > 0:
            await asyncio.sleep(min(left, conf.getint("workers", "min_heartbeat_interval")))
            await asyncio.to_thread(self._beat)
        await asyncio.to_thread(self._end, node, run_id)

    def _begin(self) -> tuple[str, str]:
        """As the access log of a real worker's task has it. Returns the node that it is mapped over, and the run."""
        asked = self.client.task_instances
        dag_run = asked.start(self.ti.id, os.getpid(), datetime.now(UTC)).dag_run
        self._beat()
        nodes: Any = self.client.xcoms.get(self.ti.dag_id, self.ti.run_id, "plan", "return_value").value
        node = str(nodes[self.ti.map_index])
        asked.set_rtif(self.ti.id, {"op_args": "[]", "op_kwargs": json.dumps({"node": node})})
        asked.set_rendered_map_index(self.ti.id, node)
        return node, keys.run_id(dag_run.run_after.astimezone(UTC), dag_run.run_id)

    def _beat(self) -> None:
        self.client.task_instances.heartbeat(self.ti.id, os.getpid())

    def _end(self, node: str, run_id: str) -> None:
        arrivals.record(settings.load(), _store(), run_id, node, self.ti.try_number)
        jobs = _planned(run_id).solo_jobs_of(node)
        for job in jobs:
            raw = _raw(run_id, job, self.ti.try_number)
            _store().create(keys.raw_key(run_id, node, job.job_id, raw.attempt), raw.model_dump_json().encode())
        self.logfile.parent.mkdir(parents=True, exist_ok=True)
        self.logfile.write_text("".join(self._log(jobs)))
        self.client.xcoms.set(
            self.ti.dag_id, self.ti.run_id, self.ti.task_id, "return_value", len(jobs), self.ti.map_index
        )
        self.client.task_instances.succeed(self.ti.id, datetime.now(UTC), [], [], node)
        self.client.close()

    def _log(self, jobs: tuple[Job, ...]) -> Iterator[str]:
        """Lines of the length of a real task's."""
        about = {name: str(getattr(self.ti, name)) for name in ("dag_id", "task_id", "run_id", "map_index", "id")}
        airflows = [f"{number}: as Airflow says of each task what it does with it" for number in range(12)]
        for event in airflows + [line for job in jobs for line in ("begins", " ".join(_argv(job)), "exit 0, 0.7 s")]:
            at = datetime.now(UTC).isoformat()
            yield json.dumps({"timestamp": at, "level": "info", "event": event, "logger": "fleetmark", **about}) + "\n"


class Worker(EdgeWorker):
    """A node's worker with a life of its own: the class that it is made of keeps one list of jobs a process."""

    def __init__(self, name: str, queue: str, task_lasts_s: float) -> None:
        super().__init__("", name, [queue], concurrency=1)
        self.task_lasts_s = task_lasts_s
        self.jobs = []
        self.background_tasks = set()
        self._jobs_asleep = 0
        self._fewer_jobs = asyncio.Event()

    async def live(self, private_key: Path, after_s: float) -> None:
        valid_for = conf.getint("api_auth", "jwt_leeway", fallback=30)
        _signing.set(JWTGenerator(private_key=private_key.read_bytes(), valid_for=valid_for, audience="api"))
        await asyncio.sleep(after_s)
        await api_client.worker_register(
            self.hostname, EdgeWorkerState.STARTING, self.queues, await self._get_sysinfo()
        )
        await self.loop()  # type: ignore[no-untyped-call]

    def _launch_job(self, edge_job: Any, workload: Any, logfile: Path) -> EdgeJob:
        return EdgeJob(edge_job, Task(workload, logfile, self.task_lasts_s), logfile)  # type: ignore[arg-type]

    async def fetch_and_run_job(self) -> None:
        await super().fetch_and_run_job()
        if len(self.jobs) < self._jobs_asleep:
            self._fewer_jobs.set()

    async def interruptible_sleep(self) -> None:
        """As the real one, which wakes up ten times a second."""
        self._jobs_asleep = len(self.jobs)
        self._fewer_jobs.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._fewer_jobs.wait(), self.job_poll_interval)


@cache
def _store() -> Store:
    store = storage.open_store(settings.load())
    store.create(keys.environment_key(ENVIRONMENT.environment_id), ENVIRONMENT.model_dump_json().encode())
    return store


@lru_cache(maxsize=1)
def _planned(run_id: str) -> Plan:
    """Read once for all nodes: each would read it from the store, which is not what is measured."""
    return stages.load_plan(_store(), run_id)


@cache
def _sample(profile: str) -> RawOutput:
    return fio_samples.raw(profile, simulated=True)


def _raw(run_id: str, job: Job, attempt: int) -> RawOutput:
    fields = {"run_id": run_id, "job": job, "attempt": attempt, "hostname": job.node, "argv": _argv(job)}
    return _sample(str(job.params["profile"])).model_copy(update={**fields, "started_at": datetime.now(UTC)})


def _argv(job: Job) -> tuple[str, ...]:
    return plan.preview(job, Path("/mnt/nvme"))


async def live(first: int, last: int, task_lasts_s: float, keys_of_nodes: Path) -> None:
    """The nodes' lives, begun over one poll interval: a fleet does not ask in step."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS))
    nodes = inventory.load(settings.load().inventory).nodes[first:last]
    chance = random.Random(first)
    workers = [Worker(node.name, node.queue, task_lasts_s) for node in nodes]
    await asyncio.gather(
        *(
            worker.live(keys_of_nodes / f"{worker.hostname}.key", chance.uniform(0, worker.job_poll_interval))
            for worker in workers
        )
    )


if __name__ == "__main__":
    asyncio.run(live(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4])))
