"""Raw block devices of this machine: found by serial number, and refused while there is anything on or above them.

A serial number is what the disk says of itself, as sysfs or udev has it, with `_` for each run of spaces: its serial
number, or its WWID, which each NVMe namespace has of its own. A loop device has neither; for rehearsals it is called
`loop:NAME`, by the name of the file behind it.
"""

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePath

from pipelines import process
from pipelines.benchmark import DEVICE_EDGE_BYTES
from pipelines.errors import DeviceRefused, ToolNotFound, ToolNotStarted

# the unit of /sys/block/*/size whatever the disk's sector is (kernel, Documentation/block/stat.rst)
_SECTOR_BYTES = 512
_SAID_BY_THE_DISK = ("serial", "wwid", "device/serial", "device/wwid")  # virtio, NVMe namespace, NVMe, SCSI
_VPD_HEADER_BYTES = 4  # of a SCSI unit's serial number, page 0x80 (SPC-4, 7.8.13)
_SAID_BY_UDEV = re.compile(r"^E:(?:ID_SERIAL|ID_SERIAL_SHORT|ID_WWN_WITH_EXTENSION)=(.+)$", re.MULTILINE)
_LOOP = "loop:"
_LOOKED_FOR_S = 60.0
_ADMINISTRATORS = "/usr/sbin:/sbin"  # where wipefs lies, and which is not on every user's PATH


@dataclass(frozen=True)
class Device:
    """A whole disk as the kernel knows it now."""

    serial: str
    name: str  # "nvme0n1"
    path: Path
    number: str  # "259:0"
    size_bytes: int


def find(serial: str, root: Path = Path("/")) -> Device:
    """The one device of this serial number; `root` is where /sys, /run, /proc and /dev lie.

    Raises:
        DeviceRefused: there is none, or more than one.
    """
    named = [block for block in sorted((root / "sys/block").iterdir()) if serial in _serials(block, root)]
    if not named:
        raise DeviceRefused(serial, "this machine has no such device")
    if len(named) > 1:
        several = ", ".join(block.name for block in named)
        raise DeviceRefused(serial, f"{several} say that it is theirs, and it must be one device's alone")
    (block,) = named
    name = block.name.replace("!", "/")  # sysfs's way to write it
    return Device(
        serial=serial,
        name=name,
        path=root / "dev" / name,
        number=_text(block / "dev"),
        size_bytes=int(_text(block / "size") or 0) * _SECTOR_BYTES,
    )


@contextmanager
def claimed(serial: str, written_bytes: int, root: Path = Path("/")) -> Iterator[Device]:
    """The device, found empty, and for the time of the block nobody else's: not to be mounted, formatted or built on.

    `written_bytes` must fit between the two ends that are left alone. All is looked at again once the device is
    claimed, and only then is it searched for signatures.

    Raises:
        DeviceRefused: not found, or in any use, or not as large as it has to be.
    """
    device = find(serial, root)
    _require_unused(device, root)
    claim = _claim(device)
    try:
        if find(serial, root) != device:
            raise DeviceRefused(serial, f"it was {device.name} a moment ago and is not any more")
        _require_unused(device, root)
        _require_room(device, written_bytes)
        _require_unsigned(device)
        yield device
    finally:
        os.close(claim)


def _serials(block: Path, root: Path) -> frozenset[str]:
    """What a disk of sysfs is called; nothing where it is no disk of its own."""
    if (block / "loop").is_dir():
        return frozenset({f"{_LOOP}{PurePath(_text(block / 'loop/backing_file')).name}"})
    if _text(block / "hidden") == "1":  # a path of an NVMe namespace, which has a device for all of its paths
        return frozenset()
    said = [_text(block / name) for name in _SAID_BY_THE_DISK]
    with suppress(OSError):
        said.append((block / "device/vpd_pg80").read_bytes()[_VPD_HEADER_BYTES:].decode(errors="replace"))
    said += _SAID_BY_UDEV.findall(_text(root / f"run/udev/data/b{_text(block / 'dev')}"))
    written = {"_".join(each.strip(" \0").split()) for each in said}
    return frozenset(each for each in written if each and not each.startswith(_LOOP))


