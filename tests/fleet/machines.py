"""Machines of a fleet on this one: network namespaces on a bridge, each with its own address, host name and /mnt."""

import itertools
import os
import random
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pipelines import process, servers
from pipelines.servers import Server

_ENTER = 'hostname "$1" && mount --bind "$2" /mnt && shift 2 && exec "$@"'


@dataclass(frozen=True)
class Machine:
    """A place where commands run as if on a machine of their own. What lies in `disk` is its /mnt."""

    name: str
    address: str
    namespace: str
    disk: Path

    def command(self, *argv: str) -> tuple[str, ...]:
        """`argv` on this machine; the process that is started becomes it."""
        inside = ("nsenter", f"--net=/run/netns/{self.namespace}", "sh", "-c", _ENTER, "sh", self.name, str(self.disk))
        return ("unshare", "--mount", "--uts", *inside, *argv)

    def start(self, name: str, argv: tuple[str, ...], environ: Mapping[str, str], log: Path) -> Server:
        return servers.start(name, self.command(*argv), log=log, environ=environ)

    def cut_off(self) -> None:
        """Nothing reaches it any more, and nothing comes from it."""
        _ip("-n", self.namespace, "link", "set", "eth0", "down")

    def plug_in(self) -> None:
        _ip("-n", self.namespace, "link", "set", "eth0", "up")

    def lose(self, address: str) -> None:
        """It finds no way to that address any more, and says so at once."""
        _ip("-n", self.namespace, "route", "add", "unreachable", f"{address}/32")

    def find(self, address: str) -> None:
        _ip("-n", self.namespace, "route", "delete", "unreachable", f"{address}/32")

    def slow_down(self) -> None:
        """Its network carries 20 Mbit/s in either direction, and no more."""
        for link in (("ip", "netns", "exec", self.namespace, "tc", "qdisc", "add", "dev", "eth0"),
                     ("tc", "qdisc", "add", "dev", self.namespace)):  # fmt: skip
            _done((*link, "root", "tbf", "rate", "20mbit", "burst", "64kbit", "latency", "50ms"))

    def speed_up(self) -> None:
        _done(("ip", "netns", "exec", self.namespace, "tc", "qdisc", "delete", "dev", "eth0", "root"))
        _done(("tc", "qdisc", "delete", "dev", self.namespace, "root"))

    def processes(self, name: str = "") -> tuple[int, ...]:
        """The ids of the processes that run on it, or of those of that name."""
        own = Path(f"/run/netns/{self.namespace}").stat().st_ino
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended meanwhile, or is about to
                if (entry / "ns/net").stat().st_ino == own and name in ("", (entry / "comm").read_text().strip()):
                    found.append(int(entry.name))
        return tuple(found)

    def measuring(self) -> tuple[int, ...]:
        """The ids of the fio processes that measure; before that, fio is asked for its version."""
        found = []
        for pid in self.processes("fio"):
            with suppress(OSError):
                if b"--name=" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return tuple(found)

    def power_off(self) -> None:
        """Everything that runs on it is killed."""
        while left := self.processes():
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@dataclass(frozen=True)
class Network:
    """The bridge, whose addresses are where the machines find the control plane, and the object store."""

    address: str
    machines: tuple[Machine, ...]
    store_address: str = ""


@contextmanager
def network(names: tuple[str, ...], folder: Path) -> Iterator[Network]:
    """A bridge of this machine with a network namespace for each name."""
    bridge, subnet = _free_bridge()
    host, store = f"{subnet}.1", f"{subnet}.2"
    made = tuple(
        Machine(name, f"{subnet}.{number}", f"{bridge}-{number}", folder / name)
        for number, name in enumerate(names, start=11)
    )
    try:
        _ip("link", "add", bridge, "type", "bridge")
        for address in (host, store):
            _ip("address", "add", f"{address}/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for machine in made:
            machine.disk.mkdir(parents=True)
            _plug(machine, bridge)
        yield Network(host, made, store)
    finally:
        for machine in made:
            process.run(("ip", "link", "delete", machine.namespace), timeout_s=30)  # a namespace ends when it likes
            process.run(("ip", "netns", "delete", machine.namespace), timeout_s=30)
        process.run(("ip", "link", "delete", bridge), timeout_s=30)


def _plug(machine: Machine, bridge: str) -> None:
    outside = machine.namespace
    _ip("netns", "add", machine.namespace)
    _ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", machine.namespace)
    _ip("link", "set", outside, "master", bridge, "up")
    _ip("-n", machine.namespace, "link", "set", "lo", "up")
    _ip("-n", machine.namespace, "address", "add", f"{machine.address}/24", "dev", "eth0")
    _ip("-n", machine.namespace, "link", "set", "eth0", "up")


def _free_bridge() -> tuple[str, str]:
    """A name and the first three bytes of a network that nobody else here uses; names of links have 15 letters."""
    taken = {path.name for path in Path("/sys/class/net").iterdir()}
    chance = random.Random(os.getpid())
    for _ in itertools.repeat(None, 1000):
        second, third = chance.randrange(64, 128), chance.randrange(256)
        name = f"fm{second}-{third}"
        if name not in taken:
            return name, f"10.{second}.{third}"
    raise AssertionError("no free bridge")


def _ip(*argv: str) -> None:
    _done(("ip", *argv))


def _done(argv: tuple[str, ...]) -> None:
    done = process.run(argv, timeout_s=30)
    assert done.exit_status == 0, f"{' '.join(argv)}: {done.stderr}"


def have_namespaces() -> bool:
    """Whether this is root on a system that lets it make them."""
    if os.getuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"fm-try-{os.getpid()}"
    if process.run(("ip", "netns", "add", name), timeout_s=30).exit_status:
        return False
    _ip("netns", "delete", name)
    return True
