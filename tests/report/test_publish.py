"""A run from its raw outputs to its page, through every stage and the real tables; and the pages in a browser."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from playwright.sync_api import Page, Request, sync_playwright

from pipelines import keys, stages
from pipelines.errors import Unknown
from pipelines.records import Plan, RawOutput
from pipelines.storage import Store
from pipelines.tables import query
from tests import make
from tests.tables.batches import BATCH, ENVIRONMENT, batch, killed, raws

PROFILES = ("rand_read", "checkpoint")
AT = make.AT + timedelta(minutes=5)


def measured(store: Store, *outputs: RawOutput) -> Plan:
    """The plan and the raw outputs, as the nodes leave them."""
    plan = stages.publish_plan(store, make.plan(*(raw.job for raw in outputs)))
    store.create(keys.environment_key(ENVIRONMENT.environment_id), ENVIRONMENT.model_dump_json().encode())
    for raw in outputs:
        put(store, raw)
    return plan


def put(store: Store, raw: RawOutput) -> None:
    key = keys.raw_key(make.RUN_ID, raw.job.node, raw.job.job_id, raw.attempt)
    store.create(key, raw.model_dump_json().encode())


def land(store: Store) -> None:
    made = stages.parse(store, make.RUN_ID, AT)
    stages.validate(store, made)
    stages.land(store, made)


def test_a_run_is_judged_once_however_often_it_is_asked(store: Store) -> None:
    measured(store, *raws(PROFILES, nodes=("gpu-01", "gpu-02")))
    land(store)
    for hour in range(3):
        stages.judge(store, make.RUN_ID, AT + timedelta(hours=hour))
    with query.open_reader(store) as reader:
        rows = reader.query("SELECT node, verdict, month FROM verdicts ORDER BY node").rows
    assert rows == (("gpu-01", "fail", "2026-11"), ("gpu-02", "fail", "2026-11"))


def test_a_run_that_is_parsed_again_is_judged_by_its_new_rows(store: Store) -> None:
    first = [killed(raw) for raw in raws(("checkpoint",), repeats=1)]
    measured(store, *first)
    land(store)
    stages.judge(store, make.RUN_ID, AT)
    put(store, raws(("checkpoint",), repeats=1)[0].model_copy(update={"attempt": 2}))
    land(store)
    stages.judge(store, make.RUN_ID, AT)
    with query.open_reader(store) as reader:
        rows = reader.query("SELECT verdict, observed IS NOT NULL FROM verdicts").rows
    assert rows == (("fail", True),)
    page = store.read(stages.report(store, make.RUN_ID)).decode()
    assert "1 floor not reached" in page


def test_the_page_of_a_run_is_published_from_the_tables(store: Store) -> None:
    outputs = raws(PROFILES)
    measured(store, *outputs)
    land(store)
    stages.judge(store, make.RUN_ID, AT)
    key = stages.report(store, make.RUN_ID)
    page = store.read(key).decode()
    assert key == f"reports/{make.RUN_ID}/index.html"
    assert f"All {len(outputs)} jobs measured" not in page
    assert "1 floor not reached" in page
    assert "write_bandwidth" in page
    assert stages.report(store, make.RUN_ID) == key


def test_a_run_that_has_not_landed_has_no_page_and_no_verdicts(store: Store) -> None:
    measured(store, *raws(PROFILES))
    with pytest.raises(Unknown, match="unknown landed run"):
        stages.report(store, make.RUN_ID)
    with pytest.raises(Unknown, match="unknown landed run"):
        stages.judge(store, make.RUN_ID, AT)


@pytest.fixture(scope="module")
def browser_page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield browser.new_page()
        browser.close()


@pytest.mark.integration
@pytest.mark.parametrize("width", [390, 1200])
def test_the_pages_ask_no_host_for_anything_and_fit_the_screen(store: Store, browser_page: Page, width: int) -> None:
    batch(PROFILES, note="<script>document.title = 'taken over'</script>").put(store)
    stages.validate(store, BATCH)
    stages.land(store, BATCH)
    stages.judge(store, make.RUN_ID, AT)
    path = Path(store.path(stages.report(store, make.RUN_ID)))
    asked: list[str] = []

    def note(request: Request) -> None:
        asked.append(request.url)

    browser_page.on("request", note)
    browser_page.set_viewport_size({"width": width, "height": 900})
    for name, shown in (("index.html", "1 floor not reached"), ("validation.html", "Every expectation holds")):
        asked.clear()
        browser_page.goto(path.with_name(name).as_uri())
        assert browser_page.locator("h1").inner_text() == shown
        assert browser_page.evaluate("document.documentElement.scrollWidth") <= width
        assert browser_page.title() != "taken over"
        assert [url for url in asked if not url.startswith("data:")] == [path.with_name(name).as_uri()]
    browser_page.remove_listener("request", note)
