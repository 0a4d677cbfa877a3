"""Parsing, validating and landing a night of 60,000 measurements, beside a bare Delta append of the same rows."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from perf import measure
from pipelines import console, keys, stages, storage
from pipelines.records import Plan
from pipelines.settings import Settings
from pipelines.storage import Store
from pipelines.tables import files
from tests import make
from tests.benchmarks import fio_samples
from tests.tables.batches import ENVIRONMENT

_NODES = 420
_PROFILES = ("seq_read", "seq_write", "rand_read", "rand_write", "mixed", "checkpoint")
_REPEATS = 2


def main(rounds: int = 5) -> None:
    import great_expectations  # noqa: F401 - its import is counted in perf.stages

    taken: dict[str, list[float]] = {}
    for number in range(rounds):
        console.say(f"  round {number + 1} of {rounds}")
        with tempfile.TemporaryDirectory(prefix="fleetmark-bench-") as home:
            store = storage.open_store(Settings(home=Path(home), store=f"file://{home}/store"))
            for name, seconds in _night(store, Path(home)).items():
                taken.setdefault(name, []).append(seconds)
    rows = int(statistics.median(taken.pop("rows")))
    measure.show(
        f"A night of {rows:,} measurements of {_NODES} nodes",
        "s",
        [measure.Series(name, tuple(values)) for name, values in taken.items()],
        {"land": "target: under 1 s", "validate and land": "target: under 5 s"},
    )


def _night(store: Store, home: Path) -> dict[str, float]:
    plan = _measured(store)
    parsing = _seconds(lambda: stages.parse(store, plan.run_id, make.AT))
    batch = stages.parse(store, plan.run_id, make.AT)
    validating = _seconds(lambda: stages.validate(store, batch))
    accepted = files.read(store, keys.landing_key(batch, "measurements"))
    landing = _seconds(lambda: stages.land(store, batch))

    def bare_append() -> None:
        from deltalake import write_deltalake

        write_deltalake(str(home / "bare"), files.read(store, keys.landing_key(batch, "measurements")))

    return {
        "bare write_deltalake of the measurements": _seconds(bare_append),
        "land": landing,
        "validate": validating,
        "validate and land": validating + landing,
        "parse": parsing,
        "rows": float(accepted.num_rows),
    }


def _measured(store: Store) -> Plan:
    """A run whose raw outputs are in the store: real outputs of fio, each profile's sample for every node."""
    raws = []
    for node in range(_NODES):
        for profile in _PROFILES:
            sample = fio_samples.raw(profile)
            for repeat in range(1, _REPEATS + 1):
                job_id = f"n{node:04d}-{profile}-{repeat}"
                fields = {"job_id": job_id, "node": f"n{node:04d}", "repeat": repeat}
                raws.append(sample.model_copy(update={"job": sample.job.model_copy(update=fields)}))
    store.create(keys.environment_key(ENVIRONMENT.environment_id), ENVIRONMENT.model_dump_json().encode())
    plan = stages.publish_plan(store, make.plan(*(raw.job for raw in raws)))
    for raw in raws:
        path = Path(store.path(keys.raw_key(plan.run_id, raw.job.node, raw.job.job_id, raw.attempt)))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(raw.model_dump_json())  # without the fsync of each, which is not what is measured
    return plan


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
