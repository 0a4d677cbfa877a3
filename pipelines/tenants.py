"""Tenants: what an ad hoc run may take of the fleet's time, and whose turn it is. Pure, but for `spent`."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta

from pydantic import NonNegativeFloat

from pipelines.errors import QuotaExceeded, RunTooLong, Unknown
from pipelines.inventory import Inventory
from pipelines.records import Plan, Record
from pipelines.storage import Store

DEFAULT = "default"
"""Who a run is charged to that names nobody. Without a table in the inventory it has no quota."""

SCHEDULED = "schedule"
"""The trigger of nightly runs: they have no quota, and are nobody's use of it."""

NIGHTLY = 2**31 - 1
"""The priority of nightly runs, the greatest that Airflow's column holds. Every ad hoc run has a smaller one."""

DAY = timedelta(days=1)
_EPOCH = datetime(2025, 1, 1, tzinfo=UTC)  # priorities are seconds since: they last until 2093
_MINUTE_S = 60


class Spent(Record):
    """A tenant's node-seconds of the last 24 hours, ad hoc runs only."""

    used_s: NonNegativeFloat = 0.0  # of runs that have landed
    planned_s: NonNegativeFloat = 0.0  # of those that have not


def check(fleet: Inventory, made: Plan, spent: Spent) -> int:
    """Whether the run may be made, and its priority: Airflow's `priority_weight` with the weight rule `absolute`.

    Seconds are those that the plan expects; a job that hangs holds its node for its time limit.

    Raises:
        Unknown: the inventory lists tenants, and this is none of them.
        RunTooLong: an ad hoc run would hold a node for longer than `adhoc.longest_s`.
        QuotaExceeded: with what the tenant has used and planned it would take more than its node-minutes of a day.
    """
    if made.trigger == SCHEDULED:
        return NIGHTLY
    tenant = made.tenant
    if fleet.tenants and tenant not in fleet.tenants and tenant != DEFAULT:
        raise Unknown("tenant", tenant, (*fleet.tenants, DEFAULT))
    held = made.seconds_by_node()
    if longest_s := fleet.adhoc.longest_s:
        for node, seconds in held.items():
            if seconds > longest_s:
                raise RunTooLong(node, seconds, longest_s)
    if quota := fleet.tenants.get(tenant):
        minutes = [each / _MINUTE_S for each in (sum(held.values()), spent.used_s, spent.planned_s)]
        if sum(minutes) > quota.node_minutes_per_day:
            needed, used, planned = minutes
            raise QuotaExceeded(tenant, needed, quota.node_minutes_per_day, used, planned)
    return priority(made.created_at, share(fleet, tenant, spent))


def share(fleet: Inventory, tenant: str, spent: Spent) -> float:
    """How much of its day a tenant has had, 0 to 1. Without a quota its day is that of every node of the fleet."""
    quota = fleet.tenants.get(tenant)
    day_s = quota.node_minutes_per_day * _MINUTE_S if quota else len(fleet.nodes) * DAY.total_seconds()
    return min(1.0, (spent.used_s + spent.planned_s) / day_s)


def priority(created_at: datetime, had: float) -> int:
    """The priority of an ad hoc run whose tenant has had this share of its day when the run is made.

    A run's turn is the moment at which its tenant would have been given what it has had, were it given its day evenly
    from now on (the virtual start of fair queueing, Goyal, Vin, Cheng: Start-time Fair Queueing, SIGCOMM 1996). Of runs
    made at the same time, that of the tenant with the smaller share goes first. No run waits for ever: since a share is
    worth a day at most, only runs made within a day after it can go before it, and quotas bound how much those take.
    """
    turn = created_at + had * DAY
    return NIGHTLY - 1 - max(0, int((turn - _EPOCH).total_seconds()))


def spent(store: Store, at: datetime, asking: str = "") -> Mapping[str, Spent]:
    """What each tenant had of the fleet in the 24 hours before `at`; one that had nothing may not be there.

    A run counts as planned from its plan to its rows in the table `usage`; one that never lands, for a day. The run
    `asking` does not count: its plan may be made again.

    Raises:
        StoreUnreachable, StoreRefused: the tables or the plans cannot be read.
    """
    from pipelines.tables import usage

    landed = usage.recent(store, at - DAY)
    waiting = _plans(store, at, without=frozenset((asking, *(each.run_id for each in landed))))
    used: dict[str, float] = defaultdict(float)
    planned: dict[str, float] = defaultdict(float)
    for each in landed:
        if each.trigger != SCHEDULED and each.run_id != asking:
            used[each.tenant] += each.node_seconds
    for made in waiting:
        if made.trigger != SCHEDULED:
            planned[made.tenant] += sum(made.seconds_by_node().values())
    return {tenant: Spent(used_s=used[tenant], planned_s=planned[tenant]) for tenant in used.keys() | planned.keys()}


def _plans(store: Store, at: datetime, without: frozenset[str]) -> Iterator[Plan]:
    """The plans of the 24 hours before `at`, but for these runs'."""
    from pipelines import stages

    first = f"{at.astimezone(UTC) - DAY:%Y%m%dT%H%M%SZ}"  # what a run's id begins with
    for key in store.keys_under("plans"):
        run = key.removeprefix("plans/").removesuffix(".json")
        if run >= first and run not in without:
            yield stages.load_plan(store, run)
