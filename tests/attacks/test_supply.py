"""What comes with the dependencies: pinned by hash, under known licences, and telling nobody anything."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.embedded.home import Home
from pipelines.settings import Settings
from tests import audit, licences

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
TELLING = {
    "amplitude-analytics",
    "analytics-python",
    "bugsnag",
    "datadog",
    "ddtrace",
    "google-analytics-data",
    "mixpanel",
    "newrelic",
    "posthog",
    "rollbar",
    "rudder-sdk-python",
    "scarf-sdk",
    "segment-analytics-python",
    "sentry-sdk",
    "snowplow-tracker",
}
WATCHED = """
import json, sys
asked = []
def watch(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        asked.append([event, repr(args[1:] if event in ("socket.connect", "socket.sendto") else args)])
sys.addaudithook(watch)
{body}
print(json.dumps(asked))
"""


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_dependency_is_pinned_to_a_version_and_its_hashes(lock: Path) -> None:
    text = lock.read_text()
    assert "--index-url" not in text
    assert "://" not in re.sub(r"#.*", "", text)
    pinned = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]
    assert len(pinned) > 10
    assert [each.split()[0] for each in pinned if "==" not in each.split()[0] or "--hash=sha256:" not in each] == []


def test_no_two_locks_have_another_version_of_a_package_and_the_tests_lock_has_them_all() -> None:
    everything = licences.locked("dev")
    for lock in LOCKS:
        assert licences.locked(lock.stem).items() <= everything.items()


@pytest.mark.integration
def test_the_bill_of_materials_is_valid_and_has_every_package_of_the_lock_with_its_hashes(tmp_path: Path) -> None:
    (line,) = re.findall(
        r"^\t(\S*uvx --from cyclonedx-bom.*) -o sbom\.json$", (ROOT / "Makefile").read_text(), re.MULTILINE
    )
    made = tmp_path / "sbom.json"  # the tool holds it against CycloneDX's schema before it writes it
    subprocess.run((*line.split(), "-o", str(made)), check=True, cwd=ROOT, timeout=300, capture_output=True)
    bill = json.loads(made.read_text())
    assert (bill["bomFormat"], bill["metadata"]["component"]["name"]) == ("CycloneDX", "fleetmark")
    assert {part["name"]: part["version"] for part in bill["components"]} == licences.locked("fleet")
    hashes = [each for part in bill["components"] for link in part["externalReferences"] for each in link["hashes"]]
    assert {each["alg"] for each in hashes} == {"SHA-256"}
    assert len(hashes) > len(bill["components"])


def test_an_audit_names_what_is_vulnerable_and_what_was_not_audited() -> None:
    said = [
        {"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2", "3"]}]},
        {"name": "b", "version": "1", "vulns": []},
        {"name": "c", "skip_reason": "nobody knows it"},
    ]
    assert audit.findings(said) == ["a 1: PYSEC-1, mended in 2, 3", "c: not audited: nobody knows it"]


def test_the_list_of_licences_is_that_of_the_locks() -> None:
    assert (ROOT / "docs/licences.md").read_text() == licences.page()


def test_no_dependency_that_is_shipped_binds_what_links_it() -> None:
    said = {name: licences.licence(name) or "" for lock in licences.LOCKS for name in licences.locked(lock)}
    strong = {
        name for name, text in said.items() if re.search(r"\bA?GPL|General Public", text) and "Lesser" not in text
    }
    assert {name for name in strong if "LGPL" not in said[name]} <= DUAL


DUAL = {"asyncssh", "text-unidecode"}
"""Under the GPL or, as one likes, another licence: asyncssh (EPL), text-unidecode (Artistic)."""


def test_no_lock_has_a_package_that_is_there_to_tell_somebody() -> None:
    assert {name for lock in LOCKS for name in licences.locked(lock.stem)} & TELLING == set()


def _asked(body: str, home: Path, **environ: str) -> list[list[str]]:
    """Which addresses and names a Python process asked for."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "FLEETMARK"))}
    done = subprocess.run(
        (sys.executable, "-c", WATCHED.replace("{body}", body)),
        check=False, capture_output=True, text=True, cwd=home,
        env={**clean, "HOME": str(home), "AIRFLOW_HOME": str(home), "PYTHONPATH": str(ROOT), **environ},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout.splitlines()[-1]))


def test_the_watch_sees_who_asks_for_an_address(tmp_path: Path) -> None:
    body = "import socket\ntry: socket.create_connection(('127.0.0.1', 9), 1)\nexcept OSError: pass"
    assert [event for event, _ in _asked(body, tmp_path)][-1] == "socket.connect"


def test_a_nights_validation_landing_and_query_ask_for_no_address(tmp_path: Path) -> None:
    body = """
from pathlib import Path
from pipelines import stages, storage
from pipelines.settings import Settings
from pipelines.tables import parse, validate
from pipelines.tables.query import open_reader
from tests import make
from tests.tables import landings, nights
store = storage.open_store(Settings(home=Path.cwd()))
landings.hand_in(store, landings.raws())
plan = stages.load_plan(store, make.RUN_ID)
validate.validate_batch(store, parse.prepare(store, plan, make.AT))
nights.put(store, nights.rows())
with open_reader(store) as reader:
    assert reader.query("FROM results").rows
"""
    assert _asked(body, tmp_path) == []


def test_airflow_as_configured_here_reports_to_nobody(tmp_path: Path) -> None:
    body = """
from airflow.configuration import conf
import airflow.plugins_manager, fleetmark_airflow.plugin
for section, option in (("metrics", "statsd_on"), ("metrics", "otel_on"), ("traces", "otel_on"),
                        ("sentry", "sentry_on"), ("usage_data_collection", "enabled")):
    assert not conf.getboolean(section, option, fallback=False), (section, option)
assert "sentry_sdk" not in sys.modules
"""
    config = {"AIRFLOW_CONFIG": str(ROOT / "infra/airflow/fleet.cfg"), "SCARF_ANALYTICS": ""}
    assert _asked(body, tmp_path) == []
    assert _asked(body, tmp_path, **config) == []
    embedded = Home(Settings(home=tmp_path))
    embedded.prepare()
    assert _asked(body, tmp_path, AIRFLOW_CONFIG=str(embedded.root / "airflow.cfg")) == []


def test_great_expectations_is_told_to_report_nothing_before_it_is_loaded(tmp_path: Path) -> None:
    body = """
import os
from pipelines.tables import validate
assert "great_expectations" not in sys.modules
context = validate._context()
assert os.environ["GX_ANALYTICS_ENABLED"] == "false"
assert not context.config.analytics_enabled
"""
    assert _asked(body, tmp_path) == []


def test_duckdb_fetches_no_extension(tmp_path: Path) -> None:
    body = """
from pathlib import Path
from pipelines import storage
from pipelines.settings import Settings
from pipelines.tables import engine
connection = engine.connect(storage.open_store(Settings(home=Path.cwd())))
names = ("autoinstall_known_extensions", "autoload_known_extensions", "enable_external_access")
for name in names:
    assert connection.execute(f"SELECT current_setting('{name}')").fetchall() == [(False,)], name
"""
    assert _asked(body, tmp_path) == []
