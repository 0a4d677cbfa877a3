"""
# Benchmarks of the fleet, every night and on demand

Runs a suite on the selected nodes, keeps what the tools printed, and lands validated results in the tables.

| task | does | writes |
|---|---|---|
| `plan` | suite x nodes -> jobs | `plans/<run>.json` |
| `measure` | runs a node's jobs, one after the other, under the node's lease | `raw/<date>/<run>/<node>/...` |
| `approve` | has a second person approve jobs on raw devices; skipped where there are none | `approvals/<run>.json` |
| `pair_up` | names the nodes that are measured in pairs; none where the suite has no pairs | |
| `exchange` | runs the node's tests with other nodes, round by round, as all of them do at the same time | `raw/...` |
| `isolate` | finds the pairs that did badly, and good partners for their nodes | `plans-again/<run>.json` |
| `exchange_again` | runs the tests that tell which of the two nodes is bad | `raw/...` |
| `measure_devices` | runs the jobs on raw devices, last and alone; one that was not approved ends as such | `raw/...` |
| `parse` | raw outputs -> rows | `parsed/<batch>/` |
| `validate` | judges them: units, honest ranges, completeness | `landing/<batch>/`, `reports/<run>/validation.html` |
| `land` | one commit per table, `runs` last; emits the asset `fleetmark_results` | `tables/` |
| `report` | verdicts, and the page of the run | `reports/<run>/` |
| `late` | lands earlier runs again, of which nodes have sent raw outputs from their spools since | as these do |

**Start one by hand:** *Trigger*, fill in the form. *Dry run* prints the plan in the log of `plan` and stops there.
A wrong name or type is refused when you press the button; a wrong benchmark parameter fails `plan` with one sentence.

**Is it safe to run again?** Yes, always. Clear any task, or the whole run: jobs whose raw output is there are not run
again, and a batch lands once however often its tasks are retried. Runs that meet on a node wait for each other.

**A run waits in `approve`:** it is on the page *Required Actions*, with the disks whose content will be lost. Whoever
may trigger this DAG may approve, but not who started the run. After a no, and without an answer within
FLEETMARK_APPROVAL_WAIT_S, its jobs on raw devices are rows with the outcome `config`, and the rest lands.

**A red `measure` or `exchange`** is a node that could not be measured (its lease, its scratch directory, the store).
The rest of the run lands, and that node's jobs are in the table `runs` with their outcome and reason. A tool that fails
is not red: it is a row.

**A red `plan`** says in the last line of its log what is wrong with the request, the inventory or the suite. `parse` is
red as well then, for it finds no plan.

**A red `land` or `validate`**: the raw outputs are safe. Cure what its log names (most likely the store); clear it.

**Read the results:** `fleetmark results --run <run>`, `fleetmark query "SELECT ..."`, or the page at `reports/<run>/`.
"""

from datetime import timedelta

from airflow.sdk import dag

from fleetmark_airflow import form, on_node, tasks
from pipelines import settings

current = settings.load()


@dag(
    schedule=form.timetable(current.nightly),
    catchup=False,
    params=form.benchmark_params(current),
    default_args=tasks.DEFAULT_ARGS,
    dagrun_timeout=timedelta(hours=12),
    doc_md=__doc__,
    description="Plan, measure on every node, validate, land, report",
    tags=["fleetmark"],
)
def fleet_benchmark() -> None:
    planned, batch = tasks.plan(), tasks.parse()
    measured = on_node.expand(tasks.measure, planned)
    pairs, suspects = tasks.pair_up(), tasks.isolate()
    measured >> pairs
    met = on_node.expand(tasks.exchange, pairs)
    met >> suspects
    met_again = on_node.expand(tasks.exchange_again, suspects)
    approved = tasks.approve()
    planned >> approved
    written = on_node.expand(tasks.measure_devices, approved, *tasks.APPROVED)
    [measured, met, met_again] >> written
    [planned, measured, met, met_again, written] >> batch
    tasks.land(tasks.validate(batch)) >> tasks.report() >> tasks.late()


fleet_benchmark()
