"""The environment: what is read of a machine, that equal machines share an id, and that a change makes another."""

from pathlib import Path

import pytest

from pipelines import environment, gpus, mounts
from pipelines.tools import Tool

SAMPLES = Path(__file__).parents[1] / "samples/environment"
FIO = (Tool("fio", "3.33"),)


def _sample(name: str) -> str:
    return (SAMPLES / name).read_text()


def _write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def _device(root: Path, link: str, target: str) -> None:
    (root / link).parent.mkdir(parents=True, exist_ok=True)
    (root / link).symlink_to(root / target)


def _disk(root: Path, name: str, device: str, **queue: str) -> None:
    """A disk as /sys shows one, with one partition."""
    path = f"sys/devices/pci0/nvme/{name}"
    _write(
        root,
        {
            f"{path}/size": "7501476528\n",
            f"{path}/removable": "0\n",
            f"{path}/device/model": "SAMSUNG MZQL23T8HCLS-00A07              \n",
            f"{path}/device/firmware_rev": "GDC5602Q\n",
            f"{path}/device/serial": f"S64HNE0{name}\n",
            f"{path}/queue/rotational": "0\n",
            f"{path}/queue/scheduler": "[none] mq-deadline kyber \n",
            f"{path}/queue/read_ahead_kb": "128\n",
            f"{path}/{name}p1/partition": "1\n",
            **{f"{path}/queue/{key}": value for key, value in queue.items()},
        },
    )
    _device(root, f"sys/block/{name}", path)
    _device(root, f"sys/dev/block/{device}", f"{path}/{name}p1")


