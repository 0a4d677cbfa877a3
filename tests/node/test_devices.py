"""Raw devices: found by what they say of themselves, and refused for each reason there is; the real ones are loops."""

import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import devices
from pipelines.errors import DeviceRefused
from tests.node.disks import MIB, SIZE_BYTES, Attach, attached

SERIAL = "S4YPNE0M900123"
MOUNTED = "36 35 8:16 / {point} rw,noatime - ext4 {source} rw\n"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(text)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """The root of a machine with one unused disk, sdb, as far as /sys, /proc and /dev of it are read."""
    for name, text in {"dev": "8:16\n", "size": "1000000\n", "ro": "0\n", "device/wwid": f"{SERIAL}\n"}.items():
        _write(tmp_path / "sys/block/sdb" / name, text)
    _write(tmp_path / "proc/swaps", "Filename Type Size Used Priority\n")
    _namespace(tmp_path, 1, "22 1 0:20 / / rw - overlay overlay rw\n")
    _write(tmp_path / "dev/sdb", "")
    return tmp_path


def _namespace(machine: Path, pid: int, mountinfo: str) -> None:
    _write(machine / f"proc/{pid}/mountinfo", mountinfo)
    (machine / f"proc/{pid}/ns").mkdir()
    (machine / f"proc/{pid}/ns/mnt").symlink_to(f"mnt:[{pid}]")


def _refused(root: Path, serial: str = SERIAL) -> str:
    with pytest.raises(DeviceRefused) as caught, devices.claimed(serial, MIB, root):
        pass
    return caught.value.problem


# --- found by its serial number -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "data", "serial"),
    [
        ("serial", b"virtio-7\n", "virtio-7"),
        ("wwid", b"eui.0025385b01401234\n", "eui.0025385b01401234"),
        ("device/serial", b"S64HNE0R500001      \n", "S64HNE0R500001"),
        ("device/wwid", b"t10.ATA     SAMSUNG MZ7    S4Y1\n", "t10.ATA_SAMSUNG_MZ7_S4Y1"),
        ("device/vpd_pg80", b"\0\x80\0\x14      WD-WX11DA71VKXY", "WD-WX11DA71VKXY"),
    ],
)
def test_a_disk_is_found_by_each_name_that_it_gives_itself(machine: Path, file: str, data: bytes, serial: str) -> None:
    _write(machine / "sys/block/sdb" / file, "")
    (machine / "sys/block/sdb" / file).write_bytes(data)
    found = devices.find(serial, machine)
    assert (found.name, found.number, found.size_bytes) == ("sdb", "8:16", 512_000_000)
    assert found.path == machine / "dev/sdb"


def test_a_disk_is_found_by_the_serial_numbers_that_udev_has_read(machine: Path) -> None:
    _write(machine / "run/udev/data/b8:16", "S:disk/by-id/x\nE:ID_SERIAL=INTEL_SSD_PHYF1\nE:ID_SERIAL_SHORT=PHYF1\n")
    assert devices.find("INTEL_SSD_PHYF1", machine) == devices.Device(
        "INTEL_SSD_PHYF1", "sdb", machine / "dev/sdb", "8:16", 512_000_000
    )
    assert devices.find("PHYF1", machine).name == "sdb"


def test_a_path_of_an_nvme_namespace_is_no_disk_of_its_own(machine: Path) -> None:
    _write(machine / "sys/block/nvme0c0n1/hidden", "1\n")
    _write(machine / "sys/block/nvme0c0n1/device/serial", f"{SERIAL}\n")
    assert devices.find(SERIAL, machine).name == "sdb"


def test_no_disk_takes_the_name_of_a_loop_device(machine: Path) -> None:
    _write(machine / "sys/block/sdb/device/wwid", "loop:disk\n")
    assert _refused(machine, "loop:disk") == "this machine has no such device"


# --- refused, by what sysfs and proc say --------------------------------------------------------------------


def test_a_serial_number_that_no_disk_has_is_refused(machine: Path) -> None:
    assert _refused(machine, "S4YPNE0M900124") == "this machine has no such device"
    assert _refused(machine, SERIAL[:-1]) == "this machine has no such device"


def test_a_serial_number_that_two_disks_have_is_refused(machine: Path) -> None:
    _write(machine / "sys/block/sdc/device/serial", SERIAL)
    assert _refused(machine) == "sdb, sdc say that it is theirs, and it must be one device's alone"


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("sys/block/sdb/size", "0\n", "sdb has no size: there is no medium in it"),
        ("sys/block/sdb/ro", "1\n", "sdb is read-only"),
        ("sys/block/sdb/sdb1/partition", "1\n", "sdb has partitions (sdb1)"),
        ("sys/block/sdb/holders/md127", "", "sdb is a part of md127"),
        ("sys/block/sdb/holders/dm-0", "", "sdb is a part of dm-0"),
    ],
)
def test_a_disk_that_is_in_use_is_refused_with_what_it_is_used_for(
    machine: Path, file: str, text: str, problem: str
) -> None:
    _write(machine / file, text)
    assert _refused(machine) == problem


def test_swap_space_is_refused(machine: Path) -> None:
    _write(machine / "proc/swaps", f"Filename Type Size Used Priority\n{machine}/dev/sdb partition 8 0 -2\n")
    assert _refused(machine) == "sdb is swap space"


@pytest.mark.parametrize("line", [MOUNTED, MOUNTED.replace("8:16", "0:51")], ids=["by number", "by name, as btrfs"])
def test_a_disk_that_is_mounted_in_any_namespace_is_refused(machine: Path, line: str) -> None:
    _namespace(machine, 4711, line.format(point="/container/data", source=f"{machine}/dev/sdb"))
    assert _refused(machine) == "sdb is mounted on /container/data"


