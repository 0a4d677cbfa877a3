"""A node of a fleet with a disk that may be overwritten and a GPU, and the people who are asked about the disk."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines import keys, storage
from pipelines.embedded.api import Airflow, Run
from pipelines.records import RawOutput
from tests.fleet.control import PASSWORDS, Fleet
from tests.following import run_id_of, wait_for
from tests.node.disks import MIB, SIZE_BYTES, attached

_DCGMI = Path(__file__).parents[1] / "standins/dcgm/dcgmi"


@contextmanager
def given(fleet: Fleet, node: str, folder: Path) -> Iterator[Path]:
    """The node has an empty disk and the stand-in of dcgmi, and the inventory says so; gives the disk."""
    name, bin_folder = f"disk-{uuid.uuid4().hex[:12]}", fleet.machine(node).disk / "bin"
    bin_folder.mkdir()
    tool = bin_folder / "dcgmi"
    tool.write_text(f'#!/bin/sh\nTMPDIR=/mnt exec "{_DCGMI}" "$@"\n')
    tool.chmod(0o755)
    inventory = fleet.settings.inventory
    before = inventory.read_text()
    of_node = f'name = "{node}"\n'
    with attached(folder) as attach:
        inventory.write_text(before.replace(of_node, f'{of_node}devices = ["loop:{name}"]\nfeatures = ["gpu"]\n'))
        yield attach(name)
    inventory.write_text(before)


def question(fleet: Fleet, run: Run) -> str:
    """Where the run's question is answered, once it waits for that and has measured all else."""
    path = f"/api/v2/dags/{run.dag}/dagRuns/{run.run_id}/taskInstances"

    def waits() -> bool | None:
        states = [(task.name, task.state) for task in fleet.airflow.tasks(run) if task.name in ("approve", "measure")]
        return (len(states) > 1 and set(states) == {("approve", "awaiting_input"), ("measure", "success")}) or None

    wait_for(waits)
    return f"{path}/approve/-1/hitlDetails"


def answer(fleet: Fleet, run: Run, person: str, choice: str) -> None:
    """As somebody does in the UI."""
    somebody = Airflow(fleet.environ["AIRFLOW__API__BASE_URL"], person, PASSWORDS[person], str(fleet.folder))
    somebody.patch(question(fleet, run), {"chosen_options": [choice]})


def decided(fleet: Fleet, run: Run) -> None:
    """Wait until the run's jobs on disks are done, or refused."""
    done = ("measure_devices", "success")
    wait_for(lambda: any((task.name, task.state) == done for task in fleet.airflow.tasks(run)) or None)


def jobs(fleet: Fleet, run: Run) -> dict[tuple[str, str], tuple[str, str, bool]]:
    """Outcome, reason and whether it was simulated of each job, by node and benchmark."""
    found = fleet.answer(
        f"SELECT node, benchmark, outcome, reason, simulated FROM runs WHERE run_id = '{run_id_of(run)}'"
    )
    return {(node, benchmark): (outcome, reason, simulated) for node, benchmark, outcome, reason, simulated in found}


def raws(fleet: Fleet, run: Run) -> dict[tuple[str, str], RawOutput]:
    """The raw output of each job, by the host it ran on and its benchmark."""
    store = storage.open_store(fleet.settings)
    found = [
        RawOutput.model_validate_json(store.read(key)) for key in store.keys_under(keys.raw_prefix(run_id_of(run)))
    ]
    return {(raw.hostname, raw.job.benchmark): raw for raw in found}


def require_untouched(disk: Path) -> None:
    assert disk.read_bytes() == bytes(SIZE_BYTES)


def require_written(disk: Path) -> None:
    """To its middle, and to neither end."""
    data, edge = disk.read_bytes(), bytes(16 * MIB)
    assert data != bytes(SIZE_BYTES)
    assert (data[: len(edge)], data[-len(edge) :]) == (edge, edge)


def require_watched(fleet: Fleet, run: Run, node: str) -> None:
    """What stood beside fio on the node says so, and its numbers and series are in the tables."""
    found = raws(fleet, run)
    fio, watcher = found[node, "fio"], found[node, "dcgm_profile"]
    assert watcher.facts["beside"] == watcher.facts["ended_with"] == fio.job.job_id
    of_watcher = f"WHERE run_id = '{run_id_of(run)}' AND node = '{node}' AND benchmark = 'dcgm_profile'"
    seen = fleet.answer(f"SELECT DISTINCT maximum FROM telemetry {of_watcher} AND metric = 'sm_active'")
    assert seen == ((0.912,),)
    landed = fleet.answer(f"SELECT DISTINCT metric FROM measurements {of_watcher}")
    assert {"sm_active", "dram_active"} <= {metric for (metric,) in landed}
