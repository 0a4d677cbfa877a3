"""The guard: a benchmark writes only in a directory made here, below the node's scratch directory, and then removed."""

import fcntl
import json
import mmap
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pipelines import mounts, process_groups
from pipelines.errors import NotEnoughSpace, ScratchRefused, SizeCapExceeded
from pipelines.records import Node

_PREFIX = "fleetmark-"
_OWNER = ".owner.json"  # in each directory: the tool that works there
_SYSTEM = ("bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "sbin", "sys", "usr")
_NOT_STORAGE = {"cgroup", "cgroup2", "devpts", "devtmpfs", "proc", "sysfs"}
_PROBED_BYTES = 4096  # the largest logical block a disk has; O_DIRECT wants whole, aligned ones (open(2))


@dataclass(frozen=True)
class Scratch:
    """A benchmark's own empty directory, and what was seen there."""

    path: Path
    filesystem: str
    direct_io: bool

    def record(self, group: int) -> None:
        """Write down which process group works here, for a `reclaim` after this process was killed."""
        ticks = process_groups.start_ticks_of(group)
        if ticks is not None:
            owner = {"group": group, "start_ticks": ticks, "boot_id": _boot_id()}
            with suppress(OSError):  # a full disk: the tool still ends with this process
                (self.path / _OWNER).write_text(json.dumps(owner))


def root_of(node: Node, home: Path) -> Path:
    """The node's scratch directory, without links. One below `home` is made when it is not there.

    Raises:
        ScratchRefused: it is gone, not a directory, a part of the system, read-only or not writable.
    """
    named = home / node.scratch
    try:
        if not Path(node.scratch).is_absolute():
            named.mkdir(mode=0o755, parents=True, exist_ok=True)
        root = named.resolve(strict=True)
    except FileNotFoundError as e:
        raise ScratchRefused(str(named), "it is not there; is its disk mounted?") from e
    except (OSError, RuntimeError) as e:
        raise ScratchRefused(str(named), _said(e)) from e
    refused = refusal(root, mounts.of(root))
    if refused:
        leads = "" if root == named else f"leads to {root}: "
        raise ScratchRefused(str(named), leads + refused)
    if not root.is_dir():
        raise ScratchRefused(str(named), "it is not a directory")
    if os.statvfs(root).f_flag & os.ST_RDONLY:
        raise ScratchRefused(str(named), "its filesystem is mounted read-only")
    if not os.access(root, os.W_OK | os.X_OK):
        raise ScratchRefused(str(named), f"it is not writable for user {os.geteuid()}")
    return root


def refusal(root: Path, mount: mounts.Mount | None) -> str | None:
    """Why no benchmark may ever write below `root`, an absolute path without links; None when it may. Pure."""
    parts = root.parts
    if len(parts) == 1:
        return "it is the root of the system"
    if parts[1] in _SYSTEM:
        return f"/{parts[1]} belongs to the system"
    if mount is not None and mount.filesystem in _NOT_STORAGE:
        return f"{mount.filesystem} is not a filesystem to write to"
    return None


def check_space(root: Path, node: Node, needed_bytes: int, free_bytes: int) -> None:
    """Pure.

    Raises:
        SizeCapExceeded: the benchmark writes more than the node allows.
        NotEnoughSpace: after it, less than the node's floor would be free.
    """
    if needed_bytes > node.scratch_cap_bytes:
        raise SizeCapExceeded(str(root), needed_bytes, node.scratch_cap_bytes)
    if free_bytes - needed_bytes < node.free_floor_bytes:
        raise NotEnoughSpace(str(root), needed_bytes, node.free_floor_bytes, free_bytes)


@contextmanager
def scratch(node: Node, home: Path, name: str, needed_bytes: int) -> Iterator[Scratch]:
    """A new directory `fleetmark-<name>` for one benchmark, removed at the end whatever happens.

    It is locked with flock(2) for as long as it is in use, so that no `reclaim` takes it for a leftover.

    Raises:
        ScratchRefused, SizeCapExceeded, NotEnoughSpace: see `root_of` and `check_space`.
    """
    root = root_of(node, home)
    path = root / f"{_PREFIX}{name}"
    try:
        space = os.statvfs(root)
        check_space(root, node, needed_bytes, space.f_bavail * space.f_frsize)
        path.mkdir(mode=0o700)
        held = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except FileExistsError as e:
        raise ScratchRefused(str(path), "another benchmark works there, or its leftover cannot be removed") from e
    except OSError as e:
        raise ScratchRefused(str(path), _said(e)) from e
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        mount = mounts.of(path)
        yield Scratch(path, mount.filesystem if mount else "unknown", _takes_direct_io(path))
    finally:
        os.close(held)
        _remove(path)


def reclaim(node: Node, home: Path, say: Callable[[str], None]) -> tuple[Path, ...]:
    """Remove what killed runs left below the node's scratch directory, and end their tools. Returns what it removed.

    Called under the node's lease. A directory that is in use all the same (by a run with another lease) is left alone.

    Raises:
        ScratchRefused: see `root_of`.
    """
    root = root_of(node, home)
    removed = []
    for path in sorted(root.glob(f"{_PREFIX}*")):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            say(f"{path} is not one of our directories; left alone")
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{path} is in use by another run; left alone")
            continue
        finally:
            os.close(descriptor)
        if _end_tool_of(path):
            say(f"ended the tool that an earlier run left in {path}")
        problem = _remove(path)
        say(f"{path}, left by an earlier run, cannot be removed: {problem}" if problem else f"reclaimed {path}")
        if problem is None:
            removed.append(path)
    return tuple(removed)


def _end_tool_of(path: Path) -> bool:
    try:
        owner = json.loads((path / _OWNER).read_bytes())
        group, ticks, boot = int(owner["group"]), int(owner["start_ticks"]), owner["boot_id"]
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return False  # killed before the tool started, or while this was written: the tool ended with its parent
    return group > 1 and boot == _boot_id() and process_groups.end_left(group, ticks, path)


def _remove(path: Path) -> str | None:
    """Remove a directory without following any link out of it; why it is still there, if it is."""
    problems: list[str] = []
    shutil.rmtree(path, onerror=lambda _function, _path, failure: problems.append(_said(failure[1])))
    return problems[0] if problems and path.exists() else None


def _takes_direct_io(path: Path) -> bool:
    """Whether an aligned write with O_DIRECT works here; tmpfs before Linux 6.6 and some overlays refuse it."""
    probe = path / ".direct-io"
    try:
        with mmap.mmap(-1, _PROBED_BYTES) as aligned:
            descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DIRECT, 0o600)
            try:
                return os.write(descriptor, aligned) == _PROBED_BYTES
            finally:
                os.close(descriptor)
    except OSError:
        return False
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _said(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
