"""The guard: where benchmarks may write, how much, and that nothing of them stays."""

import json
import os
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from pipelines import guard, process_groups
from pipelines.errors import FleetmarkError, NotEnoughSpace, ScratchRefused, SizeCapExceeded
from pipelines.mounts import Mount as MountRecord
from pipelines.records import Node
from tests import make
from tests.node.conftest import Mount
from tests.node.other_user import as_nobody


@pytest.fixture
def node() -> Node:
    return make.node(free_floor_bytes=0)


def _files(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_relative_scratch_is_made_below_home(node: Node, tmp_path: Path) -> None:
    with guard.scratch(node, tmp_path, "job-1", 1) as scratch:
        assert scratch.path == tmp_path / "scratch/fleetmark-job-1"
        assert stat.S_IMODE(scratch.path.stat().st_mode) == 0o700
        assert _files(scratch.path) == []
    assert _files(tmp_path / "scratch") == []


def test_absolute_scratch_that_is_missing_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(ScratchRefused, match="it is not there; is its disk mounted"):
        guard.root_of(make.node(scratch=str(tmp_path / "gone")), tmp_path)
    assert _files(tmp_path) == []


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/dev",
        "/dev/shm",
        "/dev/nvme0n1",
        "/proc/self",
        "/sys/kernel",
        "/etc",
        "/usr/local",
        "/boot",
        "/bin",
        "/tmp/..",
    ],
)
def test_places_of_the_system_are_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(ScratchRefused):
        guard.root_of(make.node(scratch=path), tmp_path)


@pytest.mark.parametrize("target", ["/", "/dev", "/etc", "/proc"])
def test_links_to_places_of_the_system_are_refused(target: str, tmp_path: Path) -> None:
    (tmp_path / "scratch").symlink_to(target)
    with pytest.raises(ScratchRefused, match=f"leads to {target}: "):
        guard.root_of(make.node(), tmp_path)


def test_relative_scratch_cannot_climb_into_the_system(tmp_path: Path) -> None:
    up = "/".join([".."] * len(tmp_path.parts))
    with pytest.raises(ScratchRefused, match="/etc belongs to the system"):
        guard.root_of(make.node(scratch=f"{up}/etc"), tmp_path)


def test_link_to_a_data_disk_is_followed_once(node: Node, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "scratch").symlink_to(tmp_path / "disk")
    with guard.scratch(node, tmp_path, "job-1", 1) as scratch:
        assert scratch.path.parent == tmp_path / "disk"


def test_device_filesystem_is_refused_wherever_it_is_mounted() -> None:
    mounted = MountRecord(point="/mnt/root/dev", device="0:6", filesystem="devtmpfs", options=("rw",))
    assert guard.refusal(Path("/mnt/root/dev/x"), mounted) == "devtmpfs is not a filesystem to write to"
    assert guard.refusal(Path("/mnt/devices"), mounted.model_copy(update={"filesystem": "ext4"})) is None


def test_file_in_place_of_the_scratch_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scratch").write_text("")
    with pytest.raises(ScratchRefused):
        guard.root_of(make.node(), tmp_path)
    with pytest.raises(ScratchRefused, match="it is not a directory"):
        guard.root_of(make.node(scratch=str(tmp_path / "scratch")), tmp_path)


def test_loop_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scratch").symlink_to(tmp_path / "scratch")
    with pytest.raises(ScratchRefused):
        guard.root_of(make.node(scratch=str(tmp_path / "scratch")), tmp_path)


def test_read_only_scratch_is_refused(mount: Mount, tmp_path: Path) -> None:
    point = mount("ro", "size=1m,ro")
    with pytest.raises(ScratchRefused, match="read-only"):
        guard.root_of(make.node(scratch=str(point)), tmp_path)


def test_scratch_of_somebody_else_is_refused(public_dir: Path) -> None:
    (public_dir / "scratch").mkdir(mode=0o755)
    with pytest.raises(ScratchRefused, match="not writable for user 65534"):
        as_nobody(guard.root_of, make.node(scratch=str(public_dir / "scratch")), public_dir)


@pytest.mark.parametrize(
    ("needed", "free", "error"),
    [(100, 150, None), (101, 10_000, SizeCapExceeded), (100, 149, NotEnoughSpace), (0, 49, NotEnoughSpace)],
)
def test_size_cap_and_free_space_floor_are_exact(needed: int, free: int, error: type[FleetmarkError] | None) -> None:
    node = make.node(scratch_cap_bytes=100, free_floor_bytes=50)
    if error is None:
        guard.check_space(Path("/mnt"), node, needed, free)
        return
    with pytest.raises(error):
        guard.check_space(Path("/mnt"), node, needed, free)


def test_free_space_is_that_of_the_scratch_filesystem(mount: Mount, tmp_path: Path) -> None:
    node = make.node(scratch=str(mount("small", "size=1m")), free_floor_bytes=2**19)
    with guard.scratch(node, tmp_path, "job-1", 2**18):
        pass
    with pytest.raises(NotEnoughSpace, match="has 1048576 B free"), guard.scratch(node, tmp_path, "job-1", 2**20):
        pass


def test_full_filesystem_is_a_refusal(mount: Mount, tmp_path: Path) -> None:
    point = mount("full", "size=1m,nr_inodes=1")
    full = guard.scratch(make.node(scratch=str(point), free_floor_bytes=0), tmp_path, "job-1", 1)
    with pytest.raises(ScratchRefused, match="No space left"):
        full.__enter__()