def _nic(root: Path, name: str, driver: str, speed: str) -> None:
    path = f"sys/devices/pci0/{name}"
    _write(root, {f"{path}/mtu": "9000\n", f"{path}/speed": speed, f"{path}/address": f"02:fc:{name}\n"})
    (root / path / "device").mkdir()
    _device(root, f"{path}/device/driver", f"sys/bus/pci/drivers/{driver}")
    _device(root, f"sys/class/net/{name}", path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with two equal NVMe disks and two ports, as its /proc and /sys show it."""
    root = tmp_path / "machine"
    _write(
        root,
        {
            "etc/os-release": 'PRETTY_NAME="Ubuntu 24.04.1 LTS"\nNAME="Ubuntu"\n',
            "proc/cmdline": "root=UUID=9d2c password=hunter2 mitigations=off nohz_full=1-63\n",
            "proc/cpuinfo": _sample("linux-6.18-kvm-cpuinfo.txt"),
            "proc/meminfo": _sample("linux-6.18-kvm-meminfo.txt"),
            "proc/self/mountinfo": "27 1 254:0 / / rw - ext4 /dev/vda rw\n30 27 259:1 / /mnt/nvme rw - xfs /dev/x rw\n",
            "proc/self/status": "Name:\tx\nCpus_allowed_list:\t0-1\n",
            "proc/sys/kernel/osrelease": "6.8.0-45-generic\n",
            "proc/uptime": "1.0 1.0\n",
            "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "performance\n",
            "sys/devices/system/cpu/cpufreq/policy1/scaling_governor": "performance\n",
            "sys/devices/system/cpu/vulnerabilities/meltdown": "Not affected\n",
            "sys/devices/system/cpu/vulnerabilities/retbleed": "Vulnerable\n",
            "sys/devices/system/node/node0/cpulist": "0-1\n",
            "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
            "sys/devices/virtual/block/loop0/size": "8\n",
            "sys/devices/virtual/net/veth12ab/mtu": "1500\n",
        },
    )
    _disk(root, "nvme0n1", "259:1")
    _disk(root, "nvme1n1", "259:3")
    _nic(root, "eth0", "mlx5_core", "400000\n")
    _nic(root, "eth1", "mlx5_core", "-1\n")
    _device(root, "sys/block/loop0", "sys/devices/virtual/block/loop0")
    _device(root, "sys/class/net/veth12ab", "sys/devices/virtual/net/veth12ab")
    return root


def _id(root: Path) -> str:
    return environment.snapshot(Path("/mnt/nvme/scratch"), FIO, root=root, environ={}).environment_id


DISK = {
    "model": "SAMSUNG MZQL23T8HCLS-00A07",
    "firmware": "GDC5602Q",
    "size_bytes": 3_840_755_982_336,
    "rotational": "0",
    "scheduler": "none",
    "read_ahead_bytes": 131_072,
}


def test_machine_is_read_from_proc_and_sys(root: Path) -> None:
    facts = dict(environment.snapshot(Path("/mnt/nvme/scratch"), FIO, root=root, environ={}).facts)
    del facts["architecture"]  # this machine's, not the sample's
    assert facts == {
        "kernel": "6.8.0-45-generic",
        "boot_parameters": "mitigations=off nohz_full=1-63",
        "os": "Ubuntu 24.04.1 LTS",
        "cpu": "Intel(R) Xeon(R) Processor",
        "cpu_microcode": "0x1",
        "cpu_sockets": 1,
        "cpu_cores": 2,
        "cpu_threads": 2,
        "cpu_governor": "performance",
        "cpus_allowed": "0-1",
        "virtualized": "yes",
        "mitigations": ({"name": "retbleed", "state": "Vulnerable"},),
        "memory_bytes": 94 * 2**28,
        "huge_pages": "madvise",
        "numa_nodes": ({"cpus": "0-1"},),
        "scratch_filesystem": "xfs",
        "scratch_mount_options": "rw",
        "scratch_disk": (DISK,),
        "disks": ({**DISK, "count": 2},),
        "nics": (
            {"driver": "mlx5_core", "mtu_bytes": 9000, "count": 1},
            {"driver": "mlx5_core", "mtu_bytes": 9000, "speed_bytes_per_s": 50_000_000_000, "count": 1},
        ),
        "tools": ({"name": "fio", "version": "3.33"},),
    }


def test_secrets_of_the_kernel_command_line_and_serial_numbers_are_left_out(root: Path) -> None:
    text = environment.snapshot(Path("/mnt/nvme"), FIO, root=root, environ={}).model_dump_json()
    assert not any(word in text for word in ("hunter2", "9d2c", "S64HNE0", "02:fc"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("proc/sys/kernel/osrelease", "6.8.0-46-generic\n"),
        ("proc/cmdline", "mitigations=auto\n"),
        ("sys/devices/system/cpu/cpufreq/policy1/scaling_governor", "powersave\n"),
        ("sys/devices/system/cpu/vulnerabilities/meltdown", "Mitigation: PTI\n"),
        ("sys/devices/pci0/nvme/nvme1n1/device/firmware_rev", "GDC5902Q\n"),
        ("sys/devices/pci0/nvme/nvme0n1/queue/scheduler", "none [mq-deadline]\n"),
        ("sys/devices/pci0/eth0/speed", "100000\n"),
        ("proc/self/mountinfo", "30 27 259:1 / /mnt/nvme rw,sync - xfs /dev/x rw\n"),
    ],
)
def test_change_that_matters_to_a_number_changes_the_id(name: str, text: str, root: Path) -> None:
    before = _id(root)
    _write(root, {name: text})
    assert _id(root) != before


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("proc/uptime", "90000.0 1.0\n"),
        ("proc/cmdline", "root=UUID=77aa mitigations=off nohz_full=1-63\n"),
        ("sys/devices/pci0/nvme/nvme0n1/device/serial", "S64HNE0OTHER\n"),
        ("sys/devices/pci0/eth0/address", "02:fc:00:00:00:09\n"),
        ("sys/devices/virtual/net/veth12ab/mtu", "1400\n"),
    ],
)
def test_what_differs_between_equal_machines_does_not_change_the_id(name: str, text: str, root: Path) -> None:
    before = _id(root)
    _write(root, {name: text})
    assert _id(root) == before


def test_memory_that_firmware_reserves_does_not_change_the_id(root: Path) -> None:
    before = _id(root)
    _write(root, {"proc/meminfo": "MemTotal:       24670000 kB\nMemFree: 1 kB\n"})
    assert _id(root) == before


def test_order_in_which_the_kernel_found_the_disks_does_not_change_the_id(root: Path) -> None:
    _disk(root, "nvme2n1", "259:5", scheduler="[mq-deadline]")
    before = _id(root)
    (root / "sys/block/nvme0n1").rename(root / "sys/block/nvme9n1")
    assert _id(root) == before


def test_other_tool_version_changes_the_id(root: Path) -> None:
    newer = environment.snapshot(Path("/mnt/nvme/scratch"), (Tool("fio", "3.36"),), root=root, environ={})
    assert newer.environment_id != _id(root)


def test_missing_sources_are_absent_facts_and_no_error(tmp_path: Path) -> None:
    _write(tmp_path, {"proc/self/mountinfo": ""})
    facts = environment.snapshot(Path("/mnt"), (), root=tmp_path, environ={}).facts
    assert set(facts) == {"architecture"}


def test_this_machine_keeps_its_id(tmp_path: Path) -> None:
    first = environment.snapshot(tmp_path / "scratch", FIO)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch/data").write_bytes(b"x" * 2**20)
    assert environment.snapshot(tmp_path / "scratch", FIO) == first
    assert {"kernel", "cpu_threads", "memory_bytes", "scratch_filesystem"} <= set(first.facts)


def test_sockets_and_cores_are_counted_across_sockets() -> None:
    threads = [
        f"processor: {4 * s + 2 * c + t}\nmodel name: X\nphysical id: {s}\ncore id: {c}\nflags: fpu"
        for s in range(2)
        for c in range(2)
        for t in range(2)
    ]
    facts = environment.cpu_facts("\n\n".join(threads))
    assert (facts["cpu_sockets"], facts["cpu_cores"], facts["cpu_threads"]) == (2, 4, 8)
    assert facts["virtualized"] is None


def test_arm_processor_is_named_by_its_ids() -> None:
    text = "processor\t: 0\nCPU implementer\t: 0x41\nCPU variant\t: 0x0\nCPU part\t: 0xd4f\n\nprocessor\t: 1\n"
    facts = environment.cpu_facts(text)
    assert (facts["cpu"], facts["cpu_threads"], facts["cpu_sockets"]) == ("Arm 0x41 0xd4f 0x0", 2, None)


def test_longest_and_last_mount_holds_a_path() -> None:
    table = mounts.parse(
        _sample("linux-6.18-kvm-mountinfo.txt")
        + "60 27 0:50 / /mnt/my\\040disk rw,noatime shared:1 master:2 - tmpfs none rw,size=1m\n"
        + "61 60 0:51 / /mnt/my\\040disk ro - ramfs none rw\n"
    )
    found = {path: mounts.containing(table, path) for path in ("/mnt/my disk/x", "/mnt/my diskette", "/dev/shm/x", "/")}
    assert {path: mount and mount.filesystem for path, mount in found.items()} == {
        "/mnt/my disk/x": "ramfs",
        "/mnt/my diskette": "ext4",
        "/dev/shm/x": "tmpfs",
        "/": "ext4",
    }
    assert table[-2].options == ("noatime", "rw", "size=1m")


def test_equal_gpus_are_counted_and_values_without_a_number_are_absent() -> None:
    h100 = {"model": "NVIDIA H100 80GB HBM3", "firmware": "96.00.74.00.01", "memory_bytes": 81559 * 2**20}
    known = {**h100, "ecc": "Enabled", "mig": "Disabled"}
    assert gpus.parse(_sample("nvidia-smi-550-synth-4xh100.csv")) == {
        "gpu_driver": "550.90.07",
        "gpus": (
            {**known, "power_limit_w": 500, "count": 1},
            {**known, "power_limit_w": 700, "count": 2},
            {"model": h100["model"], "firmware": h100["firmware"], "mig": "Disabled", "count": 1},
        ),
    }


def _nvidia_smi(folder: Path, script: str) -> dict[str, str]:
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)
    (folder / "libnvidia-ml.so.1").touch()  # no library: NVML is not there, whatever this machine has
    return {"PATH": f"{folder}:/usr/bin:/bin", "LD_LIBRARY_PATH": str(folder)}


def test_gpus_are_asked_of_nvidia_smi(tmp_path: Path) -> None:
    environ = _nvidia_smi(tmp_path, f"cat {SAMPLES}/nvidia-smi-550-synth-4xh100.csv")
    assert environment.snapshot(tmp_path, FIO, environ=environ).facts["gpu_driver"] == "550.90.07"


def test_machine_without_nvidia_smi_has_no_gpu_facts(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").touch()
    assert gpus.facts({"PATH": str(tmp_path), "LD_LIBRARY_PATH": str(tmp_path)}) == {}


def test_nvidia_smi_that_fails_is_not_a_machine_without_gpus(tmp_path: Path) -> None:
    said = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    environ = _nvidia_smi(tmp_path, f'echo "{said}"; exit 9')
    assert gpus.facts(environ) == {"gpu_problem": f"nvidia-smi ended with status 9 and said: {said}"}


@pytest.mark.parametrize("text", ["", "\n", "No devices were found\n", "a, b\n1\n", "name, driver_version\n"])
def test_answer_without_gpus_gives_none(text: str) -> None:
    assert gpus.parse(text) == {"gpu_driver": None, "gpus": ()}
