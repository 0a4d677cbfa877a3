"""Interleaved timing: every contender once a round, so that a noisy machine disturbs all alike."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipelines import console


@dataclass(frozen=True)
class Series:
    """Measurements of one contender, in the order they were taken."""

    name: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> str:
        return f"{min(self.values):.3g} .. {max(self.values):.3g}"


def interleaved(contenders: Mapping[str, Callable[[], float]], rounds: int) -> list[Series]:
    """Each contender's value in each round; a contender returns what it measured."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for done in range(rounds):
        console.say(f"  round {done + 1} of {rounds}")
        for name, contender in contenders.items():
            taken[name].append(contender())
    return [Series(name, tuple(values)) for name, values in taken.items()]


def show(title: str, unit: str, series: Sequence[Series], notes: Mapping[str, str] | None = None) -> None:
    """The contenders side by side; ratios are against the first."""
    print(f"\n## {title}\n")
    first = series[0].median
    console.table(
        ("", f"median, {unit}", "spread", f"against {series[0].name}", ""),
        [
            (
                one.name,
                f"{one.median:.4g}",
                one.spread,
                f"{one.median / first:.2f}x" if first else "",
                (notes or {}).get(one.name, ""),
            )
            for one in series
        ],
    )
