"""A node's part of a run over SSH, for nodes without a worker: a detached job there, which the triggerer follows.

The control plane may be restarted meanwhile, and nothing of it waits. On the node are the library, a user who may log
in with a key, and the node's settings and credentials in a file. Hosts' keys are checked against known_hosts.

Options of the section [fleetmark] say how: ssh_connection, the id of Airflow's connection with user and key;
node_command, what is called there before the verb; ssh_poll_s, how often a job is looked at.
"""

import logging
import math
import shlex
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

import paramiko
from airflow.configuration import conf
from airflow.providers.ssh.operators.ssh_remote_job import SSHRemoteJobOperator
from airflow.providers.ssh.triggers.ssh_remote_job import SSHRemoteJobTrigger
from airflow.providers.ssh.utils.remote_job import (
    RemoteJobPaths,
    build_posix_cleanup_command,
    build_posix_kill_command,
)
from airflow.sdk.exceptions import AirflowException, TaskDeferralError, TaskDeferralTimeout

from pipelines import inventory, settings
from pipelines.errors import NodeJobRefused, NodeUnreachable, StoreRefused, StoreUnreachable

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.triggers.base import BaseTrigger
    from asyncssh import SSHClientConnection

logging.getLogger("asyncssh").setLevel(logging.WARNING)  # it would tell the task's log of every look at a job

_JOBS = ".fleetmark-jobs"  # in the user's home: what lies in /tmp under a known name may be somebody else's
_CONNECTING_S = 10
_ATTEMPTS = 2  # of one connection; a task is tried again besides
_REFUSED = (2, 126, 127)  # wrong input, see `pipelines.console`; no such command there
_LOST = 255


class NodeJob(SSHRemoteJobOperator):
    """`fleetmark node VERB RUN NODE ...` on the node.

    Fails with NodeUnreachable, or AirflowException where the job may be tried again, else with NodeJobRefused.
    """

    template_fields: Sequence[str] = ("arguments",)

    def __init__(self, *, node: str, verb: str, arguments: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(
            ssh_conn_id=conf.get("fleetmark", "ssh_connection", fallback="fleetmark_nodes"),
            command="",
            remote_base_dir=_JOBS,
            remote_os="posix",
            poll_interval=conf.getint("fleetmark", "ssh_poll_s", fallback=15),
            cleanup="always",
            conn_timeout=_CONNECTING_S,
            conn_retry_attempts=_ATTEMPTS,
            **kwargs,
        )
        if self.execution_timeout:  # Airflow's own clock stands still while the triggerer has the task
            self.timeout = math.ceil(self.execution_timeout.total_seconds())
        self.node = node
        self.verb = verb
        self.arguments = arguments

    def execute(self, context: "Context") -> None:
        """Start the job, and leave the rest to the triggerer."""
        from fleetmark_airflow.tasks import run

        self.remote_host = _address(self.node)
        called = shlex.split(conf.get("fleetmark", "node_command", fallback="fleetmark node"))
        self.command = shlex.join((*called, self.verb, run(), self.node, *self.arguments))
        try:
            super().execute(context)
        except (paramiko.AuthenticationException, paramiko.BadHostKeyException) as e:
            refused = NodeJobRefused(self.node, f"SSH to {self.remote_host}: {e}")
            self._say(context, refused)
            raise refused from e
        except (OSError, paramiko.SSHException) as e:
            raise NodeUnreachable(self.node, self.remote_host, str(e) or type(e).__name__) from e

    def defer(self, *, trigger: "BaseTrigger", **kwargs: Any) -> NoReturn:
        """With a trigger that ends the job when the task is cleared or marked."""
        super().defer(trigger=NodeJobTrigger(**trigger.serialize()[1]), **kwargs)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: "Context") -> Any:
        """As Airflow's; a job that took too long is ended first."""
        self.remote_host = _address(self.node)
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except (TaskDeferralError, TaskDeferralTimeout):
            ti = context["ti"]
            job = ti.xcom_pull(task_ids=self.task_id, key="ssh_remote_job", map_indexes=ti.map_index)
            self._end(job["job_id"])
            raise

    def execute_complete(self, context: "Context", event: dict[str, Any]) -> None:
        """Judge how the job ended."""
        status = event["exit_code"]
        if status is None:  # nobody knows: the node does not answer any more
            self._end(event["job_id"])
        try:
            super().execute_complete(context, event)
        except AirflowException as e:
            last = event["log_chunk"].strip().rpartition("\n")[2]
            told = NodeJobRefused(self.node, last or f"exit status {status}")
            self._say(context, e if status in (None, _LOST) else told)
            if status in _REFUSED:
                raise told from e
            raise

    def _say(self, context: "Context", error: Exception) -> None:
        """Leave word in the store of why there is nothing of the node, where the node could not."""
        from fleetmark_airflow.tasks import deployment, run
        from pipelines import arrivals

        store, attempt = deployment()[1], context["ti"].try_number
        with suppress(StoreUnreachable, StoreRefused):
            arrivals.fail(store, run(), self.node, self.task_id, attempt, error)

    def on_kill(self) -> None:
        """End the job that was started."""
        if self._job_id:
            self._end(self._job_id)

    def _end(self, job_id: str) -> None:
        command = _ending(RemoteJobPaths(job_id, "posix", _JOBS).job_dir)
        with (
            suppress(
                OSError, paramiko.SSHException, AirflowException
            ),  # it has ended with its node, or the lease waits
            self.ssh_hook.get_conn() as client,
        ):
            self.ssh_hook.exec_ssh_client_command(client, command, get_pty=False, environment=None, timeout=30)


class NodeJobTrigger(SSHRemoteJobTrigger):
    """Follows a job to its end, whichever: also one that left no exit status, as its node was restarted."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return f"{__name__}.{type(self).__name__}", super().serialize()[1]

    async def on_kill(self) -> None:
        """Called by Airflow when somebody clears or marks the task, or its run is at an end."""
        connection = await self._connect()
        try:
            await self._run_command(connection, _ending(self.job_dir))
        finally:
            await self._close(connection)

    async def _check_completion(self, conn: "SSHClientConnection") -> int | None:
        ended = await super()._check_completion(conn)
        if ended is not None or await self._is_there(conn):
            return ended
        ended = await super()._check_completion(conn)  # it may have ended in between
        return _LOST if ended is None else ended

    async def _is_there(self, conn: "SSHClientConnection") -> bool:
        """Whether any process of the job is. It writes its group's id down a moment after it was started."""
        directory = shlex.quote(self.job_dir)
        look = f'if test -s {directory}/pid; then kill -0 -"$(cat {directory}/pid)"; else test -d {directory}; fi'
        return (await self._run_command(conn, look))[0] == 0


def _address(node: str) -> str:
    (found,) = inventory.select(inventory.load(settings.load().inventory), (node,))
    return found.reached_at


def _ending(job_dir: str) -> str:
    """What ends a job with all of its processes, and removes what is kept of it."""
    return f"{build_posix_kill_command(f'{job_dir}/pid')}; {build_posix_cleanup_command(job_dir, _JOBS)}"
