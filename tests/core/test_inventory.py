"""The inventory and the selection of nodes."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines import documents, inventory
from pipelines.errors import BadFile, BadSelection, Unknown
from pipelines.inventory import Inventory
from tests import make

FLEET = Inventory(
    nodes=(
        make.node("gpu-01", labels={"sku": "h200", "rack": "r1"}, features=("rdma",)),
        make.node("gpu-02", labels={"sku": "h200", "rack": "r2"}),
        make.node("gpu-11", labels={"sku": "l40s", "rack": "r1"}),
        make.node("store-01", labels={"sku": "epyc"}),
    )
)


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        ((), ["gpu-01", "gpu-02", "gpu-11", "store-01"]),
        (("gpu-02",), ["gpu-02"]),
        (("gpu-0*", "store-01"), ["gpu-01", "gpu-02", "store-01"]),
        (("sku=h200",), ["gpu-01", "gpu-02"]),
        (("rack=r1,sku=h*",), ["gpu-01"]),
        (("feature=rdma",), ["gpu-01"]),
    ],
)
def test_a_selection_names_nodes_by_name_glob_label_and_feature(terms: tuple[str, ...], expected: list[str]) -> None:
    assert [node.name for node in inventory.select(FLEET, terms)] == expected


def test_an_unknown_node_is_refused_with_the_names_that_are_known() -> None:
    with pytest.raises(Unknown, match="unknown node 'gpu-99'; known: gpu-01, gpu-02, gpu-11, store-01"):
        inventory.select(FLEET, ("gpu-99",))


@pytest.mark.parametrize("term", ["cpu-*", "sku=b300", "rack=r1,sku=epyc", "feature=nvlink"])
def test_a_term_that_selects_nothing_is_refused(term: str) -> None:
    with pytest.raises(BadSelection, match="matches none of the 4 nodes"):
        inventory.select(FLEET, (term,))


@given(st.integers(1, 10), st.text(max_size=5))
def test_a_sample_has_its_size_and_is_the_same_for_the_same_seed(size: int, seed: str) -> None:
    nodes = inventory.select(FLEET, sample=size, seed=seed)
    assert len(nodes) == min(size, 4)
    assert nodes == inventory.select(FLEET, sample=size, seed=seed)


def test_a_disk_is_listed_for_one_node_and_once_but_a_rehearsals_file_may_have_its_name_everywhere() -> None:
    def fleet(*devices: tuple[str, ...]) -> Inventory:
        return Inventory(nodes=tuple(make.node(f"gpu-{n}", devices=each) for n, each in enumerate(devices)))

    assert (
        fleet(("S4YP-1", "eui.0025385b01401234"), ("loop:disk",), ("loop:disk",)).nodes[0].devices[1].startswith("eui")
    )
    for twice in ((("S4YP-1",), ("S4YP-1",)), (("S4YP-1", "S4YP-1"),)):
        with pytest.raises(ValidationError, match="device 'S4YP-1' is listed 2 times, and a disk is in one node"):
            fleet(*twice)


@pytest.mark.parametrize(
    "serial", ["", "ab", "/dev/sda", "../sda", "a b c", "S4YP-1\n", "loop:", "loop:/srv/disk", "-x-x-x", "x" * 128]
)
def test_what_no_disk_says_of_itself_is_no_serial_number(serial: str) -> None:
    with pytest.raises(ValidationError, match="devices"):
        make.node(devices=(serial,))


def drained(*names: str) -> Inventory:
    nodes = tuple(node.model_copy(update={"drained": node.name in names}) for node in FLEET.nodes)
    return FLEET.model_copy(update={"nodes": nodes})


def test_a_run_takes_no_node_that_is_drained_and_the_log_names_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="pipelines.inventory")
    fleet = drained("gpu-02", "gpu-11")
    assert [node.name for node in inventory.select_working(fleet, ("gpu-*",))] == ["gpu-01"]
    assert len(inventory.select_working(fleet, sample=3)) == 2
    assert len(inventory.select(fleet)) == 4
    assert "drained, left out: nodes=gpu-02,gpu-11" in caplog.text


def test_a_selection_of_drained_nodes_alone_is_refused() -> None:
    with pytest.raises(BadSelection, match=r"'gpu-02': the inventory says that each of these nodes is drained"):
        inventory.select_working(drained("gpu-02"), ("gpu-02",))


def test_a_sample_of_nothing_is_refused() -> None:
    with pytest.raises(BadSelection, match="at least 1"):
        inventory.select(FLEET, sample=0)


GOOD = '[[nodes]]\nname = "a"\nqueue = "a"\nscratch = "s"\n'


@pytest.mark.parametrize(
    ("text", "where", "problem"),
    [
        ("[[nodes]]\nname = \n", "line 2", "invalid value"),
        (GOOD + '\n[[nodes]]\nname = "b"\nqueue = "b"\n', "line 6, field nodes[1].scratch", "is required"),
        (GOOD + 'colour = "red"\n', "line 5, field nodes[0].colour", "there is no such field"),
        (GOOD + "\n" + GOOD.replace('"a"', '"b"') + "free_floor_bytes = -1\n", "line 10, field nodes[1].free", "-1"),
        (GOOD.replace('name = "a"', 'name = "a; rm -rf /"'), "line 2, field nodes[0].name", "rm -rf"),
        (GOOD.replace('name = "a"', 'name = "../b"'), "line 2, field nodes[0].name", "../b"),
        (GOOD + GOOD, "line 1, field nodes", "node 'a' is listed 2 times"),
        ("nodes = []\n", "line 1, field nodes", "at least one node"),
        ("nodes = 3\n", "line 1, field nodes", "3"),
        (GOOD + "[limits]\nrack = 2\n", "line 5, field limits", "no node has the label 'rack'; known: none"),
        (GOOD + 'labels = { rack = "r1" }\n[limits]\nrack = 0\n', "line 7, field limits.rack", "greater than 0"),
        (GOOD + "[tenants.ml]\n", "line 5, field tenants.ml.node_minutes_per_day", "is required"),
        (GOOD + "[tenants.ml]\nnode_minutes_per_day = 0\n", "line 6, field tenants.ml.node_minutes", "greater than 0"),
        (GOOD + "[adhoc]\nlongest = 5\n", "line 6, field adhoc.longest", "there is no such field"),
        (GOOD + "[rounds]\nwithin_nights = 0\n", "line 6, field rounds.within_nights", "greater than 0"),
    ],
)
def test_a_malformed_inventory_is_refused_by_line_and_field(
    tmp_path: Path, text: str, where: str, problem: str
) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(text)
    with pytest.raises(BadFile) as refused:
        inventory.load(path)
    assert str(path) in str(refused.value)
    assert refused.value.where.startswith(where)
    assert problem in refused.value.problem


def test_a_missing_inventory_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=r"nowhere\.toml, line 1: cannot be read"):
        inventory.load(tmp_path / "nowhere.toml")


def test_an_inventory_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadFile, match="is not UTF-8"):
        inventory.load(path)


def test_a_node_that_is_called_as_the_store_is_in_tables_is_refused() -> None:
    text = '[[nodes]]\nname = "store"\nqueue = "store"\nscratch = "scratch"\n'
    with pytest.raises(BadFile, match="a node cannot be called 'store'"):
        documents.parse(text, Inventory, "fleet.toml")


@given(st.text(max_size=200))
def test_any_text_is_an_inventory_or_the_one_documented_error(text: str) -> None:
    try:
        inventory = documents.parse(text, Inventory, "fleet.toml")
    except BadFile:
        return
    assert inventory.nodes


def test_the_shipped_inventory_is_read() -> None:
    root = Path(__file__).parents[2]
    assert inventory.load(root / "infra/fleet.toml").names == ("localhost",)


def test_the_examples_in_the_shipped_inventory_are_what_they_say() -> None:
    text = (Path(__file__).parents[2] / "infra/fleet.toml").read_text()
    examples = re.sub(r"^# (?=\[|\w+ = )", "", text, flags=re.MULTILINE)
    labelled = examples.replace("labels = {", 'labels = { power_domain = "p1", rack = "r1",')
    fleet = documents.parse(labelled, Inventory, "fleet.toml")
    assert fleet.limits == {"power_domain": 4, "rack": 2}
    assert {name: tenant.node_minutes_per_day for name, tenant in fleet.tenants.items()} == {"ml": 600, "default": 120}
    assert (fleet.adhoc.longest_s, fleet.rounds.within_nights) == (1800, 7)


def test_a_fleet_that_says_nothing_of_sharing_has_no_limits() -> None:
    fleet = documents.parse(GOOD, Inventory, "fleet.toml")
    assert (fleet.limits, fleet.tenants, fleet.adhoc.longest_s, fleet.rounds.within_nights) == ({}, {}, None, 1)
