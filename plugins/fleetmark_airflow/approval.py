"""The task in which a run waits until a second person has decided about its jobs on raw devices."""

import logging
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk.exceptions import AirflowSkipException

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger("fleetmark")

APPROVE = "approve"
"""The task's id."""

APPROVAL = "approval"
"""The XCom that holds the hash of what was decided, see `pipelines.approvals`."""

_SHOWN = "plan"  # the XCom that holds the hash of the plan that was shown
_YES, _NO = "Approve", "Refuse"


class ApproveDevices(HITLOperator):
    """Asks who may answer tasks of this DAG, and is skipped where the run's plan has no job on a raw device.

    No answer in time is a no. Whatever the answer, the task succeeds and returns the nodes that have such jobs: there
    they run, or end as not approved.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(subject="", options=[_YES, _NO], defaults=_NO, **kwargs)

    def execute(self, context: "Context") -> None:
        """Show what would be written to; wait."""
        from fleetmark_airflow.tasks import deployment, run
        from pipelines import approvals

        asked = approvals.question(deployment()[1], run())
        if asked is None:
            raise AirflowSkipException("no job of this run is on a raw device")
        self.subject, self.body = asked.subject, asked.body
        context["ti"].xcom_push(key=_SHOWN, value=asked.plan)
        super().execute(context)

    def execute_complete(self, context: "Context", event: dict[str, Any]) -> list[str]:
        """Decide, and write it down."""
        from fleetmark_airflow.tasks import deployment, run
        from pipelines import approvals

        heard = super().execute_complete(context, event)
        ti, dag_run, by = context["ti"], context["dag_run"], heard["responded_by_user"]
        answer = approvals.Answer(
            granted=heard["chosen_options"] == [_YES],
            by=tuple(dict.fromkeys((by["name"], by["id"]))) if by else (),
            asked_by=dag_run.triggering_user_name,
            scheduled=dag_run.run_type == "scheduled",
            at=heard["responded_at"],
        )
        decided, sha256 = approvals.record(deployment()[1], run(), ti.xcom_pull(task_ids=APPROVE, key=_SHOWN), answer)
        log.info("granted=%s by=%s reason=%s", decided.granted, decided.by, decided.reason)
        ti.xcom_push(key=APPROVAL, value=sha256)
        return list(decided.devices)
