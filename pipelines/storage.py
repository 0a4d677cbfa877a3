"""An object store of create-only keys, on a directory or on S3."""

import os
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tenacity import (
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    stop_all,
    wait_exponential_jitter,
)

from pipelines import filesystems, keys
from pipelines.errors import CorruptObject, KeyNotFound, StoreRefused, StoreUnreachable, UnsafeStore
from pipelines.settings import Settings

_PROBE_WRITERS = 8
T = TypeVar("T")


class Stored(NamedTuple):
    """An object as the store knows it. `modified_at` is by the store's own clock."""

    key: str
    size_bytes: int
    modified_at: datetime


class Upload(NamedTuple):
    """Parts of an object that an S3 server keeps, out of sight, until the upload is completed or aborted."""

    key: str
    upload_id: str
    size_bytes: int
    begun_at: datetime


class Store:
    """An object store under one URL. Keys are plain relative names; see `keys.checked`.

    Every method may raise StoreUnreachable (after retries with back-off, naming the key), StoreRefused or BadKey.
    """

    def __init__(self, url: str, connect: Callable[[], Any], root: str, settings: Settings) -> None:
        self.base_url = url.rstrip("/")
        self.endpoint = settings.s3_endpoint
        self.retry_s = settings.store_retry_s
        self._connect = connect
        self._connected: dict[int, Any] = {}
        self._root = root.rstrip("/")

    @property
    def filesystem(self) -> Any:
        """This process's own fsspec filesystem: s3fs refuses to work in a child of the process that opened it.

        The child keeps its parent's: to close that would take the parent's sockets out of the epoll set they share.
        """
        process = os.getpid()
        if process not in self._connected:
            self._connected[process] = self._connect()
        return self._connected[process]

    @property
    def is_local(self) -> bool:
        return self.base_url.startswith("file://")

    @property
    def delta_options(self) -> dict[str, str]:
        """What delta-rs needs to reach the same place; it reads credentials and region from the environment itself."""
        if self.is_local:
            return {}
        options = {"max_retries": "1000", "retry_timeout": f"{self.retry_s:g}s", "connect_timeout": "5s"}
        if self.endpoint is not None:
            allow_http = str(self.endpoint.startswith("http://")).lower()
            options |= {"AWS_ENDPOINT_URL": self.endpoint, "AWS_ALLOW_HTTP": allow_http}
        return options

    def url(self, key: str) -> str:
        return f"{self.base_url}/{keys.checked(key)}"

    def path(self, key: str) -> str:
        """The key as fsspec names it: a path, or bucket/key."""
        return f"{self._root}/{keys.checked(key)}"

    def read(self, key: str, most_bytes: int | None = None) -> bytes:
        """The object's bytes.

        Raises:
            KeyNotFound: there is no such object.
            CorruptObject: it has more than `most_bytes`; nothing of it was read.
        """
        if most_bytes is not None and (size_bytes := self.stat(key).size_bytes) > most_bytes:
            raise CorruptObject(self.url(key), f"it has {size_bytes} B, and no such object has more than {most_bytes}")
        return self._retrying(key, lambda: bytes(self.filesystem.cat_file(self.path(key))))

    def create(self, key: str, data: bytes) -> bool:
        """Write a new object in one atomic step; never overwrite. False: it was there, or is since a lost answer."""
        create = self._create_local if self.is_local else self._create_s3
        return self._retrying(key, lambda: create(self.path(key), data))

    def replace(self, key: str, data: bytes) -> None:
        """Write an object that may be there already: something rendered from published objects, or a pointer."""
        if self.is_local:
            self._retrying(key, lambda: _publish_file(Path(self.path(key)), data, os.replace))
        else:
            self._retrying(key, lambda: self.filesystem.pipe_file(self.path(key), data))

    def exists(self, key: str) -> bool:
        try:  # not fsspec's exists(), which says no when the bucket is not there
            self.stat(key)
        except KeyNotFound:
            return False
        return True

    def keys_under(self, prefix: str) -> list[str]:
        """Every key below the folder `prefix`, sorted; empty when there is none."""
        return [each.key for each in self.objects_under(prefix)]

    def objects_under(self, prefix: str) -> list[Stored]:
        """Every object below the folder `prefix`, sorted by key; empty when there is none."""
        path = self.path(prefix)
        find = partial(_files_under, path) if self.is_local else lambda: self.filesystem.find(path, detail=True)
        found = self._retrying(prefix, find)
        # s3fs gives the folder itself where an object came into it after it was listed as empty
        objects = (self._stored(path, info) for path, info in found.items() if info["type"] == "file")
        return sorted(each for each in objects if not each.key.rsplit("/", 1)[-1].startswith(".tmp-"))

    def folders_under(self, prefix: str) -> list[str]:
        """The names of the folders that lie in the folder `prefix`, sorted; empty when there is none."""
        return self._folders(prefix, self.path(prefix))

    def roots(self) -> list[str]:
        """The names of the folders at the top, sorted; empty where nothing was written yet."""
        return self._folders("plans", self._root)  # a key, which only errors name

    def stat(self, key: str) -> Stored:
        """Raises: KeyNotFound: there is no such object."""
        info = self._retrying(key, lambda: self.filesystem.info(self.path(key)))
        if info["type"] != "file":  # a folder: other keys begin with this one
            raise KeyNotFound(self.url(key))
        return self._stored(self.path(key), info)

    def delete(self, key: str) -> None:
        """Remove an object; no error when it is gone already."""
        try:
            self._retrying(key, lambda: self.filesystem.rm_file(self.path(key)))
        except KeyNotFound:
            return

    def uploads_under(self, prefix: str) -> list[Upload]:
        """Every upload below the folder `prefix` that was not completed; none in a directory."""
        if self.is_local:
            return []
        bucket, _, folder = self.path(prefix).partition("/")
        ask = self.filesystem.call_s3
        found, after = [], {"Bucket": bucket, "Prefix": f"{folder}/"}
        while True:
            page = self._retrying(prefix, partial(ask, "list_multipart_uploads", **after))
            for each in page.get("Uploads", []):
                which = {"Bucket": bucket, "Key": each["Key"], "UploadId": each["UploadId"]}
                parts = self._retrying(prefix, partial(ask, "list_parts", **which)).get("Parts", [])  # the first 1000
                key = f"{bucket}/{each['Key']}".removeprefix(f"{self._root}/")
                size_bytes = sum(int(part["Size"]) for part in parts)
                found.append(Upload(key, each["UploadId"], size_bytes, each["Initiated"]))
            if not page.get("IsTruncated"):
                return sorted(found)
            after |= {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Have the server forget the parts of an upload; no error when it has already."""
        bucket, _, name = self.path(key).partition("/")
        abort = partial(self.filesystem.call_s3, "abort_multipart_upload", Bucket=bucket, Key=name, UploadId=upload_id)
        with suppress(KeyNotFound):
            self._retrying(key, abort)

    def read_many(self, wanted: list[str]) -> list[bytes]:
        """The objects' bytes in the order of `wanted`, fetched side by side."""
        with ThreadPoolExecutor(max_workers=16) as pool:
            return list(pool.map(self.read, wanted))

    def require_atomic_create(self) -> None:
        """Prove that of several racing create-only writes exactly one wins, as every commit here relies on.

        Raises:
            UnsafeStore: none or several won (measured: some S3 servers ignore If-None-Match).
        """
        if self.is_local:
            return  # link(2) is atomic
        key = f"probe/{uuid.uuid4().hex}"
        _ = self.filesystem  # once: a client for each of the threads would be 100 MB and a second
        with ThreadPoolExecutor(max_workers=_PROBE_WRITERS) as pool:
            bodies = [f"{writer}".encode() for writer in range(_PROBE_WRITERS)]
            winners = sum(pool.map(lambda body: self.create(key, body), bodies))
        self.delete(key)
        if winners != 1:
            raise UnsafeStore(self.base_url, winners, _PROBE_WRITERS)

    def _folders(self, key: str, path: str) -> list[str]:
        try:
            found = self._retrying(key, lambda: self.filesystem.ls(path, detail=True))
        except KeyNotFound:
            return []
        return sorted(str(each["name"]).rstrip("/").rpartition("/")[2] for each in found if each["type"] == "directory")

    def _stored(self, path: str, info: Mapping[str, Any]) -> Stored:
        at = info["LastModified"] if "LastModified" in info else datetime.fromtimestamp(info["mtime"], UTC)
        return Stored(str(path).removeprefix(f"{self._root}/"), int(info["size"]), at)

    def _create_local(self, path: str, data: bytes) -> bool:
        try:
            _publish_file(Path(path), data, os.link)
        except FileExistsError:
            return False
        return True

    def _create_s3(self, path: str, data: bytes) -> bool:
        try:  # one put, never multipart: Ceph RGW ignores the condition when a multipart upload completes
            self.filesystem.pipe_file(path, data, mode="create", chunksize=len(data) + 1)
        except OSError as e:
            if isinstance(e, FileExistsError) or filesystems.aws_code(e) == "PreconditionFailed":
                return False
            raise
        return True

    def _retrying(self, key: str, call: Callable[[], T]) -> T:
        retrying = Retrying(
            retry=retry_if_exception(filesystems.is_transient),
            stop=stop_all(stop_after_delay(self.retry_s), stop_after_attempt(2)),  # the first may take all of the time
            wait=wait_exponential_jitter(multiplier=0.1, max=5.0, jitter=0.1),
            reraise=True,
        )
        try:
            return retrying(call)
        except FileNotFoundError as e:
            if filesystems.aws_code(e) == "NoSuchBucket":
                raise StoreRefused(self.url(key), "there is no such bucket") from e
            raise KeyNotFound(self.url(key)) from e
        except Exception as e:
            if filesystems.is_transient(e):
                attempts = int(retrying.statistics["attempt_number"])
                raise StoreUnreachable(self.url(key), attempts, f"{type(e).__name__}: {e}") from e
            if filesystems.is_refusal(e):
                raise StoreRefused(self.url(key), filesystems.problem(e)) from e
            raise


def open_store(settings: Settings) -> Store:
    """The deployment's object store, connected to when it is first used.

    Raises:
        StoreRefused: a URL or a directory of a kind that is not supported.
    """
    url = settings.store_url
    if url.startswith("file://"):
        root = Path(url.removeprefix("file://")).absolute()
        if "%" in str(root):  # delta-rs 1.6 decodes a path twice
            raise StoreRefused(url, "the directory's name has a percent sign, which the table format misreads")
        return Store(root.as_uri(), filesystems.local, str(root), settings)
    if not url.startswith("s3://"):
        raise StoreRefused(url, "FLEETMARK_STORE must be a file:// or an s3:// URL")
    return Store(url, partial(filesystems.s3, settings.s3_endpoint), url.removeprefix("s3://"), settings)


def _files_under(root: str) -> dict[str, dict[str, Any]]:
    """What fsspec's `find` gives for a directory. That one leaves out, silently, any folder that it may not list."""

    def unless_gone(e: OSError) -> None:
        if not isinstance(e, FileNotFoundError | NotADirectoryError):  # then nothing is below it
            raise e

    found: dict[str, dict[str, Any]] = {}
    for folder, _, names in os.walk(root, onerror=unless_gone):
        for name in names:
            with suppress(FileNotFoundError):
                stat = os.stat(path := f"{folder}/{name}")  # noqa: PTH116 - a Path for each of a million files takes longer
                found[path] = {"type": "file", "size": stat.st_size, "mtime": stat.st_mtime}
    return found


def _publish_file(path: Path, data: bytes, publish: Callable[[Path, Path], object]) -> None:
    """Write beside `path`, flush to the disk, then put it in place with `publish` in one atomic step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".tmp-{uuid.uuid4().hex}"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
