"""What the filesystem of the scratch directory means for what was measured there."""

from pipelines import mounts
from pipelines.records import Labels, RawOutput


def labels(raw: RawOutput) -> Labels:
    """`filesystem`, where it may keep in memory what is written to it, and gives that back, whatever is asked of it."""
    filesystem = raw.facts.get("filesystem")
    return {"filesystem": filesystem} if filesystem in mounts.WITH_MEMORY_OF_THEIR_OWN else {}
