"""Airflow's REST API: the few calls that start a run and follow it."""

from typing import Any

from pydantic import AwareDatetime

from pipelines.errors import AirflowFailed, NotInstalled, TriggerRefused
from pipelines.records import Record

_TIMEOUT_S = 30.0  # the first call of each kind makes a freshly started server import and compile a lot


class Run(Record):
    """A DAG run. `run_after` and `run_id` make fleetmark's own run id."""

    dag: str
    run_id: str
    run_after: AwareDatetime
    state: str

    @property
    def ended(self) -> bool:
        return self.state in {"success", "failed"}


class Task(Record):
    """The latest try of a task; `node` is set where a task is mapped over the nodes, and has begun its work."""

    name: str
    map_index: int
    node: str | None
    state: str | None  # None: not yet scheduled
    try_number: int
    duration_s: float | None


class Airflow:
    """A client that logs in at its first call.

    Raises, from every method: AirflowFailed: there is no answer, or one that the server never gives when it is well.
    """

    def __init__(self, url: str, user: str, password: str, log: str) -> None:
        try:
            import httpx
        except ImportError as e:
            raise NotInstalled("httpx", "airflow") from e
        self._errors = (httpx.HTTPError, ValueError)
        self._credentials = {"username": user, "password": password}
        self._client = httpx.Client(base_url=url, timeout=_TIMEOUT_S, trust_env=False)
        self._log = log

    def is_up(self) -> bool:
        """Whether the API server answers and both scheduler and DAG processor have a heartbeat."""
        try:
            health = self._client.get("/api/v2/monitor/health").raise_for_status().json()
        except self._errors:
            return False
        return all(health[part]["status"] == "healthy" for part in ("metadatabase", "scheduler", "dag_processor"))

    def has_dag(self, dag: str) -> bool:
        return bool(self._call("GET", f"/api/v2/dags/{dag}").status_code == 200)

    def import_errors(self) -> tuple[str, ...]:
        """The last line of each DAG file's error: its sentence."""
        errors = self.get("/api/v2/importErrors")["import_errors"]
        return tuple(str(error["stack_trace"]).strip().rpartition("\n")[2] for error in errors)

    def trigger(self, dag: str, conf: dict[str, Any]) -> Run:
        """Start a run now.

        Raises:
            TriggerRefused: the DAG's parameters do not allow `conf`.
        """
        answer = self._call("POST", f"/api/v2/dags/{dag}/dagRuns", {"logical_date": None, "conf": conf})
        if answer.status_code in {400, 404, 422}:
            problem = str(answer.json()["detail"]).partition("\n\n")[0]  # then follows the schema
            raise TriggerRefused(dag, problem)
        return _run(self._json(answer))

    def run(self, run: Run) -> Run:
        """The run as it is now."""
        return _run(self.get(f"/api/v2/dags/{run.dag}/dagRuns/{run.run_id}"))

    def fail(self, run: Run) -> None:
        """Mark a run as failed; Airflow then ends its running tasks."""
        self.patch(f"/api/v2/dags/{run.dag}/dagRuns/{run.run_id}", {"state": "failed"})

    def tasks(self, run: Run) -> tuple[Task, ...]:
        """The run's tasks, in no order that means anything."""
        path = f"/api/v2/dags/{run.dag}/dagRuns/{run.run_id}/taskInstances?limit=1000"
        return tuple(_task(each) for each in self.get(path)["task_instances"])

    def get(self, path: str) -> Any:
        """The JSON document behind any other path."""
        return self._json(self._call("GET", path))

    def post(self, path: str, body: Any) -> Any:
        """Have what is behind a path done; the JSON document that is answered."""
        return self._json(self._call("POST", path, body))

    def patch(self, path: str, body: Any) -> Any:
        """Change what is behind a path; the JSON document as it then is."""
        return self._json(self._call("PATCH", path, body))

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        try:
            if "Authorization" not in self._client.headers:
                token = self._client.post("/auth/token", json=self._credentials).raise_for_status().json()
                self._client.headers["Authorization"] = f"Bearer {token['access_token']}"
            return self._client.request(method, path, json=body)
        except self._errors as e:
            raise AirflowFailed(f"Airflow does not answer {method} {path}: {e}", self._log) from e

    def _json(self, answer: Any) -> Any:
        if answer.is_error:
            request = f"{answer.request.method} {answer.request.url}"
            raise AirflowFailed(f"Airflow answered {request} with {answer.status_code}: {answer.text[:500]}", self._log)
        return answer.json()


def _run(body: Any) -> Run:
    return Run(dag=body["dag_id"], run_id=body["dag_run_id"], run_after=body["run_after"], state=body["state"])


def _task(body: Any) -> Task:
    index, node = body["map_index"], body["rendered_map_index"]
    return Task(
        name=body["task_id"],
        map_index=index,
        node=None if node == str(index) else node,  # until the task knows its own
        state=body["state"],
        try_number=body["try_number"],
        duration_s=body["duration"],
    )
