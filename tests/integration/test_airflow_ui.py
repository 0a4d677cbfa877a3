"""The ad hoc form as a person meets it: logged in, filled in, sent, in a real browser."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from playwright.sync_api import Locator, Page, Request, expect, sync_playwright

from tests.integration.conftest import Deployed

pytestmark = pytest.mark.integration
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture
def page(deployed: Deployed) -> Iterator[Page]:
    """The page of fleet_benchmark, logged in."""
    with sync_playwright() as playwright, ExitStack() as stack:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        stack.callback(browser.close)
        page = browser.new_page(viewport={"width": 1300, "height": 1500})
        page.set_default_timeout(60_000)
        page.goto(deployed.url)
        page.fill("input[name=username]", "admin")
        page.fill("input[name=password]", deployed.home.secrets().password)
        page.click("button[type=submit]")
        page.get_by_test_id("nav-home-link").wait_for()
        page.goto(f"{deployed.url}/dags/fleet_benchmark")
        yield page


def test_the_form_can_be_filled_in_and_sent_as_it_comes_and_starts_what_it_says(deployed: Deployed, page: Page) -> None:
    page.get_by_role("button", name="Trigger").first.click()
    form = page.get_by_role("dialog")
    expect(form.get_by_text("Known: localhost.")).to_be_visible()
    expect(form.get_by_role("combobox", name="Suite")).to_be_visible()
    expect(form.get_by_role("combobox", name="Cohort")).to_be_visible()
    expect(form.get_by_role("spinbutton", name="Sample")).to_be_visible()
    field(form, "Nodes").get_by_role("textbox").fill("localhost")
    field(form, "Note").get_by_role("textbox").fill("by hand")
    form.get_by_role("checkbox", name="Dry run").press("Space")
    before = set(runs(deployed))
    form.get_by_role("button", name="Trigger").click()
    (started,) = deployed.wait_for(lambda: set(runs(deployed)) - before or None)
    conf = runs(deployed)[started]
    assert (conf["suite"], conf["nodes"], conf["note"], conf["dry_run"]) == ("nightly", ["localhost"], "by hand", True)
    deployed.wait_for(lambda: state(deployed, started) == "success" or None)


def field(form: Locator, title: str) -> Locator:
    return form.get_by_role("group").filter(has=form.page.get_by_text(title)).first


def runs(deployed: Deployed) -> dict[str, dict[str, object]]:
    """The form's values of every run, by Airflow's run id."""
    listed = deployed.airflow.get("/api/v2/dags/fleet_benchmark/dagRuns?limit=100")["dag_runs"]
    return {run["dag_run_id"]: run["conf"] for run in listed}


def state(deployed: Deployed, run_id: str) -> str:
    return str(deployed.airflow.get(f"/api/v2/dags/fleet_benchmark/dagRuns/{run_id}")["state"])


def test_the_runbook_is_shown_beside_the_dag(page: Page) -> None:
    page.get_by_role("button", name="Dag Docs").click()
    expect(page.get_by_role("dialog").get_by_text("Is it safe to run again?")).to_be_visible()


def test_no_page_of_airflow_has_the_browser_ask_another_host(deployed: Deployed, page: Page) -> None:
    asked: list[str] = []

    def note(request: Request) -> None:
        asked.append(request.url)

    page.on("request", note)
    for path in ("", "dags", "dags/fleet_benchmark", "dags/fleet_benchmark/runs", "dag_runs", "pools", "connections"):
        page.goto(f"{deployed.url}/{path}", wait_until="networkidle")
    page.goto(f"{deployed.url}/dags/fleet_benchmark/code", wait_until="networkidle")
    expect(page.locator(".monaco-editor").first).to_be_visible()  # its loader names a host by default
    own = (f"{deployed.url}/", "data:", "blob:")
    assert [url for url in asked if not url.startswith(own)] == []
    assert len(asked) > 50  # files of the pages, and the API
