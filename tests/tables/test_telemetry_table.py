"""Table telemetry: what was sampled beside a job lands once with its batch, and numbers are made of it."""

from pipelines import keys
from pipelines.records import RawOutput, Series, Telemetry
from pipelines.storage import Store
from pipelines.tables import files, land, query, validate
from pipelines.tables.schema import TELEMETRY
from tests import make
from tests.benchmarks import fio_samples
from tests.tables import landings
from tests.tables.batches import BATCH, batch, killed

POWER = Series(
    metric="power", unit="W", labels={"device": "gpu0"}, source="nvml",
    count=3, minimum=100.0, mean=250.0, maximum=400.0, seconds=(0.0, 1.0, 2.0), samples=(100.0, 400.0, 100.0),
)  # fmt: skip
HELD_DOWN = Series(
    metric="throttled", unit="ratio", labels={"device": "gpu0", "reason": "sw_power_cap"}, source="nvml",
    count=3, minimum=0.0, mean=0.25, maximum=1.0, seconds=(0.0, 1.0, 2.0), samples=(0.0, 1.0, 0.0),
)  # fmt: skip
TOLD = Telemetry(series=(POWER, HELD_DOWN), notes=("rapl: it may not be read",), cpu_s=0.01)


def _sampled(raw: RawOutput) -> RawOutput:
    return raw.model_copy(update={"telemetry": TOLD})


def test_every_series_is_a_row_with_its_samples_beside_what_its_job_was() -> None:
    made = batch(repeats=1, instead=_sampled)
    power, held_down = made.telemetry
    wanted = {"metric": "power", "unit": "W", "source": "nvml", "labels": [("device", "gpu0")], "count": 3}
    wanted |= {"mean": 250.0, "seconds": [0.0, 1.0, 2.0], "samples": [100.0, 400.0, 100.0], "run_id": make.RUN_ID}
    assert {name: power[name] for name in wanted} == wanted
    assert held_down["labels"] == [("device", "gpu0"), ("reason", "sw_power_cap")]
    assert {row["job_id"] for row in made.telemetry} == {made.runs[0]["job_id"]}
    assert made.runs[0]["notes"][-1:] == ["rapl: it may not be read"]


def test_the_metrics_that_all_benchmarks_have_are_made_of_it_and_believed(store: Store) -> None:
    without = batch(repeats=1)
    made = batch(repeats=1, instead=_sampled).put(store)
    added = {row["metric"]: row for row in made.measurements[len(without.measurements) :]}
    assert {name: (row["value"], row["unit"]) for name, row in added.items()} == {
        "power_mean": (250.0, "W"),
        "energy": (500.0, "J"),
        "throttled_time": (0.5, "s"),
    }
    assert added["throttled_time"]["labels"] == [("device", "gpu0"), ("reason", "sw_power_cap")]
    told = validate.validate_batch(store, BATCH)
    assert (told.success, told.quarantined) == (True, 0)


def test_a_job_that_failed_keeps_its_samples_and_gives_no_energy() -> None:
    made = batch(repeats=1, instead=lambda raw: _sampled(killed(raw)))
    assert made.runs[0]["outcome"] == "truncated"
    assert len(made.telemetry) == 2
    assert not {"energy", "power_mean", "throttled_time"} & {row["metric"] for row in made.measurements}


def test_it_lands_once_however_often_it_is_tried(store: Store) -> None:
    landings.hand_in(store, [_sampled(fio_samples.raw("rand_read"))])
    ready = landings.ready(store)
    first = land.land_batch(store, ready)
    assert land.land_batch(store, ready) == first
    with query.open_reader(store) as reader:
        answer = reader.query("SELECT metric, mean, samples FROM telemetry ORDER BY metric")
    assert answer.rows == (("power", 250.0, [100.0, 400.0, 100.0]), ("throttled", 0.25, [0.0, 1.0, 0.0]))


def test_a_batch_that_an_earlier_release_has_parsed_lands_without_telemetry(store: Store) -> None:
    made = batch(repeats=1)
    made.put(store)
    store.delete(keys.parsed_key(BATCH, "telemetry"))
    validate.validate_batch(store, BATCH)
    assert files.read(store, keys.landing_key(BATCH, "telemetry")) == TELEMETRY.empty_table()
    store.delete(keys.landing_key(BATCH, "telemetry"))  # validated by it, too
    land.land_batch(store, BATCH)
    with query.open_reader(store) as reader:
        assert reader.query("SELECT count(*) FROM telemetry").rows == ((0,),)
        assert reader.query("SELECT count(*) FROM runs").rows == ((1,),)
