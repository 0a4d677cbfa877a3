"""What each stage of a run adds besides the tool itself, in a process such as Airflow starts for a task."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping

from perf import measure

STAGES = ("plan", "measure", "parse", "import great_expectations", "validate", "land", "report")
SCRIPT = """
import json, sys, time
import importlib
import airflow.sdk.execution_time.task_runner, fleetmark_airflow.tasks  # what a task's process has before it begins ...
from fleetmark_airflow.component import PRELOADED
for module in PRELOADED:  # ... and what it was forked with
    importlib.import_module(module)
start = time.perf_counter()
from datetime import UTC, datetime
from pipelines import settings, stages, storage
stage, run_id, batch = sys.argv[1:]
if stage == "import great_expectations":
    import great_expectations
    answer = None
if stage == "validate":
    import great_expectations
    start = time.perf_counter()
current = settings.load()
store = storage.open_store(current)
now = datetime.now(UTC)
tool_s = 0.0
if stage == "plan":
    asked = stages.Request(suite="quick", repeats=1, overrides={"profile": "rand_read", "runtime_s": 5, "ramp_s": 0})
    answer = stages.publish_plan(store, stages.make_plan(current, asked, run_id, now)).run_id
elif stage == "measure":
    from pipelines.records import RawOutput
    keys = stages.measure(current, store, run_id, current.node, 1, lambda line: None)
    raws = [RawOutput.model_validate_json(store.read(key)) for key in keys]
    answer, tool_s = len(keys), sum(raw.duration_s for raw in raws)
elif stage == "parse":
    answer = stages.parse(store, run_id, now)
elif stage == "validate":
    answer = stages.validate(store, batch).success
elif stage == "land":
    answer = stages.land(store, batch)
elif stage == "report":
    stages.judge(store, run_id, now)
    answer = stages.report(store, run_id)
print(json.dumps({"answer": answer, "seconds": time.perf_counter() - start - tool_s}), file=sys.stderr)
"""


def main(rounds: int = 5) -> None:
    taken: list[Mapping[str, float]] = []

    def one_run() -> float:
        taken.append(_run(len(taken)))
        return sum(seconds for stage, seconds in taken[-1].items() if not stage.startswith("import"))

    (total,) = measure.interleaved({"all stages": one_run}, rounds)
    parts = [measure.Series(stage, tuple(each[stage] for each in taken)) for stage in STAGES]
    measure.show(
        "A run of one job, without the tool's own time",
        "s",
        [total, *parts],
        {"all stages": "target: under 2 s, without the import of Great Expectations"},
    )


def _run(number: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as home:
        environ = {**os.environ, "FLEETMARK_HOME": home}
        stage = _stage_in(environ)
        run_id = f"20261121T02000{number % 10}Z-abcdef"
        seconds = {"plan": stage("plan", run_id, "")[1], "measure": stage("measure", run_id, "")[1]}
        batch, seconds["parse"] = stage("parse", run_id, "")
        for name in STAGES[3:]:
            seconds[name] = stage(name, run_id, str(batch))[1]
        return seconds


def _stage_in(environ: Mapping[str, str]) -> Callable[[str, str, str], tuple[object, float]]:
    def stage(name: str, run_id: str, batch: str) -> tuple[object, float]:
        argv = (sys.executable, "-c", SCRIPT, name, run_id, batch)
        done = subprocess.run(argv, check=False, capture_output=True, text=True, env=environ)
        if done.returncode:
            raise RuntimeError(f"stage {name} failed: {done.stderr}")
        told = json.loads(done.stderr.splitlines()[-1])
        return told["answer"], told["seconds"]

    return stage


if __name__ == "__main__":
    main()
