"""How much memory may be taken: what the machine has available, and what its control groups leave of that."""

from pathlib import Path

from pipelines import memory

GIB = 2**30


def _machine(root: Path, **files: str) -> Path:
    """A root directory with these files of /proc and /sys; `__` in a name stands for a slash."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_what_the_kernel_calls_available_is_available_but_for_a_fifth(tmp_path: Path) -> None:
    root = _machine(tmp_path, proc__meminfo=f"MemTotal: 99 kB\nMemFree: 1 kB\nMemAvailable: {10 * GIB // 1024} kB\n")
    assert memory.available_bytes(root) == 10 * GIB
    assert memory.lacking(8 * GIB, root) is None
    problem = f"it would take {9 * GIB} B of memory, and {10 * GIB} B are available, of which 80% may be taken"
    assert memory.lacking(9 * GIB, root) == problem


def test_the_narrowest_control_group_counts_with_what_it_holds_that_no_file_does(tmp_path: Path) -> None:
    root = _machine(
        tmp_path,
        proc__meminfo=f"MemAvailable: {10 * GIB // 1024} kB\n",
        proc__self__cgroup="0::/a/b\n",
    )
    inner, outer = root / "sys/fs/cgroup/a/b", root / "sys/fs/cgroup/a"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (outer / "memory.max").write_text(f"{4 * GIB}\n")
    (outer / "memory.stat").write_text(f"anon {GIB}\nfile {3 * GIB}\n")
    assert memory.available_bytes(root) == 3 * GIB


def test_where_nothing_can_be_known_nothing_is_refused(tmp_path: Path) -> None:
    assert memory.lacking(2**60, tmp_path) is None


def test_this_machine_has_some() -> None:
    assert (memory.available_bytes() or 0) > 0
