"""Arrivals: that a task of a node began there, written down before anything else, so that down is told from failed."""

import os
from datetime import UTC, datetime

from pydantic import AwareDatetime, PositiveInt

from pipelines import keys
from pipelines.records import Name, Record
from pipelines.settings import Settings
from pipelines.storage import Store


class Arrival(Record):
    """The first time that a task of a run began on a node."""

    node: Name
    hostname: str
    attempt: PositiveInt
    at: AwareDatetime


def record(settings: Settings, store: Store, run_id: str, node: str, attempt: int) -> None:
    """Write down that this machine, as that node, has begun with the run; the first of several stays.

    Raises:
        WrongNode: this machine is another node.
    """
    settings.require_node(node)
    arrival = Arrival(node=node, hostname=os.uname().nodename, attempt=attempt, at=datetime.now(UTC))
    store.create(keys.arrival_key(run_id, node), arrival.model_dump_json().encode())


def nodes(store: Store, run_id: str) -> frozenset[str]:
    """The nodes of which that was heard."""
    found = store.keys_under(keys.arrivals_prefix(run_id))
    return frozenset(key.rpartition("/")[2].removesuffix(".json") for key in found)
