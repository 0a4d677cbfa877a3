"""Large objects to an S3 server and back: boto3, s3fs, awscli and fleetmark.

The others only copy, but for one that does what fleetmark does by s3fs: hash, upload, read back, compare. The server is
`perf.s3sink`, on the same machine and in memory: what is seen is what the clients can do.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

from perf import contender, publishing
from perf.contender import Used

AWSCLI = "awscli==1.46.3"
BUCKET = "bench"
SHARDS = "store/datasets/bench/shards/"  # in it, where fleetmark has published

_BOTO3 = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import boto3
from botocore.config import Config
endpoint, folder, prefix, signing = sys.argv[1:]
config = Config(s3={"addressing_style": "path", "payload_signing_enabled": signing == "signed"})
client = boto3.client("s3", endpoint_url=endpoint, config=config)
"""
BOTO3_UP = f"""{_BOTO3}
def work():
    paths = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda path: client.upload_file(str(path), "{BUCKET}", prefix + path.name), paths))
"""
BOTO3_DOWN = f"""{_BOTO3}
def work():
    os.makedirs(folder)
    found = client.list_objects_v2(Bucket="{BUCKET}", Prefix=prefix)["Contents"]
    keys = [each["Key"] for each in found]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: client.download_file("{BUCKET}", key, folder + "/" + key.split("/")[-1]), keys))
"""
_S3FS = """
import sys
import s3fs
endpoint, folder, prefix = sys.argv[1:]
filesystem = s3fs.S3FileSystem(endpoint_url=endpoint)
"""
S3FS_UP = f"""{_S3FS}
def work():
    filesystem.put(folder + "/", "{BUCKET}/" + prefix, recursive=True)
"""
S3FS_DOWN = f"""{_S3FS}
def work():
    filesystem.get("{BUCKET}/" + prefix, folder + "/", recursive=True)
"""
S3FS_PUBLISH = f"""{_S3FS}
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
SHARD = 64 * 2**20
def shard(path, start):
    with path.open("rb") as file:
        file.seek(start)
        data = file.read(SHARD)
    sha256 = hashlib.sha256(data).hexdigest()
    filesystem.pipe_file("{BUCKET}/" + prefix + sha256, data)
    assert hashlib.sha256(filesystem.cat_file("{BUCKET}/" + prefix + sha256)).hexdigest() == sha256
def work():
    paths = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    with ThreadPoolExecutor(2) as pool:
        for path in paths:
            list(pool.map(shard, *zip(*((path, start) for start in range(0, path.stat().st_size, SHARD)))))
"""
UNREAD = """
from functools import partial
from pipelines.datasets import pack
publish.packer.Place = partial(pack.Place, reads_back=False)
"""
STAGE = """
import sys
from pathlib import Path
from pipelines import storage
from pipelines.datasets import catalog, stage
from pipelines.settings import Settings
settings = Settings(home=Path(sys.argv[1]), cache=Path(sys.argv[1]) / "cache", cache_floor_bytes=0, **SETTINGS)
store = storage.open_store(settings)
manifest = catalog.load(store, "bench")
def work():
    shards = manifest.body.shards
    staged = stage.stage(settings, store, manifest, shards, staging_id="bench", say=lambda line: None)
    assert all(each.arrival == "fetched" for each in staged.transfers), staged
"""


def main(rounds: int = 5, keep: Path | None = None) -> None:
    with tempfile.TemporaryDirectory(prefix="fleetmark-bench-") as temporary, running() as endpoint:
        bench = _Bench(Path(temporary), endpoint)
        source = publishing.big(keep or Path(temporary))
        total = publishing.size_of(source)
        awscli = contender.environment(Path(temporary) / "awscli", AWSCLI)
        up, down = bench.uploads(source), bench.downloads()
        if awscli is not None:
            aws = (str(awscli.with_name("aws")), "--endpoint-url", endpoint, "s3", "cp", "--quiet", "--recursive")
            up["awscli"] = lambda: bench.up(*aws, source, f"s3://{BUCKET}/up/")
            down["awscli"] = lambda: bench.down(lambda out: (*aws, f"s3://{BUCKET}/{SHARDS}", out))
        contender.compare("8 files of 128 MiB to S3", total, up, rounds)
        bench.fill(source)
        contender.compare("16 objects of 64 MiB from S3 to a directory", total, down, rounds)


class _Bench:
    def __init__(self, scratch: Path, endpoint: str) -> None:
        self._scratch = scratch
        self._endpoint = endpoint
        self._environ = {
            **os.environ,
            "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "bench",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self._settings = {"store": f"s3://{BUCKET}/store", "s3_endpoint": endpoint}

    def uploads(self, source: Path) -> dict[str, Callable[[], Used]]:
        python, publish = contender.python, self._publish()
        home = self._scratch / "home"
        return {
            "s3fs": lambda: self.up(*python(S3FS_UP, self._endpoint, source, "up/")),
            "s3fs, hashed and read back": lambda: self.up(*python(S3FS_PUBLISH, self._endpoint, source, "up/")),
            "boto3": lambda: self.up(*python(BOTO3_UP, self._endpoint, source, "up/", "signed")),
            "boto3, unsigned payload": lambda: self.up(*python(BOTO3_UP, self._endpoint, source, "up/", "unsigned")),
            "fleetmark": lambda: self.up(*python(publish, source, home, "blob")),
            "fleetmark, not read back": lambda: self.up(*python(publish + UNREAD, source, home, "blob")),
        }

    def downloads(self) -> dict[str, Callable[[], Used]]:
        python = contender.python
        stage = f"SETTINGS = {self._settings!r}\n{STAGE}"
        return {
            "s3fs": lambda: self.down(lambda out: python(S3FS_DOWN, self._endpoint, out, SHARDS)),
            "boto3": lambda: self.down(lambda out: python(BOTO3_DOWN, self._endpoint, out, SHARDS, "signed")),
            "fleetmark": lambda: self.down(lambda out: python(stage, out)),
        }

    def up(self, *command: object) -> Used:
        """Run an upload; the bucket is empty before and after."""
        try:
            return self._run(*command)
        finally:
            request = Request(f"{self._endpoint}/{BUCKET}", method="DELETE")  # noqa: S310 - our own server
            urlopen(request).close()  # noqa: S310
            shutil.rmtree(self._scratch / "home", ignore_errors=True)

    def down(self, command: Callable[[Path], tuple[object, ...]]) -> Used:
        out = self._scratch / "out"
        try:
            return self._run(*command(out))
        finally:
            shutil.rmtree(out, ignore_errors=True)

    def fill(self, source: Path) -> None:
        """Publish what is downloaded."""
        self._run(*contender.python(self._publish(), source, self._scratch / "home", "blob"))

    def _publish(self) -> str:
        inserted = f"settings = settings.model_copy(update={self._settings!r})\nstore = storage.open_store"
        return publishing.FLEETMARK.replace("store = storage.open_store", inserted)

    def _run(self, *command: object) -> Used:
        os.sync()
        return contender.run([str(part) for part in command], self._environ)


@contextmanager
def running() -> Iterator[str]:
    """The server's endpoint, while it runs."""
    argv = (sys.executable, "-m", "perf.s3sink")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.terminate()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="folder to generate files in and to reuse")
    main(keep=parser.parse_args().keep)
