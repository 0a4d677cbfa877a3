"""Real S3 servers for tests: each in a directory of its own, on free loopback ports, ended by its own process id."""

import os
import select
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipelines import process, servers
from pipelines.servers import Server

ACCESS_KEY, SECRET_KEY = "testing-key", "testing-secret-0123456789"
_UP_WITHIN_S = 60.0
_STOPS_WITHIN_S = 1.0


@dataclass(frozen=True)
class S3:
    """A running S3 server."""

    endpoint: str
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY

    @property
    def environ(self) -> dict[str, str]:
        """The credentials as the AWS SDKs read them."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def new_bucket(self) -> str:
        import boto3
        from botocore.config import Config

        name = f"test-{uuid.uuid4().hex[:12]}"
        boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}),
        ).create_bucket(Bucket=name)
        return name


def free_port(host: str = "127.0.0.1") -> int:
    """A port that the kernel had free a moment ago."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@contextmanager
def moto(folder: Path) -> Iterator[S3]:
    """moto's server: in memory, honours If-None-Match, takes any credentials."""
    port = free_port()
    command = (sys.executable, str(Path(__file__).with_name("moto_server.py")), str(port))
    with running(folder, {"moto": command}, lambda: listens(port)):
        yield S3(f"http://127.0.0.1:{port}")


@contextmanager
def rclone(folder: Path) -> Iterator[S3]:
    """`rclone serve s3`: a real server that ignores If-None-Match, so that every writer of a key wins."""
    port = free_port()
    (folder / "buckets").mkdir()
    command = (
        str(Path(sys.executable).with_name("rclone")), "serve", "s3", "--config", "", "--addr", f"127.0.0.1:{port}",
        "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", "--vfs-cache-mode", "off", str(folder / "buckets"),
    )  # fmt: skip
    with running(folder, {"rclone": command}, lambda: listens(port)):
        yield S3(f"http://127.0.0.1:{port}")


_CEPH_CONF = """\
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{mon_port}
public addr = 127.0.0.1
ms bind ipv6 = false
run dir = {folder}
admin socket = {folder}/$name.asok
crash dir = {folder}
log file =
keyring = {folder}/keyring
setuser match path = /nonexistent
auth allow insecure global id reclaim = false
mon data = {folder}/mon
mon data avail warn = 2
mon data avail crit = 1
mon allow pool size one = true
mon max pg per osd = 1000
paxos propose interval = 0.05
paxos min wait = 0.01
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 2147483648
osd class load list = *
osd class default list = *
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pg autoscale mode = off
[client.rgw.a]
rgw data = {folder}/rgw
rgw frontends = beast endpoint={host}:{port}
rgw enable apis = s3, admin
rgw enable ops log = false
rgw enable usage log = false
rgw thread pool size = 64
rgw rados pool pg num min = 4
"""
"""One node with what it needs to come up in seconds: one monitor, one store in memory, one gateway."""

_CEPH_USERS = {
    "mon.": ("mon", "allow *"),
    "client.admin": ("mon", "allow *", "osd", "allow *", "mgr", "allow *"),
    "client.rgw.a": ("mon", "allow rw", "osd", "allow rwx", "mgr", "allow rw"),
    "osd.0": ("mon", "allow profile osd", "osd", "allow *"),
}


