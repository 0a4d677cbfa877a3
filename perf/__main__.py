"""`make bench`: every comparison, one after the other, or those that are named."""

import importlib
import sys

from pipelines import console

COMPARISONS = ("startup", "parsing", "overhead", "stages", "landing", "queries", "publishing", "staging", "scale")


def main(asked: list[str]) -> None:
    for name in asked or COMPARISONS:
        console.say(f"{name} ...")
        importlib.import_module(f"perf.{name}").main()


if __name__ == "__main__":
    main(sys.argv[1:])
