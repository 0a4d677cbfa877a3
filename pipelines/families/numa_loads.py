"""What `numa` runs with its memory near and far: how each load is asked for, and what rate its output gives.

Each has its bytes in memory that it takes while numactl binds it: the arrays of stream; fio's buffers, with nothing of
the page cache between them and the disk; the weights of llama-bench, which it reads and does not map, since a file that
is mapped lies where somebody read it first.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from statistics import median
from typing import Literal, Self

from pipelines.benchmark import Workplace
from pipelines.families import fio_document, fio_tool, llama_results, llama_tool, stream_results
from pipelines.records import Unit

Name = Literal["memory", "fio", "llama"]

TOKENS = 64  # that llama-bench generates each time
BLOCK_BYTES = 128 * 1024  # of fio's requests
DATA = "data"  # fio's file, in its directory

_IN_FLIGHT = 16  # requests of each of fio's jobs
_SEED = 20_180_412
_FULL = 0.95  # of the time asked for
_NS_PER_S = 10**9
_MS_PER_S = 10**3


@dataclass(frozen=True)
class Asked:
    """What the probe is told, as words of its command."""

    load: Name
    rounds: int
    duration_s: int
    within_s: int  # a run is ended after it
    processors: str
    array_bytes: int
    size_bytes: int
    direct: bool
    model: str

    @property
    def model_files(self) -> tuple[Path, ...]:
        names = llama_tool.ModelParams(model=PurePath(self.model).name).files if self.model else ()
        return tuple(Path(self.model).with_name(name) for name in names)

    def words(self) -> tuple[str, ...]:
        return tuple(f"--{name.replace('_', '-')}={value}" for name, value in asdict(self).items())

    @classmethod
    def of(cls, words: Sequence[str]) -> Self:
        """Raises: KeyError, ValueError: they are not those of `words`."""
        given = dict(word.removeprefix("--").split("=", 1) for word in words)
        return cls(
            load=_NAMES[given["load"]],
            rounds=int(given["rounds"]),
            duration_s=int(given["duration-s"]),
            within_s=int(given["within-s"]),
            processors=given["processors"],
            array_bytes=int(given["array-bytes"]),
            size_bytes=int(given["size-bytes"]),
            direct=given["direct"] == "True",
            model=given["model"],
        )


@dataclass(frozen=True)
class Load:
    """A tool and a use of it.

    `argv` takes how many processes or threads there shall be, where the output shall be, and what the tool said of its
    options. `takes` are the bytes of memory of so many, beside those of the model's files. `rate` reads an output, and
    raises UnknownOutput; None: it ran for less than was asked.
    """

    tool: str
    metric: str
    unit: Unit
    instances: str  # in its command, how many there are
    argv: Callable[[Asked, int, PurePath, str], tuple[str, ...]]
    takes: Callable[[Asked, int], int]
    rate: Callable[[str, int, float], float | None]
    version: Callable[[str], str | None]
    minimum_version: tuple[int, ...] = ()
    help_argv: tuple[str, ...] = ()

    def instances_of(self, argv: Sequence[str]) -> int | None:
        found = re.search(rf"(?:^| ){self.instances}(?:=| )([1-9]\d{{0,5}})(?: |$)", " ".join(argv))
        return int(found[1]) if found else None


def _stream(asked: Asked, instances: int, output: PurePath, _: str) -> tuple[str, ...]:
    return stream_results.argv(
        instances=instances, array_bytes=asked.array_bytes, duration_s=asked.duration_s, output=output
    )


def _stream_rate(output: str, instances: int, duration_s: float) -> float | None:
    rates = stream_results.read(output, instances)
    return rates.read + rates.write if rates is not None and rates.is_whole(duration_s) else None


def _fio(asked: Asked, instances: int, output: PurePath, _: str) -> tuple[str, ...]:
    """Random reads of one file that all jobs share. Laying it out comes before the time that is measured."""
    return (
        "fio",
        f"--output={output}",
        "--output-format=json+",
        "--eta=never",
        "--name=numa",
        "--thread=1",
        f"--filename={fio_tool.escaped(output.parent / DATA)}",
        "--rw=randread",
        "--norandommap=1",
        f"--bs={BLOCK_BYTES}",
        f"--iodepth={_IN_FLIGHT}",
        f"--numjobs={instances}",
        "--group_reporting=1",
        f"--size={asked.size_bytes}",
        "--ioengine=libaio",
        f"--direct={int(asked.direct)}",
        f"--randseed={_SEED}",
        "--time_based=1",
        f"--runtime={fio_tool.milliseconds(asked.duration_s)}ms",
    )


def _fio_rate(output: str, _: int, duration_s: float) -> float | None:
    document = fio_document.read(output).document
    if document is None:
        return None
    read = document.jobs[0].read
    seconds = read.runtime / _MS_PER_S
    return read.io_bytes / seconds if seconds >= duration_s * _FULL and read.io_bytes else None


def _llama(asked: Asked, instances: int, output: PurePath, tool_help: str) -> tuple[str, ...]:
    model = PurePath(asked.model)
    params = llama_tool.ModelParams(model=model.name, threads=instances, n_gpu_layers=0, load_mode="none")
    place = Workplace(output.parent, output, asked.direct, "", files=model.parent, tool_help=tool_help)
    printed = ("-o", llama_tool.format_of(tool_help))
    return (
        "llama-bench",
        *llama_tool.model_arguments(params, place),
        "-p",
        "0",
        "-n",
        f"{TOKENS}",
        "-r",
        "1",
        *printed,
    )


def _llama_rate(output: str, _: int, __: float) -> float | None:
    for result in llama_results.results(output):
        if (result.n_prompt, result.n_gen) == (0, TOKENS):
            return TOKENS * _NS_PER_S / median(result.samples_ns)
    return None


LOADS: Mapping[Name, Load] = {
    "memory": Load(
        tool=stream_results.TOOL,
        metric="bandwidth",
        unit="B/s",
        instances="--stream",
        argv=_stream,
        takes=lambda asked, instances: stream_results.ARRAYS * asked.array_bytes * instances,
        rate=_stream_rate,
        version=stream_results.version,
        minimum_version=stream_results.MINIMUM_VERSION,
    ),
    "fio": Load(
        tool="fio",
        metric="bandwidth",
        unit="B/s",
        instances="--numjobs",
        argv=_fio,
        takes=lambda _, instances: instances * _IN_FLIGHT * BLOCK_BYTES,
        rate=_fio_rate,
        version=fio_tool.version,
        minimum_version=fio_tool.MINIMUM_VERSION,
    ),
    "llama": Load(
        tool="llama-bench",
        metric="decode_throughput",
        unit="tok/s",
        instances="-t",
        argv=_llama,
        takes=lambda _, __: 0,
        rate=_llama_rate,
        version=llama_tool.version,
        help_argv=("llama-bench", "--help"),
    ),
}
_NAMES: Mapping[str, Name] = {name: name for name in LOADS}
