"""What is said of a run while one follows it."""

from pipelines.embedded.api import Task
from pipelines.embedded.follow import Seen, look, news


def measure(state: str, node: str | None) -> Task:
    return Task(name="measure", map_index=0, node=node, state=state, try_number=1, duration_s=2.0)


def said(*looks: tuple[Task, ...]) -> list[str]:
    """The news of each look after the one before."""
    lines, before = [], Seen()
    for tasks in looks:
        now = look(tasks, frozenset())
        lines += news(before, now, tasks, None)
        before = now
    return lines


def test_a_nodes_task_is_running_once_it_has_the_nodes_name() -> None:
    named = measure("running", "gpu-01")
    assert said((measure("running", None),), (named,), (named,), (measure("success", "gpu-01"),)) == [
        "measure gpu-01: running",
        "measure gpu-01: success after 2.0 s",
    ]


def test_a_task_that_failed_before_it_had_a_name_is_said_by_its_number() -> None:
    assert said((measure("failed", None),)) == ["measure [0]: failed after 2.0 s"]
