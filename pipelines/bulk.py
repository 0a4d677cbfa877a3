"""The only door to obstore: large objects, put whole from a file and read in ranges at the speed of disk or network.

fsspec stays for small objects and listings (`storage.py`). In a directory objects are files and need no client.
"""

import mmap
import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pipelines.errors import KeyNotFound, StoreRefused, StoreUnreachable
from pipelines.storage import Store

_PART_BYTES = 8 * 2**20
_PARTS_AT_ONCE = 3  # of one object; several objects are on their way at once
_LONGEST_PAUSE = timedelta(seconds=5)
_ENDLESS = 1000  # retries: the time is what limits them
_threads_run_in: dict[str, int] = {}  # the process that used obstore first: in its forks a request would never end
T = TypeVar("T")


@dataclass(frozen=True)
class Listed:
    """An object as a listing shows it. The etag changes when its bytes do."""

    key: str  # relative to the URL
    size_bytes: int
    etag: str


class Bulk(Protocol):
    """Large objects below one URL. Keys are relative. Safe to use from several threads.

    Every method may raise StoreRefused or, after retries, StoreUnreachable; those that read, KeyNotFound.
    """

    def folder_for(self, key: str) -> Path | None:
        """Where a file must lie that `adopt` is to make this object without copying it; None: anywhere."""

    def adopt(self, key: str, path: str) -> None:
        """Make the file at `path` this object, in one atomic step. Only for keys that name their content: what is
        there already is left or replaced, as it must be the same.
        """

    def replace(self, key: str, path: str) -> None:
        """The same, in place of what is there now."""

    def range(self, key: str, start: int, length: int, etag: str | None = None) -> memoryview | None:
        """`length` bytes of an object from `start` on, fewer where it ends before; None: it has not that etag."""

    def size(self, key: str) -> int | None:
        """An object's size in bytes; None when it is not there."""


def of(store: Store) -> Bulk:
    """The large objects of a store."""
    if store.is_local:
        return _Directory(store)
    return S3(store.base_url, store.endpoint, store.retry_s)


