"""The shell around `rows.py`: a run's raw outputs in, a batch of unjudged rows out. Raw output can be parsed again."""

import ast
import hashlib
import importlib.util
import logging
from collections.abc import Container, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path

from pydantic import AwareDatetime, PositiveInt, ValidationError

import pipelines
from pipelines import arrivals, benchmark, bulk, keys
from pipelines.arrivals import Failure
from pipelines.errors import KeyNotFound
from pipelines.isolation import Trial
from pipelines.records import Environment, Plan, Record
from pipelines.storage import Store, Stored
from pipelines.tables import files, rows
from pipelines.tables.rows import Attempt

log = logging.getLogger(__name__)

_AT_ONCE = 64  # raw outputs in memory: fio's are 0.1 MB each, a fleet's night has thousands ...
_AT_ONCE_BYTES = 2**28  # ... and that is all a node can put into one with 16 MiB of each stream of a tool
_MOST_BYTES = 2**29  # of one that is read at all
_PIECE_BYTES = 2**23
_CODE = Path(pipelines.__path__[0])
_SHARED_CODE = (
    "records.py",
    "histograms.py",
    "energy.py",
    "tracks.py",
    "mounts.py",
    "tables/rows.py",
    "tables/schema.py",
)


class Inputs(Record):
    """Everything a batch's rows are made from. The same inputs give the same rows."""

    plan: str  # sha256
    raw: Mapping[str, str]  # key of each raw output -> sha256
    reached: tuple[str, ...] = ()  # nodes on which a task was heard to begin, sorted
    failed: tuple[Failure, ...] = ()  # the last of each of their tasks, sorted
    parsers: Mapping[str, str]  # benchmark -> hash of the code that reads its output


class Batch(Record):
    """A run's n-th set of rows, at `batches/<run>/<n>.json`. The newest counts."""

    generation: PositiveInt
    made_at: AwareDatetime
    inputs: Inputs


def prepare(store: Store, plan: Plan, at: datetime) -> str:
    """Parse every raw output of the run and write the rows below `parsed/<batch>`, `runs` last. Returns the batch id.

    A retry with nothing changed gives the same batch and writes what is missing of it. A raw output that came since, or
    another parser, gives the run's next batch.

    Raises:
        Unknown: a benchmark that this installation does not have.
    """
    attempts = list(_attempts(store, plan.run_id))
    inputs = Inputs(
        plan=keys.sha256(plan.model_dump_json().encode()),
        raw={attempt.key: attempt.sha256 for attempt in attempts},
        reached=tuple(sorted(arrivals.nodes(store, plan.run_id))),
        failed=arrivals.failures(store, plan.run_id),
        parsers={name: parser_digest(name) for name in sorted({job.benchmark for job in plan.jobs})},
    )
    batch = _batch(store, plan.run_id, inputs, at)
    batch_id = keys.batch_id(plan.run_id, inputs.model_dump(mode="json"), batch.generation)
    seen = _environments(store, attempts)
    made = rows.rows_of(plan, attempts, seen, batch_id, batch.made_at, inputs.reached, inputs.failed)
    for table in ("environments", "histograms", "telemetry", "measurements", "runs"):
        files.create(store, keys.parsed_key(batch_id, table), getattr(made, table))
    return batch_id


def pair_trials(store: Store, plan: Plan) -> Iterator[Trial]:
    """The attempts at the plan's tests between two nodes, from their raw outputs."""
    compared = {job.job_id: benchmark.get(job.benchmark).compared.name for job in plan.jobs if job.peer}
    for attempt in sorted(_attempts(store, plan.run_id, compared), key=lambda each: each.number):
        parsed = attempt.parsed
        values = [each.value for each in parsed.measurements if each.metric == compared[attempt.job_id]]
        yield Trial(attempt.job_id, parsed.outcome, values, attempt.raw.facts if attempt.raw else {})


def parser_digest(name: str) -> str:
    """A hash of the source code that decides what rows a raw output of this benchmark becomes."""
    module = ".".join(benchmark.get(name).parse.__module__.split(".")[:3])
    spec = importlib.util.find_spec(module)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    own = [path for folder in folders for path in Path(folder).rglob("*.py")]
    if spec and spec.origin and not folders:
        own = [Path(spec.origin)]
    shared = [_CODE / path for path in _SHARED_CODE]
    digest = hashlib.sha256()
    for path in (*sorted(own), *sorted(_families(own)), *shared):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _families(own: Iterable[Path]) -> set[Path]:
    """The modules of `families` that these import, and those import in turn."""
    found: set[Path] = set()
    left = list(own)
    while left:
        for node in ast.walk(ast.parse(left.pop().read_bytes())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pipelines.families"):
                names = [node.module.rpartition(".")[2], *(each.name for each in node.names)]
                new = {_CODE / f"families/{name}.py" for name in names} - found
                left += (there := [path for path in new if path.exists()])
                found.update(there)
    return found


def _attempts(store: Store, run: str, of_jobs: Container[str] | None = None) -> Iterator[Attempt]:
    found = [each for each in store.objects_under(keys.raw_prefix(run)) if keys.is_raw(each.key)]
    if of_jobs is not None:
        found = [each for each in found if keys.raw_parts(each.key)[2] in of_jobs]
    for some in _together(found):
        if some[0].size_bytes > _MOST_BYTES:
            yield rows.unread(some[0].key, _hash_of(store, some[0]), store.url(some[0].key), some[0].size_bytes)
            continue
        wanted = [each.key for each in some]
        for key, data in zip(wanted, store.read_many(wanted), strict=True):
            yield rows.read(key, data, store.url(key))


def _together(found: list[Stored]) -> Iterator[list[Stored]]:
    """Which are read at once, in their order: as many as memory is meant for, or a single one."""
    some: list[Stored] = []
    for each in found:
        if some and (len(some) == _AT_ONCE or sum(one.size_bytes for one in (*some, each)) > _AT_ONCE_BYTES):
            yield some
            some = []
        some.append(each)
    if some:
        yield some


def _hash_of(store: Store, large: Stored) -> str:
    objects, digest = bulk.of(store), hashlib.sha256()
    for start in range(0, large.size_bytes, _PIECE_BYTES):
        digest.update(objects.range(large.key, start, _PIECE_BYTES) or b"")
    return digest.hexdigest()


def _batch(store: Store, run: str, inputs: Inputs, at: datetime) -> Batch:
    """The run's newest batch if it has the same inputs, else the next one. Racing callers get the same one."""
    while True:
        found = store.keys_under(keys.batches_prefix(run))
        if found:
            newest = Batch.model_validate_json(store.read(found[-1]))
            if newest.inputs == inputs:
                return newest
        made = Batch(generation=len(found) + 1, made_at=at, inputs=inputs)
        store.create(keys.batch_key(run, made.generation), made.model_dump_json().encode())


def _environments(store: Store, attempts: list[Attempt]) -> list[Environment]:
    """The configurations the run saw. One that is not there, or is damaged, is told of and left out."""
    found = []
    for environment_id in sorted({attempt.raw.environment_id for attempt in attempts if attempt.raw}):
        try:
            data = store.read(keys.environment_key(environment_id))
            found.append(Environment.model_validate_json(data))
        except (KeyNotFound, ValidationError) as e:
            log.warning("environment left out: environment_id=%s problem=%s", environment_id, e)
    return found
