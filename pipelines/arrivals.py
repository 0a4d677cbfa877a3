"""Arrivals: that a task of a node began there, and why one failed, so that down is told from failed."""

import logging
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Annotated

from pydantic import AwareDatetime, Field, PositiveInt, ValidationError

from pipelines import keys
from pipelines.errors import FleetmarkError, StoreRefused, StoreUnreachable, Unknown
from pipelines.records import Name, Record
from pipelines.settings import Settings
from pipelines.storage import Store

log = logging.getLogger(__name__)

_MOST_LETTERS = 500
_MOST_BYTES = 2**14  # of a failure that is read: nodes write them


class Arrival(Record):
    """The first time that a task of a run began on a node. Who only heard of it knows neither host name nor attempt."""

    node: Name
    hostname: str | None
    attempt: PositiveInt | None
    at: AwareDatetime


class Failure(Record):
    """Why an attempt at a task of a node came to nothing, in a sentence."""

    node: Name
    task: Name
    attempt: PositiveInt
    problem: Annotated[str, Field(max_length=_MOST_LETTERS)]


def record(settings: Settings, store: Store, run_id: str, node: str, attempt: int) -> None:
    """Write down that this machine, as that node, has begun with the run; the first of several stays.

    Raises:
        WrongNode: this machine is another node.
    """
    settings.require_node(node)
    _arrive(store, run_id, Arrival(node=node, hostname=os.uname().nodename, attempt=attempt, at=datetime.now(UTC)))


def heard(store: Store, run_id: str, of: Collection[str], at: datetime) -> None:
    """Write down that a task began on each of these nodes, which left no word of it: somebody else knows."""
    for node in sorted({*of} - nodes(store, run_id)):
        _arrive(store, run_id, Arrival(node=node, hostname=None, attempt=None, at=at))


def _arrive(store: Store, run_id: str, arrival: Arrival) -> None:
    store.create(keys.arrival_key(run_id, arrival.node), arrival.model_dump_json().encode())


def nodes(store: Store, run_id: str) -> frozenset[str]:
    """The nodes on which a task of the run began."""
    prefix = f"{keys.arrivals_prefix(run_id)}/"
    names = (key.removeprefix(prefix).removesuffix(".json") for key in store.keys_under(keys.arrivals_prefix(run_id)))
    return frozenset(name for name in names if "/" not in name)


@contextmanager
def telling(settings: Settings, store: Store, run_id: str, node: str, task: str, attempt: int) -> Iterator[None]:
    """Where the block raises, that is written down as the attempt's failure, as far as the store takes it.

    Raises:
        WrongNode: this machine is another node.
    """
    settings.require_node(node)
    try:
        yield
    except (Unknown, StoreUnreachable):  # nobody asks for a run that there is not; the store would not hear of it
        raise
    except Exception as e:
        with suppress(StoreUnreachable, StoreRefused):
            fail(store, run_id, node, task, attempt, e)
        raise


def fail(store: Store, run_id: str, node: str, task: str, attempt: int, error: Exception) -> None:
    """Write down why an attempt at a task of the node came to nothing; what was said first of it stays."""
    said = str(error) if isinstance(error, FleetmarkError) else f"{type(error).__name__}: {error}"
    problem = " ".join(said.split())[:_MOST_LETTERS]
    failure = Failure(node=node, task=task, attempt=attempt, problem=problem)
    store.create(keys.failure_key(run_id, node, task, attempt), failure.model_dump_json().encode())


def failures(store: Store, run_id: str) -> tuple[Failure, ...]:
    """The last failure of each task of each node, sorted. What is no such record is told of and left out."""
    prefix = f"{keys.arrivals_prefix(run_id)}/"
    there = store.objects_under(keys.arrivals_prefix(run_id))
    wanted = [each.key for each in there if "/" in each.key.removeprefix(prefix) and each.size_bytes <= _MOST_BYTES]
    last: dict[tuple[str, str], Failure] = {}
    for key, data in zip(wanted, store.read_many(wanted), strict=True):
        try:
            found = Failure.model_validate_json(data)
        except ValidationError as e:
            log.warning("failure left out: key=%s problem=%s", key, e.errors()[0]["msg"])
            continue
        named = (found.node, found.task)
        is_its_own = key == keys.failure_key(run_id, *named, found.attempt)
        if is_its_own and (named not in last or last[named].attempt < found.attempt):
            last[named] = found
    return tuple(last[named] for named in sorted(last))