@contextmanager
def ceph(folder: Path, host: str = "127.0.0.1") -> Iterator[S3]:
    """A Ceph cluster of one node and its S3 gateway: checks signatures, and is what many fleets run."""
    port, mon_port = free_port(host), free_port()
    fsid, osd = uuid.uuid4(), uuid.uuid4()
    conf, keyring = folder / "ceph.conf", str(folder / "keyring")
    conf.write_text(_CEPH_CONF.format(folder=folder, fsid=fsid, host=host, port=port, mon_port=mon_port))
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir()
    Path(keyring).touch()
    for user, caps in _CEPH_USERS.items():
        pairs = [word for cap in zip(caps[::2], caps[1::2], strict=True) for word in ("--cap", *cap)]
        _do("ceph-authtool", keyring, "--gen-key", "-n", user, *pairs)
    here, ceph_conf = f"[v2:127.0.0.1:{mon_port}]", ("-c", str(conf))
    monmap = str(folder / "monmap")
    _do("monmaptool", "--create", "--fsid", str(fsid), "--addv", "a", here, monmap)
    _do("ceph-mon", "-i", "a", "--mkfs", "--keyring", keyring, "--monmap", monmap, *ceph_conf)
    with running(folder, {"mon": ("ceph-mon", "-f", "-i", "a", *ceph_conf)}, lambda: listens(mon_port)):
        _do("ceph", *ceph_conf, "osd", "new", str(osd))
        _do("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", str(osd), *ceph_conf)
        _do("ceph", *ceph_conf, "osd", "crush", "add", "osd.0", "1", "root=default", "host=here")
        gateway = {
            "osd": ("ceph-osd", "-f", "-i", "0", *ceph_conf),
            "rgw": ("radosgw", "-f", "-n", "client.rgw.a", *ceph_conf),
        }
        with running(folder, gateway, lambda: listens(port, host)):
            account = ("--uid", "t", "--display-name", "t", "--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY)
            _do("radosgw-admin", *ceph_conf, "user", "create", *account)
            yield S3(f"http://{host}:{port}")


def _do(*argv: str) -> None:
    done = process.run(argv, timeout_s=_UP_WITHIN_S)
    assert done.exit_status == 0, f"{argv}: {done.stderr or done.stdout}"


@contextmanager
def running(folder: Path, commands: Mapping[str, tuple[str, ...]], up: Callable[[], bool]) -> Iterator[None]:
    """Run the servers side by side until the block ends; enters it once `up` says so."""
    started: list[Server] = []
    try:
        for name, argv in commands.items():
            started.append(servers.start(name, argv, log=folder / f"{name}.log", environ=os.environ))
        deadline = time.monotonic() + _UP_WITHIN_S
        while not up():
            if ended := servers.first_to_end(started, timeout_s=0.02):
                raise AssertionError(f"{ended.name} ended: {ended.log.read_text()[-2000:]}")
            assert time.monotonic() < deadline, f"{', '.join(commands)} not up within {_UP_WITHIN_S:.0f} s"
        yield
    finally:
        servers.stop(started, grace_s=_STOPS_WITHIN_S)


def listens(port: int, host: str = "127.0.0.1") -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


@contextmanager
def interfering(target: S3, first: Sequence[bytes], port: int | None = None, after_s: float = 0.0) -> Iterator[S3]:
    """The server behind a proxy that answers the first connections with these bytes, then passes on what comes.

    No bytes: the connection is closed. The proxy listens `after_s` from now; before that, connections are refused.
    """
    port, stop = port or free_port(), threading.Event()
    host, _, target_port = target.endpoint.removeprefix("http://").partition(":")
    proxy = threading.Thread(target=_interfere, args=(port, (host, int(target_port)), list(first), after_s, stop))
    proxy.start()
    try:
        yield S3(f"http://127.0.0.1:{port}", target.access_key, target.secret_key)
    finally:
        stop.set()
        proxy.join()


def _interfere(port: int, target: tuple[str, int], first: list[bytes], after_s: float, stop: threading.Event) -> None:
    if stop.wait(after_s):
        return
    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.settimeout(0.05)
        passing: list[threading.Thread] = []
        while not stop.is_set():
            try:
                client, _ = listener.accept()
            except TimeoutError:
                continue
            if not first:
                passing.append(threading.Thread(target=_pass_on, args=(client, target, stop)))
                passing[-1].start()
                continue
            with client:
                client.settimeout(5)
                if answer := first.pop(0):
                    client.recv(65536)
                    client.sendall(answer)
        for thread in passing:
            thread.join()


def _pass_on(client: socket.socket, target: tuple[str, int], stop: threading.Event) -> None:
    with client, socket.create_connection(target) as server:
        other = {client: server, server: client}
        while not stop.is_set():
            for ready in select.select([client, server], [], [], 0.05)[0]:
                data = ready.recv(65536)
                if not data:
                    return
                other[ready].sendall(data)