def test_a_path_that_is_missing_below_dev_is_refused_and_not_made(machine: Path) -> None:
    (machine / "dev/sdb").unlink()
    assert _refused(machine) == f"there is no {machine}/dev/sdb"
    assert list((machine / "dev").iterdir()) == []


def test_a_file_or_a_link_in_the_place_of_the_device_is_refused(machine: Path) -> None:
    assert _refused(machine) == f"{machine}/dev/sdb is not a block device"
    (machine / "dev/sdb").unlink()
    (machine / "dev/sdb").symlink_to("/dev/zero")
    assert _refused(machine) == f"{machine}/dev/sdb is not a block device"


# --- real disks ---------------------------------------------------------------------------------------------


@pytest.fixture
def attach(tmp_path: Path) -> Iterator[Attach]:
    with attached(tmp_path) as attach:
        yield attach


@pytest.fixture
def name() -> str:
    """One that no other loop device of this machine has."""
    return f"disk-{uuid.uuid4().hex[:12]}"


def _claim(name: str, written_bytes: int = MIB) -> str | None:
    """Why the disk is refused."""
    try:
        with devices.claimed(f"loop:{name}", written_bytes):
            return None
    except DeviceRefused as e:
        return e.problem


@pytest.mark.integration
def test_an_empty_disk_is_nobody_elses_while_it_is_claimed(attach: Attach, name: str) -> None:
    disk = attach(name)
    with devices.claimed(f"loop:{name}", SIZE_BYTES - 32 * MIB) as device:
        assert (device.path, device.size_bytes) == (disk, SIZE_BYTES)
        assert _claim(name) == f"{disk} is not to be had: Device or resource busy"
        made = subprocess.run(("mkfs.ext4", "-q", disk), check=False, capture_output=True, text=True)
        assert made.returncode != 0
        assert "apparently in use" in made.stderr
    assert _claim(name) is None


@pytest.mark.integration
def test_a_disk_that_is_too_small_by_a_sector_is_refused(attach: Attach, name: str) -> None:
    disk = attach(name, size_bytes=SIZE_BYTES - 512)
    assert _claim(name, SIZE_BYTES - 32 * MIB) == f"{disk.name} has {SIZE_BYTES - 512} B, and {SIZE_BYTES} B are needed"


@pytest.mark.integration
@pytest.mark.parametrize(
    ("made_by", "signature"), [(("mkfs.ext4", "-q"), "ext4 at 0x438"), (("mkswap", "-q"), "swap at 0xff6")]
)
def test_a_disk_with_a_filesystem_or_swap_space_is_refused_and_left_as_it_is(
    attach: Attach, name: str, made_by: tuple[str, ...], signature: str
) -> None:
    disk = attach(name)
    subprocess.run((*made_by, disk), check=True, capture_output=True)
    before = disk.read_bytes()
    problem = f"{disk.name} is signed ({signature}); if it is empty, `wipefs -a` takes that away"
    assert _claim(name) == problem
    assert disk.read_bytes() == before


@pytest.mark.integration
@pytest.mark.parametrize(
    ("at", "written", "signature"),
    [
        (446, b"\0\0\0\0\x83\0\0\0\0\x08\0\0\0\x10\0\0" + bytes(48) + b"\x55\xaa", "dos at 0x1fe"),
        (SIZE_BYTES - 1024, b"Intel Raid ISM Cfg Sig. 1.3.00", "isw_raid_member at 0x2fffc00"),
    ],
    ids=["partition table", "RAID member"],
)
def test_a_signature_at_either_end_is_enough(
    attach: Attach, name: str, at: int, written: bytes, signature: str
) -> None:
    disk = attach(name)
    with disk.open("r+b") as file:
        file.seek(at)
        file.write(written)
    assert f"{disk.name} is signed ({signature})" in (_claim(name) or "")


@pytest.mark.integration
def test_a_disk_that_is_mounted_is_refused_with_its_mount_point(attach: Attach, name: str, tmp_path: Path) -> None:
    disk, point = attach(name), tmp_path / "mounted"
    point.mkdir()
    subprocess.run(("mkfs.ext4", "-q", disk), check=True)
    subprocess.run(("mount", disk, point), check=True)
    try:
        assert _claim(name) == f"{disk.name} is mounted on {point}"
    finally:
        subprocess.run(("umount", point), check=True)


@pytest.mark.integration
def test_two_loop_devices_of_one_name_and_a_read_only_one_are_refused(attach: Attach, name: str) -> None:
    first = attach(name, "--read-only")
    assert _claim(name) == f"{first.name} is read-only"
    second = attach(f"other/{name}")
    several = ", ".join(sorted((first.name, second.name)))
    assert _claim(name) == f"{several} say that it is theirs, and it must be one device's alone"


@pytest.mark.integration
def test_another_device_under_the_path_is_refused(attach: Attach, name: str, tmp_path: Path) -> None:
    disk, other = attach(name), attach(f"{name}-other")
    for folder in ("sys", "proc", "run"):
        (tmp_path / folder).symlink_to(f"/{folder}")
    (tmp_path / "dev").mkdir()
    os.mknod(tmp_path / "dev" / disk.name, 0o60600, other.stat().st_rdev)
    number = f"{os.major(other.stat().st_rdev)}:{os.minor(other.stat().st_rdev)}"
    assert f"{tmp_path}/dev/{disk.name} is device {number}, not " in _refused(tmp_path, f"loop:{name}")


@pytest.mark.integration
def test_without_wipefs_no_disk_is_taken_for_empty(
    attach: Attach, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach(name)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/wipefs").write_text("#!/bin/sh\necho it broke >&2\nexit 1\n")
    (tmp_path / "bin/wipefs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    assert _claim(name) == "whether it is signed cannot be told: it broke"
