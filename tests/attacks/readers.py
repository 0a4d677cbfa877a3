"""Every reader of text or bytes that somebody else wrote: bytes in, a value or its one documented error out.

`fuzz.py` runs them for hours, `test_fuzz.py` for seconds.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import zstandard
from pydantic import ValidationError

from pipelines import approvals, arrivals, benchmark, busy, documents, gpus, guard, keys, settings, tools
from pipelines.commands import node
from pipelines.datasets import manifest, names
from pipelines.datasets.cache import Note, Pin
from pipelines.errors import BadFile, BadKey, BadReference, BadSettings, CorruptObject, FleetmarkError, UnknownOutput
from pipelines.families import stream_results
from pipelines.inventory import Inventory, select
from pipelines.records import Environment, Plan
from pipelines.suites import SuiteFile
from pipelines.tables import rows
from tests import make

ROOT = Path(__file__).parents[2]
_LONGEST_VARIABLE = 2**17  # MAX_ARG_STRLEN, execve(2): no process is given more
RAW_KEY = keys.raw_key(make.RUN_ID, "gpu-01", "job-1", 1)


@dataclass(frozen=True)
class Reader:
    """`seeds` are inputs that it takes, from which others are made."""

    name: str
    read: Callable[[bytes], object]
    refusal: tuple[type[Exception], ...]
    seeds: tuple[bytes, ...]

    def tried(self, data: bytes) -> bool:
        """Whether it takes these bytes. Raises: whatever it raises beside its documented error."""
        try:
            self.read(data)
        except self.refusal as e:
            assert len(str(e)) < 20_000 + 8 * len(data)  # noqa: PT017 - it may name the input, and not grow with its square
            return False
        return True


TELEMETRY = {
    "series": [
        {
            "metric": metric,
            "unit": unit,
            "source": "nvml",
            "labels": {"device": "gpu0"},
            "count": 2,
            "minimum": 1.0,
            "mean": 2.0,
            "maximum": 3.0,
            "seconds": (0.0, 1.0),
            "samples": (1.0, 3.0),
        }
        for metric, unit in (("power", "W"), ("energy", "J"), ("throttled", "ratio"))
    ]
}


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def _parser(name: str, stream: str) -> Reader:
    descriptor = benchmark.get(name)
    params = descriptor.checked_params({}).model_dump(mode="json", exclude_none=True)
    job = make.job(benchmark=name, params=params)

    def parse(data: bytes) -> object:
        return descriptor.parse(make.raw(job, tool=descriptor.tool, **{stream: _text(data)}))

    samples = sorted((ROOT / "tests/samples" / name).rglob("*"), key=lambda path: path.stat().st_size)
    seeds = [path.read_bytes() for path in samples if path.is_file()][:8]
    return Reader(f"{name} {stream}", parse, (UnknownOutput,), tuple(seed for seed in seeds if len(seed) < 2**18))


def _index(data: bytes) -> object:
    """As if somebody had published it: the hash is right."""
    return manifest.read_index(zstandard.compress(data), keys.sha256(data), "file:///i")


def _settings(data: bytes) -> object:
    given = (line[:_LONGEST_VARIABLE].partition("=") for line in _text(data).replace("\0", "").splitlines())
    return settings.load({f"FLEETMARK_{name}": value for name, _, value in given}, Path("/"))


def _selection(data: bytes) -> object:
    fleet = documents.load(ROOT / "infra/fleet.toml", Inventory)
    return select(fleet, tuple(_text(data).splitlines()))


def _environment_file(data: bytes) -> object:
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        return node.variables(Path(file.name))


def _versions(data: bytes) -> object:
    return [tools.judge(each, _text(data)) for each in benchmark.discover().values()]


def all_readers() -> Iterator[Reader]:
    for name in benchmark.discover():
        for stream in ("output", "stdout", "stderr"):
            yield _parser(name, stream)
    raw, plan = make.raw(telemetry=TELEMETRY).model_dump_json().encode(), make.plan().model_dump_json().encode()
    yield Reader("raw output", lambda data: rows.read(RAW_KEY, data, "file:///r"), (), (raw,))
    yield Reader("plan", Plan.model_validate_json, (ValidationError,), (plan,))
    approval = approvals.decide(make.plan(), "0" * 64, approvals.Answer(granted=True, by=("b",), at=make.AT))
    yield Reader(
        "approval", approvals.Approval.model_validate_json, (ValidationError,), (approval.model_dump_json().encode(),)
    )
    failure = arrivals.Failure(node="gpu-01", task="measure", attempt=1, problem="-").model_dump_json().encode()
    yield Reader("failure", arrivals.Failure.model_validate_json, (ValidationError,), (failure,))
    environment = Environment(environment_id="e", facts={"a": 1, "b": ({"c": None},)}).model_dump_json().encode()
    yield Reader("environment", Environment.model_validate_json, (ValidationError,), (environment,))
    yield Reader(
        "manifest", lambda data: manifest.read_manifest(data, "file:///m"), (CorruptObject,), (b'{"body": {}}',)
    )
    columns = b'{"paths": ["a"], "at": [0], "offsets": [0], "lengths": [1], "xxh3": [null]}'
    yield Reader("index", _index, (CorruptObject,), (columns,))
    packed = zstandard.compress(columns)
    yield Reader("packed index", lambda data: manifest.read_index(data, "0" * 64, "u"), (CorruptObject,), (packed,))
    yield Reader("note of the cache", Note.model_validate_json, (ValidationError,), (b'{"dataset": "d", "shard": {}}',))
    yield Reader(
        "pin of the cache", Pin.model_validate_json, (ValidationError,), (b'{"reference": "d", "shards": []}',)
    )
    for name, record, folder in (("inventory", Inventory, "infra"), ("suite", SuiteFile, "infra/suites")):
        seeds = tuple(path.read_bytes() for path in (ROOT / folder).glob("*.toml"))
        yield Reader(
            name, lambda data, record=record: documents.parse(_text(data), record, "f.toml"), (BadFile,), seeds
        )
    yield Reader("settings", _settings, (BadSettings,), (b"HOME=~/x\nCACHE_BYTES=1\nBUSY=command a 'b c'\n",))
    streams = tuple(path.read_bytes() for path in (ROOT / "tests/samples/memory_bandwidth").glob("*.yaml"))
    yield Reader("stream", lambda data: stream_results.read(_text(data), 2), (UnknownOutput,), streams)
    yield Reader("selection", _selection, (FleetmarkError,), (b"localhost\nsku=h200,rack=r1*\n[a-\n",))
    yield Reader(
        "busy",
        lambda data: busy.parsed(_text(data)[:_LONGEST_VARIABLE]),
        (ValueError,),
        (b"flock '/a b'", b"command a \\b"),
    )
    yield Reader("pods", lambda data: busy.device_pods(_text(data), "own"), (), (b'{"items": [{"metadata": {}}]}',))
    yield Reader("slurm", lambda data: busy.slurm_jobs(_text(data), "1"), (), (b"1|RUNNING|me\n2|PENDING|you\n",))
    smi = (ROOT / "tests/samples/environment/nvidia-smi-550-synth-4xh100.csv").read_bytes()
    yield Reader("nvidia-smi", lambda data: gpus.parse(_text(data)), (), (smi,))
    yield Reader("versions", _versions, (), (b"fio-3.33\n", b"iperf 3.12 (cJSON 1.7.15)\n", b"fio-" + b"9" * 5000))
    yield Reader("key", lambda data: keys.checked(_text(data)), (BadKey,), (RAW_KEY.encode(),))
    yield Reader("raw key", lambda data: keys.raw_parts(_text(data)), (BadKey,), (RAW_KEY.encode(),))
    yield Reader("batch", lambda data: keys.generation_of(_text(data)), (BadKey,), (b"r.001-ab",))
    yield Reader("reference", lambda data: names.parse(_text(data)), (BadReference,), (b"a@latest",))
    yield Reader("environment file", _environment_file, (BadFile,), (b"A=b\n# c\nexport D='e f'\n",))
    yield Reader("owner of a directory", _owner, (), (b'{"group": 1, "start_ticks": 2, "boot_id": "x"}',))


def _owner(data: bytes) -> object:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        left = Path(folder) / "scratch/fleetmark-old"
        left.mkdir(parents=True)
        (left / ".owner.json").write_bytes(data)
        return guard.reclaim(make.node(), Path(folder), lambda _: None)
