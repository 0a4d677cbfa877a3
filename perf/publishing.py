"""Publishing to a directory: GNU tar, webdataset, mosaicml-streaming's MDS and fleetmark on the same files.

Everybody makes shards of 64 MiB from files that are in the page cache; imports are not timed. `--large` publishes
1,000,000 files of 1 kB, and 1, 4 and 8 GB of large files: 13 GB of disk.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from perf import contender
from perf.contender import Used
from pipelines import console

MDS = ("mosaicml-streaming==0.13.0", "torch==2.13.0")
SMALL_FILES, BIG_FILES, BIG_BYTES = 20_000, 8, 128 * 2**20
_SEED = 20261120

FLEETMARK = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from pipelines import bulk, storage
from pipelines.datasets import commit, publish
from pipelines.datasets.manifest import Packing
from pipelines.datasets.publications import Request
from pipelines.settings import Settings
source, home, form = sys.argv[1:]
settings = Settings(home=Path(home))
store = storage.open_store(settings)
store.exists("nothing"), bulk.of(store).size("nothing")  # a client is opened at its first use
request = Request(source=source, dataset="bench", packing=Packing(format=form, shard_bytes=64 * 2**20))
def work():
    publish.publish(settings, store, request, datetime.now(UTC), lambda line: None)
"""
STAGES = """
from pipelines.datasets.meter import Meter
def work():
    taken = {}
    def timed(name, call):
        start = time.perf_counter()
        answer = call()
        taken[name] = time.perf_counter() - start
        return answer
    made = timed("plan", lambda: publish.plan(settings, store, request))
    meter = Meter(lambda line: None, made.size_bytes, made.groups, "shards")
    timed("pack", lambda: [publish.pack(settings, store, made, number, meter) for number in range(made.chunks)])
    timed("commit", lambda: commit.commit(settings, store, made, datetime.now(UTC)))
    print(json.dumps(taken), file=sys.stderr)
"""
_FILES = """
import os, sys
source, out = sys.argv[1:]
def files():
    for folder, folders, names in os.walk(source):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                yield os.path.relpath(path, source), file.read()
"""
WEBDATASET = f"""{_FILES}
import webdataset
def work():
    os.makedirs(out)
    with webdataset.ShardWriter(out + "/%06d.tar", maxsize=64 * 2**20, verbose=0) as writer:
        for path, data in files():
            key, _, extension = path.partition(".")
            writer.write({{"__key__": key, extension: data}})
"""
STREAMING = f"""{_FILES}
import torch
try:
    import torchvision
except RuntimeError:  # built for another torch: what it misses is not needed here
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{{name}}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from streaming import MDSWriter
def work():
    columns = {{"path": "str", "data": "bytes"}}
    with MDSWriter(out=out, columns=columns, hashes=["sha256"], size_limit=64 * 2**20) as writer:
        for path, data in files():
            writer.write({{"path": path, "data": data}})
"""


def main(rounds: int = 5, keep: Path | None = None) -> None:
    with tempfile.TemporaryDirectory(prefix="fleetmark-bench-") as temporary:
        scratch = Path(temporary)
        streaming = contender.environment(scratch / "streaming", *MDS)
        for name, form, source in (
            ("20,000 files of 25 to 75 kB", "tar", small(keep or scratch)),
            ("8 files of 128 MiB", "blob", big(keep or scratch)),
        ):
            contenders = {
                "GNU tar": _into(scratch, lambda out, source=source: ("tar", "-cf", out, "-C", source, ".")),
                "GNU tar and sync": _into(scratch, lambda out, source=source: _synced_tar(source, out)),
                "webdataset": _into(scratch, lambda out, source=source: contender.python(WEBDATASET, source, out)),
                "fleetmark": _into(
                    scratch, lambda out, source=source, form=form: contender.python(FLEETMARK, source, out, form)
                ),
            }
            if streaming is not None:
                contenders["MDS, sha256"] = _into(
                    scratch,
                    lambda out, source=source: contender.python(STREAMING, source, out, executable=streaming),
                )
            title = f"Publish {name} to a directory"
            notes = {"fleetmark": "targets: 4x MDS, not slower than tar, under 200 MB"}
            contender.compare(title, size_of(source), contenders, rounds, notes)


def large() -> None:
    """A million small files, and whether time grows as the bytes do."""
    with tempfile.TemporaryDirectory(prefix="fleetmark-bench-") as temporary:
        scratch = Path(temporary)
        console.say("  generating 1,000,000 files ...")
        million = generated(scratch / "million", 1_000_000, 500, 1500)
        _stages("1,000,000 files of 0.5 to 1.5 kB", million, "tar", scratch)
        shutil.rmtree(million)
        for count in (8, 32, 64):
            source = generated(scratch / f"{count}", count, BIG_BYTES, BIG_BYTES)
            _stages(f"{count} files of 128 MiB", source, "blob", scratch)
            shutil.rmtree(source)


def small(folder: Path) -> Path:
    return generated(folder / "small", SMALL_FILES, 25_000, 75_000)


def big(folder: Path) -> Path:
    return generated(folder / "big", BIG_FILES, BIG_BYTES, BIG_BYTES)


def generated(folder: Path, files: int, smallest: int, largest: int) -> Path:
    """Files of random bytes, 1,000 to a folder; what is there already is used again."""
    if (folder.parent / f"{folder.name}.complete").exists():
        return folder
    rng = random.Random(_SEED)
    for number in range(files):
        if number % 1000 == 0:
            (folder / f"{number // 1000:03d}").mkdir(parents=True)
        data = rng.randbytes(rng.randint(smallest, largest))
        (folder / f"{number // 1000:03d}" / f"{number:07d}.bin").write_bytes(data)
    (folder.parent / f"{folder.name}.complete").touch()
    os.sync()
    return folder


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _into(scratch: Path, command: Callable[[Path], tuple[object, ...]]) -> Callable[[], Used]:
    """Run a contender that writes to a path; everything written before is on the disk when it begins."""

    def once() -> Used:
        out = scratch / "out"
        os.sync()
        used = contender.run([str(part) for part in command(out)])
        shutil.rmtree(out) if out.is_dir() else out.unlink()
        return used

    return once


def _synced_tar(source: Path, out: Path) -> tuple[object, ...]:
    return ("sh", "-c", 'tar -cf "$1" -C "$2" . && sync "$1"', "sh", out, source)


def _stages(title: str, source: Path, form: str, scratch: Path) -> None:
    total = size_of(source)
    os.sync()
    argv = contender.python(FLEETMARK + STAGES, source, scratch / "out", form)
    done = subprocess.run((sys.executable, "-S", "-c", contender.LAUNCHER, *argv), check=True, capture_output=True)
    taken = json.loads(done.stderr.decode().splitlines()[-1])
    used = json.loads(done.stdout.decode().splitlines()[-1])
    shutil.rmtree(scratch / "out")
    seconds = sum(taken.values())
    parts = ", ".join(f"{name} {part:.1f} s" for name, part in taken.items())
    print(f"\n{title}: {seconds:.1f} s, {total / seconds / 1e6:.0f} MB/s ({parts}), {used['rss_bytes'] / 1e6:.0f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true", help="a million files, and growing bytes")
    parser.add_argument("--keep", type=Path, help="folder to generate files in and to reuse")
    given = parser.parse_args()
    large() if given.large else main(keep=given.keep)
