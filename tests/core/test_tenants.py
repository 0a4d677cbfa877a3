"""Quotas of tenants, the bound on ad hoc runs, and the order in which runs are taken."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import stages, tenants
from pipelines.errors import QuotaExceeded, RunTooLong, Unknown
from pipelines.inventory import AdHoc, Inventory, Tenant
from pipelines.records import Plan
from pipelines.storage import Store
from pipelines.tables import usage
from pipelines.tenants import DAY, NIGHTLY, Spent
from tests import make
from tests.tables import landings

FLEET = Inventory(
    nodes=(make.node("gpu-01"), make.node("gpu-02")),
    tenants={"ml": Tenant(node_minutes_per_day=60), "hpc": Tenant(node_minutes_per_day=600)},
)
HELD = FLEET.model_copy(update={"adhoc": AdHoc(longest_s=600)})

shares = st.floats(0, 1)
instants = st.datetimes(datetime(2025, 1, 1), datetime(2080, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


def run(minutes: float = 10.0, nodes: int = 1, **fields: Any) -> Plan:
    """A plan that holds each of its nodes for so long, in two jobs."""
    jobs = [
        make.job(f"job-{node}-{half}", node=f"gpu-0{node}", seconds=minutes * 30)
        for node in range(1, nodes + 1)
        for half in (1, 2)
    ]
    return make.plan(*jobs, **fields)


def spent(used: float = 0.0, planned: float = 0.0) -> Spent:
    """In minutes."""
    return Spent(used_s=used * 60, planned_s=planned * 60)


# --- quotas -------------------------------------------------------------------------------------------------


def test_a_run_that_takes_its_tenant_above_the_quota_is_refused_with_the_numbers() -> None:
    with pytest.raises(QuotaExceeded) as refused:
        tenants.check(FLEET, run(10, nodes=2, tenant="ml"), spent(used=30, planned=15))
    assert str(refused.value) == (
        "tenant ml: this run needs 20.0 node-minutes and 15.0 are left: of 60.0 a day 30.0 were used in the last 24 "
        "hours and 15.0 are planned; take fewer nodes, cases or repeats, or wait"
    )


def test_a_run_that_uses_the_last_of_the_quota_is_made() -> None:
    assert tenants.check(FLEET, run(10, nodes=2, tenant="ml"), spent(used=30, planned=10)) < NIGHTLY


@given(st.floats(0, 200), st.floats(0, 200), st.floats(0.1, 200))
def test_a_run_is_made_exactly_when_it_fits_the_quota(used: float, planned: float, minutes: float) -> None:
    total = used + planned + minutes
    if abs(total - 60) < 1e-6:
        return
    if total < 60:
        tenants.check(FLEET, run(minutes, tenant="ml"), spent(used, planned))
    else:
        with pytest.raises(QuotaExceeded):
            tenants.check(FLEET, run(minutes, tenant="ml"), spent(used, planned))


def test_whoever_has_no_quota_may_take_what_he_likes() -> None:
    assert tenants.check(FLEET, run(1e6, tenant=tenants.DEFAULT), spent(used=1e6)) < NIGHTLY
    assert tenants.check(Inventory(nodes=FLEET.nodes), run(1e6, tenant="anybody"), spent(used=1e6)) < NIGHTLY


def test_the_default_tenant_has_the_quota_that_is_written_for_it() -> None:
    fleet = FLEET.model_copy(update={"tenants": {tenants.DEFAULT: Tenant(node_minutes_per_day=5)}})
    with pytest.raises(QuotaExceeded, match=r"tenant default: this run needs 10\.0"):
        tenants.check(fleet, run(10, tenant=tenants.DEFAULT), spent())


def test_a_tenant_that_the_inventory_does_not_list_is_refused_with_those_it_does() -> None:
    with pytest.raises(Unknown, match="unknown tenant 'm1'; known: ml, hpc, default"):
        tenants.check(FLEET, run(tenant="m1"), spent())


def test_the_nightly_run_has_no_quota_and_no_bound() -> None:
    assert tenants.check(HELD, run(1e6, trigger="schedule", tenant="ml"), spent(used=1e6)) == NIGHTLY


def test_an_ad_hoc_run_that_would_hold_a_node_for_too_long_is_refused() -> None:
    assert tenants.check(HELD, run(10, nodes=2, tenant="hpc"), spent()) < NIGHTLY
    with pytest.raises(RunTooLong) as refused:
        tenants.check(HELD, run(10.5, tenant="hpc"), spent())
    assert str(refused.value) == (
        "node gpu-01: this run would hold it for 630 s, an ad hoc run may for 600 s (longest_s of [adhoc] in the "
        "inventory); take fewer cases or repeats"
    )


# --- whose turn it is ---------------------------------------------------------------------------------------


@given(instants, shares)
def test_the_nightly_run_goes_before_every_ad_hoc_run(at: datetime, share: float) -> None:
    assert 0 < tenants.priority(at, share) < NIGHTLY == 2**31 - 1  # what Airflow's column holds


@given(instants, shares, shares)
def test_of_two_runs_made_at_once_that_of_the_smaller_share_goes_first(at: datetime, one: float, two: float) -> None:
    first, second = tenants.priority(at, min(one, two)), tenants.priority(at, max(one, two))
    assert first >= second
    if abs(one - two) > 2 / DAY.total_seconds():
        assert first > second


@given(instants, shares, st.floats(0, 1000))
def test_of_two_runs_of_one_share_the_earlier_goes_first(at: datetime, share: float, later_s: float) -> None:
    assert tenants.priority(at, share) >= tenants.priority(at + timedelta(seconds=later_s), share)


@given(instants, shares, shares, st.floats(0, 1e6))
def test_no_run_made_a_day_later_goes_before_whatever_the_shares_are(
    at: datetime, one: float, two: float, later_s: float
) -> None:
    assert tenants.priority(at, one) >= tenants.priority(at + DAY + timedelta(seconds=later_s), two)


@given(st.floats(0, 1e7), st.floats(0, 1e7), st.sampled_from(["ml", "hpc", tenants.DEFAULT]))
def test_a_share_grows_with_what_was_used_and_is_never_more_than_a_day(used: float, more: float, tenant: str) -> None:
    before, after = (tenants.share(FLEET, tenant, Spent(used_s=each)) for each in (used, used + more))
    assert 0 <= before <= after <= 1


def test_the_tenant_with_the_smaller_share_goes_first_though_it_used_more() -> None:
    ml = tenants.check(FLEET, run(tenant="ml"), spent(used=30))  # half of 60
    hpc = tenants.check(FLEET, run(tenant="hpc"), spent(used=60))  # a tenth of 600
    assert ml < hpc


# --- what was spent -----------------------------------------------------------------------------------------


def test_a_run_counts_as_planned_until_it_has_landed_and_as_used_from_then_on(store: Store) -> None:
    given = landings.raws()
    landings.hand_in(store, given)
    soon = make.AT + timedelta(hours=1)
    assert tenants.spent(store, soon) == {tenants.DEFAULT: Spent(planned_s=sum(raw.job.seconds for raw in given))}
    usage.land_batch(store, landings.ready(store))
    assert tenants.spent(store, soon) == {tenants.DEFAULT: Spent(used_s=sum(raw.duration_s for raw in given))}


def test_what_was_used_or_planned_a_day_ago_counts_no_more(store: Store) -> None:
    landings.hand_in(store, landings.raws())
    assert tenants.spent(store, make.AT + timedelta(hours=23))[tenants.DEFAULT].planned_s > 0
    assert tenants.spent(store, make.AT + timedelta(hours=25)) == {}
    usage.land_batch(store, landings.ready(store))
    assert tenants.spent(store, make.AT + timedelta(hours=23))[tenants.DEFAULT].used_s > 0
    assert tenants.spent(store, make.AT + timedelta(hours=25)) == {tenants.DEFAULT: Spent()}


def test_a_run_whose_plan_is_made_again_does_not_count_against_itself(store: Store) -> None:
    landings.hand_in(store, landings.raws())
    soon = make.AT + timedelta(hours=1)
    assert tenants.spent(store, soon, asking=make.RUN_ID) == {}
    usage.land_batch(store, landings.ready(store))
    assert tenants.spent(store, soon, asking=make.RUN_ID) == {}


def test_the_nightly_run_is_nobodys_use_of_a_quota(store: Store) -> None:
    stages.publish_plan(store, run(10, trigger="schedule"))
    assert tenants.spent(store, make.AT + timedelta(hours=1)) == {}
