"""What Airflow loads of fleetmark beside its DAGs (entry point `airflow.plugins`)."""

from typing import Any

from airflow.configuration import conf
from airflow.plugins_manager import AirflowPlugin

from fleetmark_airflow import pools
from fleetmark_airflow.admission import Admission


class Fleetmark(AirflowPlugin):
    name = "fleetmark"
    listeners = [pools]  # noqa: RUF012 - Airflow's own way
    fastapi_root_middlewares = [{"name": "admission", "middleware": Admission}]  # noqa: RUF012

    @classmethod
    def on_load(cls, *args: Any, **kwargs: Any) -> None:  # noqa: ARG003 - the signature is Airflow's
        """In the api-server of a fleet, hold nodes and their tasks to their own work."""
        if conf.get("fleetmark", "node_keys", fallback="") and conf.getboolean("edge", "api_enabled", fallback=False):
            from airflow.providers.edge3.plugins.edge_executor_plugin import EdgeExecutorPlugin

            for each in EdgeExecutorPlugin.fastapi_apps:  # elsewhere there is none
                from fleetmark_airflow import node_access, task_access

                node_access.guard(each["app"])
                inner = {"name": "task-access", "middleware": task_access.TaskAccess}
                # behind admission, for it asks the database
                cls.fastapi_root_middlewares = [inner, *cls.fastapi_root_middlewares]
