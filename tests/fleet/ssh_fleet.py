"""A fleet whose nodes have sshd and nothing of Airflow, by infra/airflow/ssh.env: keys, hosts, settings of nodes."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pipelines import process, servers
from pipelines.commands.node import variables
from pipelines.servers import Server
from tests import servers as test_servers
from tests.fleet.control import COMPONENTS, ROOT, Fleet
from tests.fleet.ground import Ground
from tests.fleet.machines import Machine
from tests.following import wait_for

_SSHD = """\
ListenAddress {address}
HostKey /mnt/host_key
AuthorizedKeysFile /mnt/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
StrictModes no
UsePAM no
PidFile none
"""
_OWN = 'mount -t tmpfs tmpfs /run && mkdir /run/sshd && mount --bind /mnt/passwd /etc/passwd && exec "$@"'
_COMMAND = f"{Path(sys.executable).with_name('fleetmark')} node --env-file /mnt/node.env"


@dataclass
class Sshd:
    """The nodes' servers, and what the control plane knows of them."""

    fleet: Fleet
    known_hosts: Path
    running: dict[str, Server] = field(default_factory=dict)

    def start(self, node: str) -> None:
        machine = self.fleet.machine(node)
        argv = ("sh", "-c", _OWN, "sh", "/usr/sbin/sshd", "-D", "-e", "-f", "/mnt/sshd_config")
        log = self.fleet.folder / f"sshd-{node}.log"
        self.running[node] = machine.start(f"sshd-{node}", argv, {"PATH": os.defpath}, log)
        wait_for(lambda: test_servers.listens(22, machine.address) or None)

    def jobs(self, node: str) -> list[str]:
        """What is left of jobs in the home of the user who runs them."""
        return sorted(str(path) for path in (self.fleet.machine(node).disk / "home").glob(".fleetmark-jobs/*"))


@contextmanager
def fleet(ground: Ground, suites: dict[str, str]) -> Iterator[Sshd]:
    """A control plane that starts the nodes' tasks over SSH; no sshd runs yet."""
    home = ground.folder / "controller"
    (home / ".ssh").mkdir(parents=True)
    key, known_hosts = home / "key", home / ".ssh/known_hosts"
    _keygen(key)
    hosts = []
    for machine in ground.network.machines:
        for name in ("home", "lock", "nvme"):
            (machine.disk / name).mkdir()
        _keygen(machine.disk / "host_key")
        (machine.disk / "authorized_keys").write_text(key.with_suffix(".pub").read_text())
        (machine.disk / "sshd_config").write_text(_SSHD.format(address=machine.address))
        (machine.disk / "passwd").write_text(
            "root:x:0:0::/mnt/home:/bin/bash\nsshd:x:101:65534::/run/sshd:/bin/false\n"
        )
        hosts.append(f"{machine.address} {(machine.disk / 'host_key.pub').read_text()}")
    known_hosts.write_text("".join(hosts))
    connection = {"conn_type": "ssh", "login": "root", "extra": {"key_file": str(key), "look_for_keys": "false"}}
    over = {
        **variables(ROOT / "infra/airflow/ssh.env"),
        "HOME": str(home),
        "AIRFLOW__FLEETMARK__NODE_COMMAND": _COMMAND,
        "AIRFLOW__FLEETMARK__SSH_POLL_S": "1",
        "AIRFLOW_CONN_FLEETMARK_NODES": json.dumps(connection),
    }
    with ground.fleet(suites, over=over, components=(*COMPONENTS, "triggerer")) as made:
        for machine in ground.network.machines:
            write_settings(machine, made.environ)
        sshd = Sshd(made, known_hosts)
        try:
            yield sshd
        finally:
            servers.stop(tuple(sshd.running.values()), grace_s=5.0)
            for machine in ground.network.machines:
                machine.power_off()


def write_settings(machine: Machine, environ: Mapping[str, str], **other: str) -> None:
    """The node's own settings and credentials, where only it finds them."""
    shared = ("FLEETMARK_STORE", "FLEETMARK_S3_ENDPOINT", "FLEETMARK_STORE_RETRY_S", "AWS_")
    lines = {
        **{name: value for name, value in environ.items() if name.startswith(shared)},
        "FLEETMARK_NODE": machine.name,
        "FLEETMARK_HOME": "/mnt",
        "FLEETMARK_LEASE_DIR": "/mnt/lock",
        "PATH": f"/mnt/bin:{environ['PATH']}",
        **other,
    }
    (machine.disk / "node.env").write_text("".join(f"{name}='{value}'\n" for name, value in lines.items()))


def _keygen(path: Path) -> None:
    made = process.run(("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)), timeout_s=60)
    assert made.exit_status == 0, made.stderr
