"""The mounts of this machine, from proc(5)'s mountinfo: which filesystem a path lies on, and with which options."""

import os
import re
from pathlib import Path

from pipelines.records import Record

WITH_MEMORY_OF_THEIR_OWN = frozenset({"ramfs", "tmpfs", "zfs"})
"""Filesystems whose bytes in memory are not in the page cache, or are nowhere else, so that O_DIRECT passes neither."""


class Mount(Record):
    point: str
    device: str  # "major:minor"; major 0 is a filesystem without a block device of its own (tmpfs, overlay, nfs)
    filesystem: str
    options: tuple[str, ...]  # of the mount and of the filesystem under it, sorted


def parse(mountinfo: str) -> tuple[Mount, ...]:
    """Every line of mountinfo, in its order: a later mount on the same point hides an earlier one."""
    return tuple(_mount(line) for line in mountinfo.splitlines() if " - " in line)


def containing(mounts: tuple[Mount, ...], path: str) -> Mount | None:
    """The mount on which an absolute path without links lies; None when the table has no root."""
    holding = [mount for mount in mounts if path == mount.point or path.startswith(mount.point.rstrip("/") + "/")]
    return max(reversed(holding), key=lambda mount: len(mount.point), default=None)


def of(path: Path, root: Path = Path("/")) -> Mount | None:
    """The mount of `path`, which need not exist yet, by the table of the machine below `root`."""
    return containing(parse((root / "proc/self/mountinfo").read_text()), os.path.realpath(path))


def _mount(line: str) -> Mount:
    left, _, right = line.partition(" - ")
    _, _, device, _, point, options, *_ = left.split(" ")
    filesystem, _, super_options = right.split(" ")[:3]
    return Mount(
        point=re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), point),
        device=device,
        filesystem=filesystem,
        options=tuple(sorted({*options.split(","), *super_options.split(",")})),
    )
