"""The tasks that are mapped over nodes and run on each: in the node's own worker, or by SSH where it has none."""

from typing import TYPE_CHECKING, Any

from fleetmark_airflow.routing import PER_NODE, PER_PAIR, PLANNING
from pipelines import settings

if TYPE_CHECKING:
    from airflow.sdk.definitions.xcom_arg import XComArg

SSH = "ssh"
"""As node executor: there is no worker on the nodes, see `agentless`."""

SSH_GIVES_UP_AFTER_S = 150.0
"""Four attempts of two connections of 10 s each, and the 10, 20 and 40 s between them: see `tasks.DEFAULT_ARGS`."""

_executor = settings.load().node_executor
IS_SSH = _executor == SSH


def _arguments(queue: str) -> dict[str, Any]:
    if not _executor:
        return {}
    return {"queue": queue} if IS_SSH else {"queue": queue, "executor": _executor}


ON_NODE = _arguments(PER_NODE)
"""Arguments of a task that is mapped over nodes and runs on each: see `routing`. On one machine there are none."""

ON_PAIR = _arguments(PER_PAIR)
"""The same of one that needs those of other nodes beside it."""


ONE_AT_A_TIME: dict[str, Any] = {"pool": PLANNING} if _executor else {}
"""Arguments of the task that plans: two at once could each find room in a quota that has room for one."""


def expand(work: Any, nodes: "XComArg", *arguments: str) -> Any:
    """The task that runs `work` on each of the nodes.

    By SSH it is the verb of `fleetmark node` that is called as the task is, with the run's id, the node's name, the
    attempt, and these `arguments`, which are templates. Either way the task has the same id, and shows nodes by
    their names.
    """
    if not IS_SSH:
        return work.expand(node=nodes)
    from fleetmark_airflow.agentless import NodeJob

    name = work.function.__name__
    return NodeJob.partial(
        task_id=name,
        verb=name.replace("_", "-"),
        arguments=("--attempt", "{{ ti.try_number }}", *arguments),
        **{name: work.kwargs[name] for name in ("queue", "trigger_rule") if name in work.kwargs},
        map_index_template="{{ task.node }}",
    ).expand(node=nodes)
