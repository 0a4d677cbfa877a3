"""A run as the tables have it, made of real outputs of fio without a store between."""

from collections.abc import Mapping
from dataclasses import replace

from pipelines.records import Validation
from pipelines.report import page
from pipelines.tables import quarantine, schema
from pipelines.tables.landed import Landed
from pipelines.verdicts import judge
from tests import make
from tests.tables.batches import BATCH, Batch


def landed(made: Batch, reasons: Mapping[int, str] | None = None) -> Landed:
    """The batch's rows after validation; `reasons` are those of expectations, failed jobs are set aside as always."""
    tables = made.tables()
    by_rule = quarantine.of_failed_jobs(tables["runs"], tables["measurements"])
    accepted, refused = quarantine.split(tables["measurements"], {**by_rule, **(reasons or {})})
    return Landed(
        batch_id=BATCH,
        runs=tables["runs"],
        measurements=accepted,
        quarantine=refused,
        histograms=tables["histograms"],
        telemetry=tables["telemetry"],
        environments=tables["environments"],
        verdicts=schema.VERDICTS.empty_table(),
        versions={"runs": 3, "measurements": 4},
    )


def rendered(made: Batch, failed: tuple[str, ...] = (), reasons: Mapping[int, str] | None = None) -> str:
    """The run's page, with its verdicts."""
    rows = landed(made, reasons)
    verdicts = judge.table(make.RUN_ID, tuple(judge.floors(made.plan, rows)), BATCH, make.AT)
    validation = Validation(
        run_id=make.RUN_ID,
        success=not failed,
        rows=len(made.measurements),
        quarantined=rows.quarantine.num_rows,
        failed=failed,
    )
    return page.render(made.plan, replace(rows, verdicts=verdicts), validation)
