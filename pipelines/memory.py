"""How much memory processes may still take on this machine before the kernel ends one of them for want of it."""

import re
from collections.abc import Iterator
from pathlib import Path

_KIB = 2**10
_SHARE = 0.8  # of what is available may be taken: it is an estimate, and others go on as well
_GROUPS = "sys/fs/cgroup"


def lacking(needed_bytes: int, root: Path = Path("/")) -> str | None:
    """Why so many bytes may not be taken here; None: they may, or nothing can be known."""
    available = available_bytes(root)
    if available is None or needed_bytes <= available * _SHARE:
        return None
    return (
        f"it would take {needed_bytes} B of memory, and {available} B are available, of which {_SHARE:.0%} may be taken"
    )


def available_bytes(root: Path = Path("/")) -> int | None:
    """MemAvailable (proc_meminfo(5)), or less where a control group of this process has less left (cgroups(7))."""
    found = re.search(r"^MemAvailable: +(\d+) kB$", _text(root / "proc/meminfo"), re.M)
    return min((int(found[1]) * _KIB, *_left(root))) if found else None


def _left(root: Path) -> Iterator[int]:
    """What the limit of each group leaves beside what cannot be given back, which is what no file holds."""
    top = root / _GROUPS
    own = re.search(r"^0::/(.*)$", _text(root / "proc/self/cgroup"), re.M)
    group = top / own[1] if own else top
    while group.is_relative_to(top):
        limit = re.fullmatch(r"(\d+)\n?", _text(group / "memory.max"))
        held = re.search(r"^anon (\d+)$", _text(group / "memory.stat"), re.M)
        if limit and held:
            yield max(0, int(limit[1]) - int(held[1]))
        group = group.parent


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
