"""Airflow, and who may ask what of it."""

from dataclasses import dataclass

from pipelines.errors.error import FleetmarkError


@dataclass(eq=False)
class AirflowFailed(FleetmarkError):
    """The embedded Airflow did not come up, or ended a run in another state than success."""

    problem: str
    log: str

    def __str__(self) -> str:
        return f"{self.problem}; see {self.log}"


@dataclass(eq=False)
class TriggerRefused(FleetmarkError):
    """Airflow would not start a run: the parameters are not what the DAG's form allows."""

    dag: str
    problem: str

    def __str__(self) -> str:
        return f"Airflow refused to start {self.dag}: {self.problem}"


@dataclass(eq=False)
class NodeRefused(FleetmarkError):
    """A node asked the control plane for what is not its own, see fleetmark_airflow.node_access."""

    node: str
    problem: str

    def __str__(self) -> str:
        return f"refused to node {self.node}: {self.problem}"
