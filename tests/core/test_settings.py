"""Settings, keys and errors: the small things everything else leans on."""

import inspect
import pickle
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import errors, keys, settings
from pipelines.errors import BadKey, BadSettings, FleetmarkError


def test_settings_come_from_the_environment_and_paths_from_the_working_directory(tmp_path: Path) -> None:
    current = settings.load({"FLEETMARK_NODE": "gpu-01", "FLEETMARK_HOME": "state", "PATH": "/bin"}, cwd=tmp_path)
    assert current.node == "gpu-01"
    assert current.home == tmp_path / "state"
    assert current.store_url == f"file://{tmp_path}/state/store"


def test_the_cache_lies_below_home_unless_it_has_a_place_of_its_own(tmp_path: Path) -> None:
    assert settings.load({"FLEETMARK_HOME": "state"}, cwd=tmp_path).cache_root == tmp_path / "state/cache"
    own = settings.load({"FLEETMARK_CACHE": "nvme/cache", "FLEETMARK_CACHE_BYTES": "1000"}, cwd=tmp_path)
    assert (own.cache_root, own.cache_bytes) == (tmp_path / "nvme/cache", 1000)
    with pytest.raises(BadSettings, match="FLEETMARK_CACHE_BYTES"):
        settings.load({"FLEETMARK_CACHE_BYTES": "-1"})


def test_sources_are_read_from_the_stores_server_unless_they_have_one_of_their_own() -> None:
    store = {"FLEETMARK_S3_ENDPOINT": "http://store"}
    assert settings.load({}).source_endpoint is None
    assert settings.load(store).source_endpoint == "http://store"
    assert settings.load({**store, "FLEETMARK_SOURCE_S3_ENDPOINT": "http://other"}).source_endpoint == "http://other"


def test_a_misspelt_setting_is_refused_with_the_known_names() -> None:
    with pytest.raises(BadSettings, match=r"FLEETMARK_STOER: there is no such setting; known: .*FLEETMARK_STORE"):
        settings.load({"FLEETMARK_STOER": "s3://b"})


def test_a_setting_that_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(BadSettings, match="FLEETMARK_LEASE_WAIT_S"):
        settings.load({"FLEETMARK_LEASE_WAIT_S": "soon"})


@pytest.mark.parametrize("key", ["", "/a", "a//b", "a/../b", ".", "..", "a/.hidden", "a b", "a\nb", "a\\b", "a/"])
def test_a_key_that_could_leave_its_store_is_refused(key: str) -> None:
    with pytest.raises(BadKey):
        keys.checked(key)


@given(st.text(max_size=30))
def test_a_checked_key_stays_below_its_root(key: str) -> None:
    try:
        checked = keys.checked(key)
    except BadKey:
        return
    assert (Path("/root") / checked).resolve().is_relative_to("/root")


def test_a_run_id_sorts_by_time_and_is_the_same_for_the_same_origin() -> None:
    at = datetime(2026, 11, 21, 2, 0, tzinfo=UTC)
    assert keys.run_id(at, "scheduled__1") == keys.run_id(at, "scheduled__1")
    assert keys.run_id(at, "scheduled__1") != keys.run_id(at, "scheduled__2")
    assert keys.run_date(keys.run_id(at, "x")) == "2026-11-21"


def test_a_batch_names_its_run_and_which_of_its_sets_of_rows_it_is() -> None:
    batch = keys.batch_id("20261121T020000Z-1a2b3c", ["anything"], generation=7)
    assert (keys.run_of(batch), keys.generation_of(batch)) == ("20261121T020000Z-1a2b3c", 7)
    with pytest.raises(BadKey, match="not a batch id"):
        keys.generation_of("20261121T020000Z-1a2b3c")


def test_the_key_of_a_raw_output_says_whose_it_is() -> None:
    key = keys.raw_key("20261121T020000Z-1a2b3c", "gpu-01", "job-1", 2)
    assert keys.raw_parts(key) == ("20261121T020000Z-1a2b3c", "gpu-01", "job-1", 2)
    assert not keys.is_raw(key + ".bak")
    with pytest.raises(BadKey, match="not the key of a raw output"):
        keys.raw_parts("plans/x.json")


def test_a_content_id_depends_on_content_and_not_on_order() -> None:
    assert keys.content_id({"a": 1, "b": 2}) == keys.content_id({"b": 2, "a": 1})
    assert keys.content_id({"a": 1}) != keys.content_id({"a": 2})


ERRORS = [
    error
    for _, error in inspect.getmembers(errors, inspect.isclass)
    if issubclass(error, FleetmarkError) and error is not FleetmarkError
]
SAMPLES = {"str": "text", "int": 7, "float": 7.5, "tuple": ("a", "b")}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_an_error_is_one_sentence_with_its_fields_and_survives_a_process_boundary(error: type[FleetmarkError]) -> None:
    parameters = list(inspect.signature(error).parameters.values())
    given = {p.name: SAMPLES[getattr(p.annotation, "__name__", str(p.annotation)).split("[")[0]] for p in parameters}
    raised = error(**given)
    assert "\n" not in str(raised)
    assert str(pickle.loads(pickle.dumps(raised))) == str(raised)  # noqa: S301
