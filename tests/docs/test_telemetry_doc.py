"""docs/telemetry.md is true: its queries give the energy and the price of a token, and its inventory is one."""

import re
import tomllib
from pathlib import Path

import pytest

from pipelines import benchmark
from pipelines.inventory import Inventory
from pipelines.records import Telemetry
from pipelines.storage import Store
from pipelines.suites import SuiteFile
from pipelines.tables import land, query
from tests.benchmarks import llama_samples
from tests.benchmarks.test_llama_bench import sensor
from tests.tables import landings

TEXT = (Path(__file__).parents[2] / "docs/telemetry.md").read_text()
ENERGY, COST = re.findall(r"```sql\n(.*?)```", TEXT, re.DOTALL)
SUITE, PRICES = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)


def test_the_queries_give_the_energy_and_the_price_of_a_token(store: Store) -> None:
    llama = benchmark.get("llama_bench")
    told = Telemetry(series=(sensor("nvml", 400.0, "gpu0"),))
    given = {"telemetry": told, "duration_s": 9.5, "facts": {"price_per_hour": "3.6"}}
    raw = llama_samples.raw(llama, "5163-cuda.json", **given)
    landings.hand_in(store, [raw])
    land.land_batch(store, landings.ready(store))
    rates = {each.metric: each.value for each in llama.parse(raw).measurements}
    with query.open_reader(store) as reader:
        energy, cost = reader.query(ENERGY), reader.query(COST)
    ((node, _, of, joules, unit, _),) = energy.rows
    assert (node, of, unit) == ("gpu-01", "gpu", "J")
    assert joules == pytest.approx(400 / rates["decode_throughput"], rel=0.1)
    ((_, _, metric, rate, _, price, per_million),) = cost.rows
    assert (metric, rate, price) == ("decode_throughput", rates["decode_throughput"], 3.6)
    assert per_million == pytest.approx(1000 / rate, abs=1e-4)  # 3.6 an hour is a thousandth a second


def test_the_documented_inventory_and_suite_are_read() -> None:
    found = tomllib.loads(PRICES)
    (node,) = found["nodes"]
    inventory = Inventory.model_validate({**found, "nodes": [{**node, "queue": "gpu-01", "scratch": "scratch"}]})
    assert (inventory.nodes[0].price_per_hour, inventory.cost.currency) == (24.5, "EUR")
    (entry,) = SuiteFile.model_validate({"description": "", **tomllib.loads(SUITE)}).benchmarks
    assert benchmark.get(entry.beside[0]).companion


def test_a_price_without_a_currency_is_refused() -> None:
    node = {"name": "gpu-01", "queue": "gpu-01", "scratch": "scratch", "price_per_hour": 24.5}
    with pytest.raises(ValueError, match="currency is missing, and node 'gpu-01' has a price_per_hour"):
        Inventory.model_validate({"nodes": [node]})