class _Directory:
    """Files below a local store's directory."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def folder_for(self, key: str) -> Path:
        folder = Path(self._store.path(key)).parent
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def replace(self, key: str, path: str) -> None:
        target = self.folder_for(key) / Path(key).name
        temporary = target.with_name(f".tmp-{uuid.uuid4().hex}")
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.link(path, temporary, src_dir_fd=folder, follow_symlinks=True)  # as in `adopt`
            temporary.replace(target)
            os.fsync(folder)
        except OSError as e:
            temporary.unlink(missing_ok=True)
            raise StoreRefused(self._store.url(key), e.strerror or str(e)) from e
        finally:
            os.close(folder)

    def adopt(self, key: str, path: str) -> None:
        target = Path(self._store.path(key))
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with suppress(FileExistsError):  # src_dir_fd makes it linkat(2), which takes /proc/self/fd/N of a nameless
                os.link(path, target, src_dir_fd=folder, follow_symlinks=True)
            os.fsync(folder)
        except OSError as e:
            raise StoreRefused(self._store.url(key), e.strerror or str(e)) from e
        finally:
            os.close(folder)

    def range(self, key: str, start: int, length: int, etag: str | None = None) -> memoryview | None:  # noqa: ARG002
        try:
            with Path(self._store.path(key)).open("rb", buffering=0) as file:
                data = bytearray(max(0, min(length, os.fstat(file.fileno()).st_size - start)))
                view = memoryview(data)
                while view and (count := os.preadv(file.fileno(), [view], start + len(data) - len(view))):
                    view = view[count:]
        except FileNotFoundError as e:
            raise KeyNotFound(self._store.url(key)) from e
        except OSError as e:
            raise StoreRefused(self._store.url(key), e.strerror or str(e)) from e
        return memoryview(data)[: len(data) - len(view)]

    def size(self, key: str) -> int | None:
        try:
            return Path(self._store.path(key)).stat().st_size
        except FileNotFoundError:
            return None
        except OSError as e:
            raise StoreRefused(self._store.url(key), e.strerror or str(e)) from e


class S3:
    """Objects of an S3 server. Each process has connections of its own."""

    def __init__(self, url: str, endpoint: str | None, retry_s: float) -> None:
        self.url = url.rstrip("/")
        self._endpoint = endpoint
        self._retry_s = retry_s
        self._opened: dict[int, Any] = {}

    def folder_for(self, key: str) -> None:  # noqa: ARG002
        return None

    def adopt(self, key: str, path: str) -> None:
        import obstore

        with Path(path).open("rb") as file:
            is_one_part = os.fstat(file.fileno()).st_size <= _PART_BYTES
            parts: Any = file.read() if is_one_part else _parts(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        self._asked(key, partial(obstore.put, file=parts, chunk_size=_PART_BYTES, max_concurrency=_PARTS_AT_ONCE))

    def replace(self, key: str, path: str) -> None:
        self.adopt(key, path)

    def range(self, key: str, start: int, length: int, etag: str | None = None) -> memoryview | None:
        import obstore
        from obstore.exceptions import PreconditionError

        if length == 0:
            is_it = etag is None or self._asked(key, obstore.head)["e_tag"] == etag
            return memoryview(b"") if is_it else None
        options: Any = {"range": (start, start + length), **({"if_match": etag} if etag else {})}
        try:
            return self._asked(key, lambda store, name: memoryview(obstore.get(store, name, options=options).bytes()))
        except PreconditionError:
            return None

    def size(self, key: str) -> int | None:
        import obstore

        try:
            return int(self._asked(key, obstore.head)["size"])
        except KeyNotFound:
            return None

    def list(self) -> Iterator[Listed]:
        """Every object, in the order of the bytes of its key."""
        import obstore

        chunks = self._asked("", lambda store, _: iter(obstore.list(store)))
        while (chunk := self._asked("", lambda *_: next(chunks, None))) is not None:
            yield from (Listed(each["path"], each["size"], each["e_tag"] or "") for each in chunk)

    def _store(self) -> Any:
        process = os.getpid()
        if process not in self._opened:
            self._opened[process] = self._connect()
        return self._opened[process]

    def _connect(self) -> Any:
        if _threads_run_in.setdefault("process", os.getpid()) != os.getpid():
            problem = "this process was forked from one that had used obstore, whose threads a fork does not copy"
            raise StoreRefused(self.url, f"{problem}; start it by spawn or forkserver")
        from obstore.store import S3Store

        plain_http = (self._endpoint or "").startswith("http://")
        config: Any = {}
        if self._endpoint is not None:
            config["aws_endpoint_url"] = self._endpoint
        if plain_http:  # as in filesystems.py: a signature over the body would be one more hash of every byte
            config["aws_unsigned_payload"] = "true"
        client: Any = {"allow_http": plain_http, "connect_timeout": "5s", "timeout": "60s"}
        retries: Any = {
            "max_retries": _ENDLESS,
            "retry_timeout": timedelta(seconds=self._retry_s),
            "backoff": {"max_backoff": _LONGEST_PAUSE},
        }
        # not from_url(), for which a name with `#` or `?` in it ends there
        bucket, _, prefix = self.url.partition("://")[2].partition("/")
        return S3Store(bucket, prefix=prefix or None, config=config, client_options=client, retry_config=retries)

    def _asked(self, key: str, call: Callable[[Any, str], T]) -> T:
        from obstore.exceptions import BaseError, PreconditionError

        where = f"{self.url}/{key}"
        try:
            return call(self._store(), key)
        except PreconditionError:
            raise
        except (BaseError, OSError) as e:
            said = " ".join(str(e).partition("\n\nDebug source:")[0].split())
            if "<Code>NoSuchBucket</Code>" in said:
                raise StoreRefused(where, "there is no such bucket") from e
            if isinstance(e, FileNotFoundError):
                raise KeyNotFound(where) from e
            attempts = attempts_in(said)
            if attempts or "response body" in said or "timed out" in said:  # cut in the middle, again and again
                raise StoreUnreachable(where, attempts or 1, said) from e
            raise StoreRefused(where, said) from e


def attempts_in(said: str) -> int | None:
    """How often object_store, which delta-rs has as well, says to have asked before it gave up; None: it does not."""
    gave_up = re.search(r"after (\d+) retries", said)
    return int(gave_up[1]) + 1 if gave_up else None


def _parts(mapped: mmap.mmap) -> Iterator[memoryview]:
    """A file from the page cache straight to the socket: half the processor time of reading it, and little memory."""
    whole = memoryview(mapped)
    for start in range(0, len(whole), _PART_BYTES):
        if (sent := start - (_PARTS_AT_ONCE + 1) * _PART_BYTES) >= 0:
            mapped.madvise(mmap.MADV_DONTNEED, sent, _PART_BYTES)  # of this mapping only: it would be read again
        yield whole[start : start + _PART_BYTES]
