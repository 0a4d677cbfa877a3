"""The lease: one benchmark at a time per machine, whoever starts it."""

import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines import lease
from pipelines.errors import LeaseTimeout, LeaseUnusable
from tests.node.other_user import as_nobody
from tests.node.waiting import runs

ROOT = Path(__file__).parents[2]


@contextmanager
def _other_process(folder: Path, seconds: float) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that holds the lease while its tool runs; yields it and the tool."""
    command = (sys.executable, "-m", "tests.node.holder", folder, "other-run", str(seconds))
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        held, tool = other.stdout.readline().split()
        assert held == "held"
        yield other, int(tool)
        other.kill()


def _hold(folder: Path, wait_s: float = 0.0) -> float:
    with lease.held(folder, "run-2", "gpu-01", wait_s, lambda _: None) as waited_s:
        return waited_s


def test_free_lease_costs_no_wait(tmp_path: Path) -> None:
    assert _hold(tmp_path) == 0.0


def test_holder_can_be_read_while_it_holds_and_not_after(tmp_path: Path) -> None:
    with lease.held(tmp_path, "run-1", "gpu-01", 0.0, lambda _: None):
        who = lease.holder(tmp_path / "fleetmark.lock")
        assert who is not None
        assert (who.pid, who.run_id, who.node) == (os.getpid(), "run-1", "gpu-01")
    assert lease.holder(tmp_path / "fleetmark.lock") is None


def test_second_waits_says_for_whom_and_then_has_it(tmp_path: Path) -> None:
    said: list[str] = []
    with (
        _other_process(tmp_path, seconds=0.5) as (other, _),
        lease.held(tmp_path, "run-2", "gpu-01", 20.0, said.append) as waited_s,
    ):
        assert 0.0 < waited_s < 20.0
        assert other.wait(10) == 0
    (line,) = said
    assert line.startswith(f"waiting for the lease of node gpu-01, held by run other-run (pid {other.pid}) since ")


def test_lease_that_stays_held_is_a_timeout_that_names_the_holder(tmp_path: Path) -> None:
    start = time.monotonic()
    with _other_process(tmp_path, seconds=60) as (other, _):
        with pytest.raises(LeaseTimeout, match=rf"held by run other-run \(pid {other.pid}\)") as raised:
            _hold(tmp_path, wait_s=0.3)
        assert raised.value.waited_s >= 0.3
    assert time.monotonic() - start < 20


def test_lease_ends_with_a_killed_process_though_its_tool_may_live_on(tmp_path: Path) -> None:
    with _other_process(tmp_path, seconds=60) as (other, _):
        other.kill()
        other.wait()
        assert _hold(tmp_path, wait_s=10.0) < 10.0


def test_tools_do_not_inherit_the_lease(tmp_path: Path) -> None:
    with _other_process(tmp_path, seconds=60) as (_, tool):
        names = {str(entry.readlink()) for entry in Path(f"/proc/{tool}/fd").iterdir()}
        assert runs(tool)
        assert not any("fleetmark.lock" in name for name in names)


def test_threads_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    inside, most, lock = 0, 0, threading.Lock()

    def work() -> None:
        nonlocal inside, most
        with lease.held(tmp_path, "run-1", "gpu-01", 30.0, lambda _: None):
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.02)
            with lock:
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_every_user_of_the_machine_can_take_the_lease_that_root_made(public_dir: Path) -> None:
    public_dir.chmod(0o1777)
    before = os.umask(0o077)
    try:
        _hold(public_dir)
    finally:
        os.umask(before)
    assert stat.S_IMODE((public_dir / "fleetmark.lock").stat().st_mode) == 0o666
    assert as_nobody(_hold, public_dir) == 0.0


def test_lock_file_that_only_reads_still_excludes(public_dir: Path) -> None:
    (public_dir / "fleetmark.lock").touch(mode=0o644)
    with (
        lease.held(public_dir, "run-1", "gpu-01", 0.0, lambda _: None),
        pytest.raises(LeaseTimeout, match="held by run run-1"),
    ):
        as_nobody(_hold, public_dir)
    assert as_nobody(_hold, public_dir) == 0.0


def test_existing_lock_file_is_opened_without_creating_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a sticky directory the kernel refuses plain O_CREAT on another user's file (fs.protected_regular)."""
    _hold(tmp_path)
    flags: list[int] = []
    real = os.open

    def seen(path: Path, how: int, *mode: int) -> int:
        flags.append(how)
        return real(path, how, *mode)

    monkeypatch.setattr(os, "open", seen)
    _hold(tmp_path)
    assert flags
    assert all(not how & os.O_CREAT or how & os.O_EXCL for how in flags)


@pytest.mark.parametrize("kind", ["link", "directory", "pipe", "no folder"])
def test_lock_that_cannot_be_used_is_refused_with_what_to_do(kind: str, tmp_path: Path) -> None:
    path, folder = tmp_path / "fleetmark.lock", tmp_path
    if kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        folder = tmp_path / "none"
    with pytest.raises(LeaseUnusable, match="set FLEETMARK_LEASE_DIR"):
        _hold(folder)
    assert not (tmp_path / "elsewhere").exists()


def test_folder_without_write_permission_is_refused(public_dir: Path) -> None:
    with pytest.raises(LeaseUnusable, match="Permission denied"):
        as_nobody(_hold, public_dir)


@pytest.mark.parametrize(
    "text", [b"", b"\xff\xfe", b"{", b'{"pid": 1, "run_id": "\x1b[31m", "node": "a"}', b"x" * 10_000]
)
def test_garbage_in_the_lock_file_names_nobody(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "fleetmark.lock").write_bytes(text)
    assert lease.holder(tmp_path / "fleetmark.lock") is None
    assert _hold(tmp_path) == 0.0
