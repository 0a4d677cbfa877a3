"""What Airflow loads of fleetmark beside its DAGs (entry point `airflow.plugins`)."""

from airflow.plugins_manager import AirflowPlugin

from fleetmark_airflow import pools


class Fleetmark(AirflowPlugin):
    name = "fleetmark"
    listeners = [pools]  # noqa: RUF012 - Airflow's own way