def _require_unused(device: Device, root: Path) -> None:
    problem = _use(device, root)
    if problem:
        raise DeviceRefused(device.serial, f"{device.name} {problem}")


def _use(device: Device, root: Path) -> str | None:
    """What is wrong with the device as it stands, as the end of a sentence that it begins; None: nothing is."""
    block = root / "sys/block" / device.name.replace("/", "!")
    partitions = sorted(path.parent.name for path in block.glob("*/partition"))
    holders = sorted(path.name for path in (block / "holders").glob("*"))
    swaps = [line.split()[0] for line in _text(root / "proc/swaps").splitlines()]
    points = sorted(set(_mount_points(device, root)))
    problems = {
        "has no size: there is no medium in it": device.size_bytes == 0,
        "is read-only": _text(block / "ro") != "0",
        f"has partitions ({', '.join(partitions)})": partitions,
        f"is a part of {', '.join(holders)}": holders,
        f"is mounted on {', '.join(points)}": points,
        "is swap space": str(device.path) in swaps,
    }
    return next((problem for problem, is_so in problems.items() if is_so), None)


def _mount_points(device: Device, root: Path) -> Iterator[str]:
    """Where it is mounted, in the mount namespace of any process that may be looked at."""
    seen: set[str] = set()
    for process_folder in (root / "proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is another user's; a claim finds what is mounted there
            namespace = str((process_folder / "ns/mnt").readlink())
            if namespace in seen:
                continue
            mountinfo = (process_folder / "mountinfo").read_text(errors="replace")
            seen.add(namespace)
            for line in mountinfo.splitlines():
                left, _, right = (part.split(" ") for part in line.partition(" - "))
                if left[2:3] == [device.number] or right[1:2] == [str(device.path)]:
                    yield left[4]


def _claim(device: Device) -> int:
    """An exclusive opening, open(2): while it lasts the kernel gives no other, which mounting or formatting needs."""
    try:
        seen = device.path.lstat()
        if not stat.S_ISBLK(seen.st_mode):
            raise DeviceRefused(device.serial, f"{device.path} is not a block device")
        claim = os.open(device.path, os.O_RDWR | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError as e:
        raise DeviceRefused(device.serial, f"there is no {device.path}") from e
    except OSError as e:
        raise DeviceRefused(device.serial, f"{device.path} is not to be had: {e.strerror}") from e
    opened = os.fstat(claim)
    number = f"{os.major(opened.st_rdev)}:{os.minor(opened.st_rdev)}"
    if not stat.S_ISBLK(opened.st_mode) or number != device.number:
        os.close(claim)
        raise DeviceRefused(device.serial, f"{device.path} is device {number}, not {device.number}")
    return claim


def _require_room(device: Device, written_bytes: int) -> None:
    needed = written_bytes + 2 * DEVICE_EDGE_BYTES
    if device.size_bytes < needed:
        raise DeviceRefused(device.serial, f"{device.name} has {device.size_bytes} B, and {needed} B are needed")


def _require_unsigned(device: Device, environ: Mapping[str, str] = os.environ) -> None:
    """By wipefs(8), which finds filesystems, RAID and volume members, swap, partition tables, and here only reads."""
    path = f"{environ.get('PATH', os.defpath)}:{_ADMINISTRATORS}"
    try:
        argv = ("wipefs", "--json", str(device.path))
        done = process.run(argv, timeout_s=_LOOKED_FOR_S, environ={**environ, "PATH": path})
        if done.exit_status != 0:
            raise DeviceRefused(device.serial, f"whether it is signed cannot be told: {done.stderr.strip()[:200]}")
        found = json.loads(done.stdout or '{"signatures": []}')["signatures"]
        signatures = sorted({f"{each['type']} at {each['offset']}" for each in found})
    except (ToolNotFound, ToolNotStarted, ValueError, KeyError, TypeError) as e:
        raise DeviceRefused(device.serial, f"whether it is signed cannot be told: {e}") from e
    if signatures:
        what = ", ".join(signatures)
        raise DeviceRefused(
            device.serial, f"{device.name} is signed ({what}); if it is empty, `wipefs -a` takes that away"
        )


def _text(path: Path) -> str:
    """The words of a file of the kernel's; empty where there is none."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
