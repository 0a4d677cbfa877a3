"""stress-ng's `stream` as the tool of several benchmarks: how it is asked, and what its YAML document says.

It is like McCalpin's STREAM: copy, scale, add and triad over three arrays of doubles, in one process for each instance,
whose memory lies where that process first touched it. What of it is to be known (stress-stream.c, 0.15 to 0.19):

- The arrays are `--stream-l3-size` times 4 divided by the instances. Left to itself it takes one L3 cache for that,
  and on a processor with many of them its arrays fit into the caches.
- Its MB are 2^20 bytes. The document gives the arithmetic mean of the instances, so that it times them is their sum;
  what is printed is their geometric mean, in later versions their harmonic one.
- With less than 4.5 seconds in its loops it gives no rate at all.
- Where the kernel ends an instance for want of memory, it ends well: with no rate where that was the first one, else
  with a mean to which that instance adds nothing. `wall-clock-time` is a mean of the instances as well.
- The document of 0.19 is no YAML before its metrics, so that these alone are read.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from pipelines.errors import UnknownOutput

TOOL = "stress-ng"
MINIMUM_VERSION = (0, 15)  # older ones take no more than 4 GiB for --stream-l3-size
INSTALL_HINT = "apt-get install stress-ng"
SOURCE = "https://github.com/ColinIanKing/stress-ng/blob/master/stress-stream.c"
ARRAYS = 3  # of an instance
SHORTEST_S = 5
SETTLING_S = 1.0  # making the arrays

_FULL = 0.95  # of the time asked for
_MIB = 2**20
_ARRAYS_PER_L3 = 4
_LONGEST = 2**16  # characters of a document; they have 1,500
_KEYS = {  # by metric, as 0.15 names it and as 0.19 does
    "read": ("memory-read-rate-mb-per-sec", "mb-per-sec-memory-read-rate"),
    "write": ("memory-write-rate-mb-per-sec", "mb-per-sec-memory-write-rate"),
}


@dataclass(frozen=True)
class Rates:
    """B/s of all instances together, and for how long they ran, in the mean."""

    read: float
    write: float
    seconds: float

    def is_whole(self, duration_s: float) -> bool:
        """Whether every instance ran for as long as was asked."""
        return self.seconds >= duration_s * _FULL


def argv(*, instances: int, array_bytes: int, duration_s: int, output: object) -> tuple[str, ...]:
    """`array_bytes` are those of each of an instance's three arrays."""
    return (
        TOOL,
        f"--stream={instances}",
        f"--stream-l3-size={array_bytes * instances // _ARRAYS_PER_L3}",
        f"--timeout={duration_s}s",
        "--metrics",
        f"--yaml={output}",
    )


def instances(argv: tuple[str, ...]) -> int | None:
    found = next((word for word in argv if word.startswith("--stream=")), "").removeprefix("--stream=")
    return int(found) if re.fullmatch(r"[1-9]\d{0,5}", found) else None


def version(text: str) -> str | None:
    """`0.15.06` of `stress-ng, version 0.15.06 (gcc 12.2.0, x86_64 Linux 6.1)`."""
    found = re.search(r"^stress-ng, version (\d{1,9}(?:\.\d{1,9}){1,4})", text, re.MULTILINE)
    return found.group(1) if found else None


def read(document: str, instances: int) -> Rates | None:
    """The rates of a YAML document. None: it ran, and gives none.

    Raises:
        UnknownOutput: it is no document of a run of `stream`.
    """
    stressor = _stressor(document)
    rates = {
        name: next((rate for key in keys if (rate := _number(stressor.get(key))) is not None), None)
        for name, keys in _KEYS.items()
    }
    seconds = _number(stressor.get("wall-clock-time"))
    if rates["read"] is None or rates["write"] is None or seconds is None:
        return None
    return Rates(rates["read"] * _MIB * instances, rates["write"] * _MIB * instances, seconds)


def _stressor(document: str) -> Mapping[str, Any]:
    try:
        metrics = document[document.index("\nmetrics:\n") :]
        if len(metrics) > _LONGEST:
            raise ValueError("it is too long")
        found = yaml.load(metrics, Loader=yaml.BaseLoader)  # noqa: S506 - it makes nothing but strings, lists and maps
        (stressor,) = (each for each in found["metrics"] if each["stressor"] == "stream")
    except (yaml.YAMLError, ValueError, TypeError, KeyError, IndexError, RecursionError) as e:
        raise UnknownOutput(TOOL, "a YAML document with the metrics of stream", document) from e
    if not isinstance(stressor, Mapping):
        raise UnknownOutput(TOOL, "the metrics of stream by name", document)
    return stressor


def _number(value: Any) -> float | None:
    """More than nothing, and no more than stress-ng prints; no `inf` and no `nan`."""
    if not isinstance(value, str) or not re.fullmatch(r"\d{1,12}\.\d{1,9}", value):
        return None
    return float(value) or None
