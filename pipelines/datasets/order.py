"""Which sample of a version comes when: shards permuted by seed and epoch, shuffled in windows, cut into slices. Pure.

The order of an epoch depends on the version, the seed, the epoch and the window, and on nothing else: not on how many
read, nor on what was read before. The shards are permuted; each run of `window` shards is a window. Of its shards one
portion after the other is dealt, in turn, and what is dealt is collected into rounds; the samples of a round are
permuted. A round is what lies in memory.
"""

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from random import Random
from typing import NamedTuple, Self

from pydantic import NonNegativeInt, PositiveInt, model_validator

from pipelines.datasets.manifest import BLOCK_BYTES
from pipelines.records import Record

HELD_BYTES = 64 * 2**20
"""Of samples in memory: a round being served, and what is read ahead. A single sample may be larger."""

_ROUND_BYTES = HELD_BYTES // 2
_SMALLEST_PORTION = 2**16  # less is read no faster


class Portion(NamedTuple):
    """Samples of one shard that are read together."""

    samples: int
    size_bytes: int


class Window(NamedTuple):
    """Shards that are read side by side."""

    number: int
    shards: tuple[int, ...]  # their places in the manifest
    first: int  # place of its first sample in the epoch
    samples: int


class Round(NamedTuple):
    """Portions whose samples are permuted together: each the place of a shard in its window, and which of its own."""

    number: int
    portions: tuple[tuple[int, int], ...]
    first: int  # place of its first sample in the window
    samples: int
    size_bytes: int


class Order(Record):
    """How the samples of a version are ordered, and which slice of them one of several readers gets."""

    seed: int | None = None  # None: as they lie in the version
    window: PositiveInt = 8  # shards that are shuffled together
    rank: NonNegativeInt = 0
    world: PositiveInt = 1
    worker: NonNegativeInt = 0
    workers: PositiveInt = 1

    @model_validator(mode="after")
    def _is_one_of_them(self) -> Self:
        if self.rank >= self.world or self.worker >= self.workers:
            raise ValueError(f"rank {self.rank} of {self.world}, worker {self.worker} of {self.workers}")
        return self

    @property
    def portion_bytes(self) -> int:
        """How large a portion of a shard should be: a round has one of each shard of the window."""
        shards = 1 if self.seed is None else self.window
        return max(_SMALLEST_PORTION, min(BLOCK_BYTES, _ROUND_BYTES // shards))

    def bounds(self, samples: int) -> tuple[int, int]:
        """First, and one after the last, of this reader's samples in an epoch. Slices differ by one sample at most."""
        number, count = self.rank * self.workers + self.worker, self.world * self.workers
        return samples * number // count, samples * (number + 1) // count

    def windows(self, epoch: int, samples: Sequence[int], first: int, end: int) -> Iterator[Window]:
        """The windows that have a sample of this part of the epoch, given how many samples each shard has."""
        filled = [shard for shard, count in enumerate(samples) if count]
        shards = filled if self.seed is None else [filled[place] for place in permuted(len(filled), self.seed, epoch)]
        size = 1 if self.seed is None else self.window
        before = 0
        for number, start in enumerate(range(0, len(shards), size)):
            its_shards = tuple(shards[start : start + size])
            count = sum(samples[shard] for shard in its_shards)
            if max(first, before) < min(end, before + count):
                yield Window(number, its_shards, before, count)
            before += count

    def rounds(self, epoch: int, window: Window, shards: Sequence[Sequence[Portion]], forward: bool) -> list[Round]:
        """The rounds of a window, given the portions of its shards. `forward`: each shard is read front to back."""
        dealt = list(self._dealt(epoch, window, [len(portions) for portions in shards], forward))
        sizes = [shards[shard][portion].size_bytes for shard, portion in dealt]
        most_bytes = 0 if self.seed is None else _ROUND_BYTES  # 0: each portion is a round of its own
        counts = [shards[shard][portion].samples for shard, portion in dealt]
        firsts = list(accumulate(counts, initial=0))
        return [
            Round(
                number=number,
                portions=tuple(dealt[start:end]),
                first=firsts[start],
                samples=firsts[end] - firsts[start],
                size_bytes=sum(sizes[start:end]),
            )
            for number, (start, end) in enumerate(_cut(sizes, most_bytes))
        ]

    def inside(self, epoch: int, window: Window, of: Round) -> Sequence[int]:
        """In which order the samples of a round come, each by its place among them."""
        if self.seed is None:
            return range(of.samples)
        return permuted(of.samples, self.seed, epoch, "round", window.number, of.number)

    def _dealt(self, epoch: int, window: Window, counts: Sequence[int], forward: bool) -> Iterator[tuple[int, int]]:
        orders: list[Sequence[int]] = [range(count) for count in counts]
        if self.seed is not None and not forward:
            orders = [
                permuted(count, self.seed, epoch, "shard", window.shards[shard]) for shard, count in enumerate(counts)
            ]
        for turn in range(max(counts, default=0)):
            yield from ((shard, order[turn]) for shard, order in enumerate(orders) if turn < len(order))


def permuted(count: int, *seed: object) -> Sequence[int]:
    """The numbers below `count` in an order that depends on the seed alone, in any release of Python.

    Fisher and Yates' shuffle, fed by the one method of `random` whose sequence is promised to stay
    (docs.python.org/3/library/random.html, "Notes on Reproducibility").
    """
    draw = Random(int.from_bytes(hashlib.sha256(repr(seed).encode()).digest())).random  # noqa: S311 - no secret
    numbers = array("I", range(count))
    for last in range(count - 1, 0, -1):
        other = int(draw() * (last + 1))
        numbers[last], numbers[other] = numbers[other], numbers[last]
    return numbers


def _cut(sizes: Sequence[int], most_bytes: int) -> Iterator[tuple[int, int]]:
    """Start and end of each run of sizes that together are no more, or that is a single one."""
    starts: list[int] = []
    held = 0
    for place, size in enumerate(sizes):
        if not starts or held + size > most_bytes:
            starts.append(place)
            held = 0
        held += size
    yield from pairwise([*starts, len(sizes)])
