"""The ad hoc form of `fleet_benchmark`: typed parameters, with the choices that inventory and suites give."""

from datetime import timedelta
from typing import Any

from airflow.sdk import CronTriggerTimetable, Param

from pipelines import inventory, suites, tenants
from pipelines.inventory import Inventory
from pipelines.settings import Settings
from pipelines.stages import Request

_VARIED = "Other than the suite says"
_NIGHTLY_SUITE = "nightly"
_LISTED = 20


def benchmark_params(settings: Settings) -> dict[str, Param]:
    """The parameters of a run. Their defaults are what the schedule runs.

    Raises:
        BadFile: the inventory is malformed; Airflow shows the sentence as the DAG's import error.
    """
    fleet = inventory.load(settings.inventory)
    known_suites = suites.names(settings.suites)
    params = {
        "suite": Param(
            _NIGHTLY_SUITE if _NIGHTLY_SUITE in known_suites else next(iter(known_suites), ""),
            title="Suite",
            description="Which benchmarks run, with which parameters: one of infra/suites.",
            type="string",
            enum=list(known_suites),
        ),
        **node_params(fleet),
        "dry_run": Param(
            False,
            title="Dry run",
            description="Only print the plan (nodes, commands, seconds, bytes) in the log of the task plan.",
            type="boolean",
        ),
        "note": Param(
            None,  # Airflow's form does not let an empty string through
            title="Note",
            description="Why this run was made; kept with its rows.",
            type=["null", "string"],
            maxLength=500,
        ),
        "tenant": Param(
            tenants.DEFAULT,
            title="Tenant",
            description="Whose quota of node-minutes the run counts on. The nightly run counts on nobody's.",
            type="string",
            enum=sorted({tenants.DEFAULT, *fleet.tenants}),
        ),
        "repeats": Param(
            None,
            title="Repeats",
            description="How often each case is measured, 1 to 100. Empty: as the suite says.",
            type=["null", "integer"],
            minimum=1,
            maximum=100,
            section=_VARIED,
        ),
        "overrides": Param(
            {},
            title="Overrides",
            description='Benchmark parameters that replace the suite\'s own, as JSON: {"runtime_s": 1}. '
            "`fleetmark bench show fio` lists them; one that no benchmark of the suite takes fails the plan.",
            type="object",
            additionalProperties={"type": ["boolean", "number", "string"]},
            section=_VARIED,
        ),
    }
    return as_read_by(settings, params)


def as_read_by(settings: Settings, params: dict[str, Param]) -> dict[str, Param]:
    """On a node of a fleet, where Airflow checks them again, without choices: these are the control plane's files'."""
    if settings.node is not None and settings.node_executor:
        for param in params.values():
            for rule in ("enum", "items"):
                param.schema.pop(rule, None)
    return params


def node_params(fleet: Inventory) -> dict[str, Param]:
    """Which nodes."""
    return {
        "nodes": Param(
            [],
            title="Nodes",
            description="One per line: a name, a glob (gpu-*), or conditions on labels and features "
            f"(sku=h200,rack=r1 or feature=rdma). No node and no cohort: all of them. Known: {_listed(fleet.names)}.",
            type="array",
            items=_node_term(fleet),
        ),
        "cohort": Param(
            None,
            title="Cohort",
            description="Every node with this label, in addition to the nodes named above.",
            type=["null", "string"],
            enum=[None, *cohorts(fleet)],
            values_display={"null": "(none)"},
        ),
        "sample": Param(
            None,
            title="Sample",
            description="Keep this many of the selected nodes, drawn at random. Empty: all of them.",
            type=["null", "integer"],
            minimum=1,
        ),
    }


def maintenance_params() -> dict[str, Param]:
    """What upkeep may remove."""
    return {
        "vacuum_after_days": Param(
            30,
            title="Time travel in days",
            description="Files that only older versions of a table need are removed: --as-of reaches this far back.",
            type="integer",
            minimum=7,
            maximum=3650,
        ),
        "keep_months": Param(
            {},
            title="Months to keep",
            description='Months before the current one that a table keeps, as JSON: {"histograms": 12}. '
            "A table that is not named keeps everything.",
            type="object",
            additionalProperties={"type": "integer", "minimum": 0},
        ),
    }


def cohorts(fleet: Inventory) -> tuple[str, ...]:
    """Every label of the inventory as a selection term, sorted: `sku=h200`."""
    return tuple(sorted({f"{key}={value}" for node in fleet.nodes for key, value in node.labels.items()}))


def timetable(cron: str) -> CronTriggerTimetable | None:
    """The schedule in UTC, None for an empty expression. A DAG seen for the first time waits for its next turn."""
    if not cron:
        return None
    return CronTriggerTimetable(cron, timezone="UTC", run_immediately=timedelta(0))


def request(params: dict[str, Any], trigger: str) -> Request:
    """The filled-in form as the library's request."""
    taken = {name: params[name] for name in ("suite", "overrides", "repeats", "tenant")}
    return Request(**taken, **nodes_of(params), note=params["note"] or "", trigger=trigger)


def nodes_of(params: dict[str, Any]) -> dict[str, Any]:
    """What the form says of the nodes, as a selection's terms and sample."""
    cohort = params["cohort"]
    return {"nodes": (*params["nodes"], *((cohort,) if cohort else ())), "sample": params["sample"]}


def _listed(names: tuple[str, ...]) -> str:
    """The first names of a fleet, which may have a thousand."""
    left = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {left} more" if left > 0 else "")


def _node_term(fleet: Inventory) -> dict[str, object]:
    """JSON Schema of a selection term. `if` rather than `anyOf`: its error names the nodes that are known."""
    return {
        "type": "string",
        "if": {"pattern": r"[*?\[=]"},
        "else": {"enum": list(fleet.names)},
    }
