"""What Airflow loads of fleetmark beside its DAGs (entry point `airflow.plugins`)."""

from airflow.plugins_manager import AirflowPlugin

from fleetmark_airflow import pools
from fleetmark_airflow.admission import Admission


class Fleetmark(AirflowPlugin):
    name = "fleetmark"
    listeners = [pools]  # noqa: RUF012 - Airflow's own way
    fastapi_root_middlewares = [{"name": "admission", "middleware": Admission}]  # noqa: RUF012