def test_directory_is_removed_when_the_benchmark_raises(node: Node, tmp_path: Path) -> None:
    def benchmark() -> None:
        with guard.scratch(node, tmp_path, "job-1", 1) as scratch:
            (scratch.path / "deep/er").mkdir(parents=True)
            (scratch.path / "deep/er/data").write_bytes(b"x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        benchmark()
    assert _files(tmp_path / "scratch") == []


def test_removal_follows_no_link_out_of_the_directory(node: Node, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/data").write_text("kept")
    with guard.scratch(node, tmp_path, "job-1", 1) as scratch:
        (scratch.path / "link").symlink_to(tmp_path / "precious")
        (scratch.path / "hard").hardlink_to(tmp_path / "precious/data")
    assert (tmp_path / "precious/data").read_text() == "kept"
    assert _files(tmp_path / "scratch") == []


def test_two_benchmarks_never_share_a_directory(node: Node, tmp_path: Path) -> None:
    second = guard.scratch(node, tmp_path, "job-1", 1)
    with (
        guard.scratch(node, tmp_path, "job-1", 1),
        pytest.raises(ScratchRefused, match="another benchmark works there"),
    ):
        second.__enter__()


def test_direct_io_is_probed_where_the_benchmark_will_run(node: Node, tmp_path: Path) -> None:
    with guard.scratch(node, tmp_path, "job-1", 1) as scratch:
        written = subprocess.run(
            ("dd", "if=/dev/zero", f"of={scratch.path}/x", "bs=4096", "count=1", "oflag=direct"),
            check=False,
            capture_output=True,
        )
        assert scratch.direct_io is (written.returncode == 0)


def test_filesystem_is_named(mount: Mount, tmp_path: Path) -> None:
    node = make.node(scratch=str(mount("ram", "size=1m")), free_floor_bytes=0)
    with guard.scratch(node, tmp_path, "job-1", 1) as scratch:
        assert scratch.filesystem == "tmpfs"


def _leftover(tmp_path: Path, name: str = "fleetmark-old") -> Path:
    path = tmp_path / "scratch" / name
    path.mkdir(parents=True)
    (path / "data").write_bytes(b"x" * 100)
    return path


def test_leftovers_are_reclaimed_and_nothing_else(node: Node, tmp_path: Path) -> None:
    old = _leftover(tmp_path)
    said: list[str] = []
    (tmp_path / "scratch/mine").mkdir()
    (tmp_path / "precious").mkdir()
    (tmp_path / "scratch/fleetmark-link").symlink_to(tmp_path / "precious")
    assert guard.reclaim(node, tmp_path, said.append) == (old,)
    assert _files(tmp_path / "scratch") == ["fleetmark-link", "mine"]
    assert (tmp_path / "precious").is_dir()
    assert said == [f"{tmp_path}/scratch/fleetmark-link is not one of our directories; left alone", f"reclaimed {old}"]


def test_tool_of_a_leftover_is_ended(node: Node, tmp_path: Path) -> None:
    old = _leftover(tmp_path)
    with subprocess.Popen(("sleep", "300"), process_group=0, cwd=old) as tool:
        guard.Scratch(old, "ext4", direct_io=True).record(tool.pid)
        guard.reclaim(node, tmp_path, lambda _: None)
        assert tool.wait() == -signal.SIGTERM
    assert not old.exists()


@pytest.mark.parametrize(
    "owner",
    [
        b"",
        b"{",
        b"[]",
        b'{"group": "x"}',
        b'{"group": 0, "start_ticks": 1, "boot_id": ""}',
        b"\xff",
        b"[" * 100_000,
        b'{"group": 1e999}',
    ],
)
def test_damaged_owner_file_ends_nothing(owner: bytes, node: Node, tmp_path: Path) -> None:
    old = _leftover(tmp_path)
    (old / ".owner.json").write_bytes(owner)
    assert guard.reclaim(node, tmp_path, lambda _: None) == (old,)


def test_process_group_of_an_earlier_boot_is_not_ended(node: Node, tmp_path: Path) -> None:
    old = _leftover(tmp_path)
    with subprocess.Popen(("sleep", "300"), process_group=0, cwd=old) as stranger:
        guard.Scratch(old, "ext4", direct_io=True).record(stranger.pid)
        owner = json.loads((old / ".owner.json").read_text())
        (old / ".owner.json").write_text(json.dumps({**owner, "boot_id": "an-earlier-boot"}))
        guard.reclaim(node, tmp_path, lambda _: None)
        assert process_groups.start_ticks_of(stranger.pid) is not None
        stranger.kill()


def test_directory_in_use_is_not_reclaimed(node: Node, tmp_path: Path) -> None:
    said: list[str] = []
    with guard.scratch(node, tmp_path, "job-1", 1) as scratch:
        assert guard.reclaim(node, tmp_path, said.append) == ()
        assert scratch.path.is_dir()
    assert said == [f"{scratch.path} is in use by another run; left alone"]


def test_leftover_that_cannot_be_removed_is_told_and_stops_nothing(node: Node, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("making a file immutable needs root")
    old = _leftover(tmp_path)
    said: list[str] = []
    subprocess.run(("chattr", "+i", old / "data"), check=True)
    try:
        assert guard.reclaim(node, tmp_path, said.append) == ()
    finally:
        subprocess.run(("chattr", "-i", old / "data"), check=True)
    assert said == [f"{old}, left by an earlier run, cannot be removed: Operation not permitted"]
