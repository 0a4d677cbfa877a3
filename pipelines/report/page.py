"""The page of a run: read from the tables, rendered into one self-contained file, written beside its validation."""

import json

from pipelines import __version__, keys
from pipelines.records import Plan, Validation
from pipelines.report import html, results, summary
from pipelines.storage import Store
from pipelines.tables import landed
from pipelines.tables.landed import Landed


def publish(store: Store, plan: Plan) -> str:
    """Render the run's page as the tables have it now. Returns its key.

    Raises:
        Unknown: the run has not been landed.
        KeyNotFound: its batch was never validated.
    """
    rows = landed.read(store, plan.run_id)
    whole = json.loads(store.read(keys.decision_key(rows.batch_id)))
    key = keys.report_key(plan.run_id, "index.html")
    store.replace(key, render(plan, rows, Validation.model_validate(whole["validation"])).encode())
    return key


def render(plan: Plan, rows: Landed, validation: Validation) -> str:
    """The page as HTML. Pure."""
    told = summary.of_run(plan, rows)
    return html.render(
        "run.html",
        title=f"Run {plan.run_id}",
        headline=summary.headline(told, validation),
        plan=plan,
        batch=rows.batch_id,
        validation=validation,
        summary=told,
        sections=results.sections(plan, rows),
        most_nodes=results.MOST_NODES,
        prefixes=summary.prefixes(plan),
        version=__version__,
    )
