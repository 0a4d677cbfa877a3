"""Which failures Airflow may try again: infrastructure's, never an operator's or a programmer's."""

from airflow.sdk import Context
from airflow.sdk.definitions.retry_policy import RetryDecision, RetryPolicy
from airflow.sdk.exceptions import AirflowException, AirflowRuntimeError

from pipelines.errors import FleetmarkError


class OnlyInfrastructure(RetryPolicy):
    """Retries what another attempt may cure; anything else fails at once, with its sentence as the reason.

    A task whose process was killed never gets here: Airflow retries it.
    """

    def evaluate(
        self,
        exception: BaseException,
        try_number: int,  # noqa: ARG002 - the signature is Airflow's
        max_tries: int,  # noqa: ARG002
        context: Context | None = None,  # noqa: ARG002
    ) -> RetryDecision:
        if isinstance(exception, FleetmarkError):
            return RetryDecision.default() if exception.retryable else RetryDecision.fail(str(exception))
        if isinstance(exception, OSError | AirflowException | AirflowRuntimeError):
            return RetryDecision.default()
        return RetryDecision.fail(f"{type(exception).__name__}: {exception}")
