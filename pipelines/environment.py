"""The environment of a measurement: what its number depends on, read from /proc and /sys, and the id of all that.

Equal machines share an id, across a fleet and over time: names, serial numbers, addresses and what changes from minute
to minute are left out, and equal devices are one entry with a count. What cannot be read is absent.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from pipelines import gpus, keys, mounts, tools
from pipelines.records import Environment

Device = Mapping[str, str | int | None]
Fact = str | int | tuple[Device, ...] | None

_MEMORY_STEP_BYTES = 2**28  # equal machines differ by what their firmware reserves; modules come in larger steps
# the unit of /sys/block/*/size whatever the disk's sector is (kernel, Documentation/block/stat.rst)
_SECTOR_BYTES = 512
_BYTES_PER_MBIT = 125_000  # the unit of /sys/class/net/*/speed
_BOOT_PARAMETERS = {
    "mitigations", "isolcpus", "nohz_full", "rcu_nocbs", "nosmt", "intel_iommu", "amd_iommu", "iommu",
    "iommu.passthrough", "hugepages", "hugepagesz", "default_hugepagesz", "transparent_hugepage", "intel_pstate",
    "amd_pstate", "cpufreq.off", "intel_idle.max_cstate", "processor.max_cstate", "idle", "pci", "pcie_aspm",
    "numa_balancing", "tsx",
}  # fmt: skip


def snapshot(
    scratch: Path,
    found: Iterable[tools.Tool] | None = None,
    *,
    root: Path = Path("/"),
    environ: Mapping[str, str] = os.environ,
) -> Environment:
    """The environment of this machine for a benchmark below `scratch`, which need not be there.

    `found` are the machine's tools, where the caller has them already; `root` is where /proc and /sys lie.
    """
    found = tools.find_all(environ).values() if found is None else found
    facts: dict[str, Fact] = {
        **_system(root),
        **_processor(root),
        **_memory(root),
        **_scratch(root, scratch),
        "disks": _alike(_disks(root)),
        "nics": _alike(_nics(root)),
        "tools": tuple({"name": name, "version": version} for name, version in _versions(found)),
        **gpus.facts(environ),
    }
    known = {name: fact for name, fact in facts.items() if fact not in (None, ())}
    return Environment(environment_id=keys.content_id(known), facts=known)


def cpu_facts(cpuinfo: str) -> dict[str, Fact]:
    """Model and number of sockets, cores and threads from /proc/cpuinfo; on Arm, which names no model, ids. Pure."""
    cpus = [dict(_pairs(block, ":")) for block in cpuinfo.split("\n\n") if block.strip()]
    cpus = [cpu for cpu in cpus if "processor" in cpu]
    first = cpus[0] if cpus else {}
    arm = " ".join(first[part] for part in ("CPU implementer", "CPU part", "CPU variant") if part in first)
    sockets = {cpu["physical id"] for cpu in cpus if "physical id" in cpu}
    cores = {(cpu["physical id"], cpu["core id"]) for cpu in cpus if "physical id" in cpu and "core id" in cpu}
    return {
        "cpu": first.get("model name") or (f"Arm {arm}" if arm else None),
        "cpu_microcode": first.get("microcode"),
        "cpu_sockets": len(sockets) or None,
        "cpu_cores": len(cores) or None,
        "cpu_threads": len(cpus) or None,
        "virtualized": "yes" if "hypervisor" in first.get("flags", "").split() else None,
    }


def memory_bytes(meminfo: str) -> int | None:
    """MemTotal of /proc/meminfo to the nearest 256 MiB. Pure."""
    found = re.search(r"MemTotal:\s+(\d+) kB", meminfo)
    return round(int(found[1]) * 1024 / _MEMORY_STEP_BYTES) * _MEMORY_STEP_BYTES if found else None


def boot_parameters(cmdline: str) -> str | None:
    """The kernel parameters that performance depends on; the rest may name disks, addresses or secrets. Pure."""
    return " ".join(sorted(word for word in cmdline.split() if word.partition("=")[0] in _BOOT_PARAMETERS)) or None


def chosen(choices: str | None) -> str | None:
    """`mq-deadline` of `none [mq-deadline] kyber`: how /sys shows which of several is in force. Pure."""
    found = re.search(r"\[(.+?)\]", choices or "")
    return found[1] if found else choices


def _system(root: Path) -> dict[str, Fact]:
    release = dict(_pairs(_text(root / "etc/os-release") or "", "="))
    dmi = root / "sys/class/dmi/id"
    inside = next((name for mark, name in _CONTAINER_MARKS.items() if (root / mark).exists()), None)
    return {
        "kernel": _text(root / "proc/sys/kernel/osrelease"),
        "kernel_build": _text(root / "proc/sys/kernel/version"),
        "boot_parameters": boot_parameters(_text(root / "proc/cmdline") or ""),
        "os": release.get("PRETTY_NAME", "").strip('"') or None,
        "architecture": os.uname().machine,
        "container": inside,
        "machine": " ".join(filter(None, (_text(dmi / "sys_vendor"), _text(dmi / "product_name")))) or None,
        "firmware": _text(dmi / "bios_version"),
    }


_CONTAINER_MARKS = {".dockerenv": "docker", "run/.containerenv": "podman", "run/systemd/container": "systemd"}


def _processor(root: Path) -> dict[str, Fact]:
    cpu = root / "sys/devices/system/cpu"
    governors = {_text(path) for path in cpu.glob("cpufreq/policy*/scaling_governor")} - {None}
    holes = {path.name: _text(path) for path in sorted(cpu.glob("vulnerabilities/*"))}
    status = dict(_pairs(_text(root / "proc/self/status") or "", ":"))
    return {
        **cpu_facts(_text(root / "proc/cpuinfo") or ""),
        "cpu_governor": " ".join(sorted(governor for governor in governors if governor)) or None,
        "cpu_smt": _text(cpu / "smt/control"),
        "cpu_turbo_off": _text(cpu / "intel_pstate/no_turbo"),
        "cpus_allowed": status.get("Cpus_allowed_list"),
        "mitigations": tuple(
            {"name": name, "state": state} for name, state in holes.items() if state != "Not affected"
        ),
    }


def _memory(root: Path) -> dict[str, Fact]:
    nodes = sorted((root / "sys/devices/system/node").glob("node[0-9]*"), key=lambda path: int(path.name[4:]))
    return {
        "memory_bytes": memory_bytes(_text(root / "proc/meminfo") or ""),
        "huge_pages": chosen(_text(root / "sys/kernel/mm/transparent_hugepage/enabled")),
        "numa_nodes": tuple({"cpus": _text(node / "cpulist")} for node in nodes),
    }


def _scratch(root: Path, scratch: Path) -> dict[str, Fact]:
    """The filesystem under `scratch` and, where it has one, the disk under that (of a partition, the whole disk)."""
    mount = mounts.of(scratch, root)
    if mount is None:
        return {}
    facts: dict[str, Fact] = {
        "scratch_filesystem": mount.filesystem,
        "scratch_mount_options": ",".join(mount.options),
    }
    device = (root / "sys/dev/block" / mount.device).resolve()
    disk = device.parent if (device / "partition").exists() else device
    return {**facts, "scratch_disk": (_disk(disk),)} if (disk / "queue").exists() else facts


def _disks(root: Path) -> Iterator[Device]:
    """Fixed disks with hardware behind them, and software RAID; no loop devices, RAM disks or USB sticks."""
    for path in sorted((root / "sys/block").glob("*")):
        real = "/virtual/" not in str(path.resolve()) or path.name.startswith("md")
        if real and _text(path / "removable") != "1" and _text(path / "size") not in (None, "0"):
            yield _disk(path)


def _disk(path: Path) -> Device:
    facts: Device = {
        "model": _text(path / "device/model") or _text(path / "device/vendor"),
        "firmware": _text(path / "device/firmware_rev") or _text(path / "device/rev"),
        "size_bytes": _number(path / "size", times=_SECTOR_BYTES),
        "rotational": _text(path / "queue/rotational"),
        "logical_block_bytes": _number(path / "queue/logical_block_size"),
        "scheduler": chosen(_text(path / "queue/scheduler")),
        "requests": _number(path / "queue/nr_requests"),
        "read_ahead_bytes": _number(path / "queue/read_ahead_kb", times=1024),
        "write_cache": _text(path / "queue/write_cache"),
    }
    return {name: fact for name, fact in facts.items() if fact is not None}


def _nics(root: Path) -> Iterator[Device]:
    """Ports with hardware behind them: no veth or bridge, no SR-IOV virtual function. Then those of InfiniBand."""
    for path in sorted((root / "sys/class/net").glob("*")):
        if (path / "device").exists() and not (path / "device/physfn").exists():
            speed = _number(path / "speed", times=_BYTES_PER_MBIT)
            yield {
                "driver": _link_name(path / "device/driver"),
                "mtu_bytes": _number(path / "mtu"),
                "speed_bytes_per_s": speed if speed is not None and speed > 0 else None,  # -1 where there is no link
            }
    for path in sorted((root / "sys/class/infiniband").glob("*/ports/*")):
        hca = path.parents[1]
        yield {
            "driver": _link_name(hca / "device/driver"),
            "board": _text(hca / "board_id"),
            "firmware": _text(hca / "fw_ver"),
            "link_layer": _text(path / "link_layer"),
            "rate": _text(path / "rate"),
        }


def _alike(devices: Iterable[Device]) -> tuple[Device, ...]:
    """Equal devices as one, with a count, in an order that does not hang on how the kernel named them today."""
    counted = Counter(
        tuple((name, device[name]) for name in sorted(device) if device[name] is not None) for device in devices
    )
    return tuple({**dict(device), "count": count} for device, count in sorted(counted.items(), key=repr))


def _versions(found: Iterable[tools.Tool]) -> list[tuple[str, str]]:
    return sorted({(tool.name, tool.version) for tool in found if tool.version is not None})


def _pairs(text: str, separator: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        name, found, value = line.partition(separator)
        if found:
            yield name.strip(), value.strip()


def _text(path: Path) -> str | None:
    """A file's text; None when it is not there, not readable (as some of /sys are for others than root) or empty."""
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text().strip() or None
    return None


def _number(path: Path, times: int = 1) -> int | None:
    text = _text(path)
    return int(text) * times if text is not None and re.fullmatch(r"-?\d+", text) else None


def _link_name(path: Path) -> str | None:
    with suppress(OSError):
        return path.readlink().name
    return None
