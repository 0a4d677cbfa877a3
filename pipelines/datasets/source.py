"""Where a dataset's files come from: a directory, a glob, a single file, a prefix of S3, or any other fsspec URL."""

import glob
import hashlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

from pipelines import bulk, storage
from pipelines.datasets.manifest import checked_path
from pipelines.errors import KeyNotFound, SourceChanged, SourceRefused, StoreRefused
from pipelines.settings import Settings

_REQUEST_BYTES = 8 * 2**20
_REQUESTS_AHEAD = 16
_BYTES_AHEAD = 32 * 2**20  # of one group that is being packed


class SourceFile(NamedTuple):
    """A file as it was listed. The etag changes whenever its bytes do."""

    path: str  # relative to the source's root, with `/`
    size_bytes: int
    etag: str


class Piece(NamedTuple):
    """A whole source file or a part of one, in bytes; of a Parquet file the row group `start`."""

    file: SourceFile
    start: int
    length: int


ReadInto = Callable[[memoryview], int]
"""Puts the next bytes into a buffer and gives their number, 0 at the end."""


class Source(Protocol):
    url: str

    def files(self) -> Iterator[SourceFile]:
        """Every file, in any order. Raises: SourceRefused."""

    def reading(self, pieces: Iterable[Piece]) -> Generator[tuple[Piece, ReadInto], None, None]:
        """The pieces in turn, each with how to read it to its end before the next is asked for.

        Raises:
            SourceChanged: the file is not the one that was listed, before it was read or after.
            SourceRefused: it cannot be read.
        """

    def open(self, file: SourceFile) -> IO[bytes]:
        """A file to read and to seek in, for libraries that want one. Raises: SourceRefused."""

    def check(self, file: SourceFile) -> None:
        """Raises: SourceChanged: the file is no longer the one that was listed."""


def open_source(url: str, settings: Settings) -> Source:
    """The source behind a path or an fsspec URL: one file, every file below a directory, or those that a glob matches.

    Raises:
        SourceRefused: there is no such thing, or no such kind of URL.
    """
    scheme, found, _ = url.partition("://")
    if not found or scheme == "file":
        path = Path(os.path.abspath(url.removeprefix("file://")))  # noqa: PTH100 - resolve() would follow links
        return Directory(*_split(str(path), path.is_file()))
    if scheme in {"s3", "s3a"}:
        return S3Prefix(url, settings)
    return Filesystem(url, *storage.other_filesystem(url))


class _Selected:
    """The root of a source, and which of the files below it belong to it."""

    def __init__(self, root: str, pattern: str | None) -> None:
        self.root = root
        self._matches = storage.glob_matcher(pattern) if pattern else None

    def has(self, path: str) -> bool:
        return self._matches is None or self._matches(path)


def _split(url: str, is_file: bool) -> tuple[str, str | None]:
    """The folder that paths are relative to, and the pattern below it, where there is one."""
    if is_file:
        root, _, name = url.rpartition("/")
        return root or "/", glob.escape(name)
    magic = min((place for place in map(url.find, "*?[") if place >= 0), default=None)
    if magic is None:
        return url.rstrip("/") or "/", None
    root, _, _ = url[:magic].rpartition("/")
    return root or "/", url[len(root) + 1 :]


class Directory(_Selected):
    """A directory of this machine. Links to files are followed; anything else that is no file is refused by name."""

    def __init__(self, root: str, pattern: str | None) -> None:
        super().__init__(root, pattern)
        self.url = f"file://{root}" + (f"/{pattern}" if pattern else "")

    def files(self) -> Iterator[SourceFile]:
        if not Path(self.root).is_dir():
            raise SourceRefused(self.url, "there is no such file or directory")
        yield from self._below("")

    def _below(self, prefix: str) -> Iterator[SourceFile]:
        try:
            with os.scandir(f"{self.root}/{prefix}") as entries:
                for entry in entries:
                    path = prefix + entry.name
                    if entry.is_dir(follow_symlinks=False):
                        yield from self._below(f"{path}/")
                    elif self.has(path):
                        yield self._file(path, entry)
        except OSError as e:
            raise SourceRefused(f"file://{e.filename or self.root}", e.strerror or str(e)) from e

    def _file(self, path: str, entry: os.DirEntry[str]) -> SourceFile:
        if not entry.is_file():
            what = "a link to a directory" if entry.is_dir() else "neither a file nor a directory"
            raise SourceRefused(self._url(path), f"it is {what}, and only files can be published")
        try:
            path.encode()
        except UnicodeEncodeError as e:
            raise SourceRefused(repr(self._url(path)), "its name is not UTF-8") from e
        return _stated(path, entry.stat())

    def reading(self, pieces: Iterable[Piece]) -> Generator[tuple[Piece, ReadInto], None, None]:
        for piece in pieces:
            descriptor = self._opened(piece.file.path)
            try:
                self._compare(piece.file, descriptor)
                if piece.start:
                    os.lseek(descriptor, piece.start, os.SEEK_SET)
                yield piece, partial(self._read, piece.file.path, descriptor)
                self._compare(piece.file, descriptor)
            finally:
                os.close(descriptor)

    def open(self, file: SourceFile) -> IO[bytes]:
        return os.fdopen(self._opened(file.path), "rb")

    def check(self, file: SourceFile) -> None:
        descriptor = self._opened(file.path)
        try:
            self._compare(file, descriptor)
        finally:
            os.close(descriptor)

    def _opened(self, path: str) -> int:
        try:
            return os.open(f"{self.root}/{path}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as e:
            raise SourceChanged(self._url(path), "a file", "nothing") from e
        except OSError as e:
            raise SourceRefused(self._url(path), e.strerror or str(e)) from e

    def _read(self, path: str, descriptor: int, space: memoryview) -> int:
        try:
            return os.readv(descriptor, [space])
        except OSError as e:
            raise SourceRefused(self._url(path), e.strerror or str(e)) from e

    def _compare(self, file: SourceFile, descriptor: int) -> None:
        _compare(self._url(file.path), file, _stated(file.path, os.fstat(descriptor)))

    def _url(self, path: str) -> str:
        return f"file://{self.root}/{path}"


def _stated(path: str, stat: os.stat_result) -> SourceFile:
    """The change time is the kernel's own: nobody can set it back as one can a modification time."""
    return SourceFile(path, stat.st_size, f"{stat.st_mtime_ns:x}-{stat.st_ctime_ns:x}-{stat.st_ino:x}")


def _compare(url: str, planned: SourceFile, found: SourceFile) -> None:
    if planned != found:
        raise SourceChanged(url, f"{planned.size_bytes} B {planned.etag}", f"{found.size_bytes} B {found.etag}")


class S3Prefix(_Selected):
    """Objects of an S3 server, read in ranges that each ask for the etag that was listed."""

    def __init__(self, url: str, settings: Settings) -> None:
        endpoint = settings.source_endpoint
        bucket, _, _ = url.removeprefix("s3://").removeprefix("s3a://").partition("/")
        whole = bulk.S3(f"s3://{bucket}", endpoint, settings.store_retry_s)
        key = url.split("://", 1)[1][len(bucket) + 1 :]
        is_object = bool(key) and not set("*?[") & set(key) and whole.size(key) is not None
        super().__init__(*_split(url, is_object))
        self.url = url
        self._objects = bulk.S3(self.root, endpoint, settings.store_retry_s)
        self._filesystem = partial(storage.s3_filesystem, endpoint)

    def files(self) -> Iterator[SourceFile]:
        for each in _refused(self.url, self._objects.list):
            if self.has(each.key) and not each.key.endswith("/"):  # a "folder" that some tool made
                try:
                    yield SourceFile(checked_path(each.key), each.size_bytes, each.etag)
                except ValueError as e:
                    raise SourceRefused(f"{self.root}/{each.key}", str(e)) from e

    def reading(self, pieces: Iterable[Piece]) -> Generator[tuple[Piece, ReadInto], None, None]:
        with ThreadPoolExecutor(_REQUESTS_AHEAD) as pool:
            waiting = _Ahead(pool, self._fetch, iter(pieces))
            for piece in waiting.pieces():
                yield piece, waiting.readinto

    def _fetch(self, piece: Piece) -> memoryview:
        url = f"{self.root}/{piece.file.path}"
        try:
            data = self._objects.range(piece.file.path, piece.start, piece.length, piece.file.etag)
        except KeyNotFound as e:
            raise SourceChanged(url, piece.file.etag, "nothing") from e
        except StoreRefused as e:
            raise SourceRefused(url, e.problem) from e
        if data is None or len(data) != piece.length:
            raise SourceChanged(url, piece.file.etag, "another etag" if data is None else "fewer bytes")
        return data

    def open(self, file: SourceFile) -> IO[bytes]:
        opened: IO[bytes] = self._filesystem().open(f"{self.root}/{file.path}", "rb")
        return opened

    def check(self, file: SourceFile) -> None:
        self._fetch(Piece(file, 0, min(1, file.size_bytes)))


def _refused(url: str, listing: Callable[[], Iterator[bulk.Listed]]) -> Iterator[bulk.Listed]:
    try:
        yield from listing()
    except StoreRefused as e:
        raise SourceRefused(url, e.problem) from e


class _Ahead:
    """Requests of at most 8 MiB for the pieces to come, so many that the network has work and memory is bounded."""

    def __init__(self, pool: ThreadPoolExecutor, fetch: Callable[[Piece], memoryview], pieces: Iterator[Piece]) -> None:
        self._pool = pool
        self._fetch = fetch
        self._requests = ((piece, request) for piece in pieces for request in _requests(piece))
        self._sent: deque[tuple[Piece, Piece, Future[memoryview]]] = deque()
        self._bytes = 0
        self._current = memoryview(b"")

    def pieces(self) -> Iterator[Piece]:
        """Each piece; it must be read to its end before the next."""
        self._send()
        while self._sent:
            piece, first, _ = self._sent[0]
            yield piece
            if not first.length:
                self._next()
            self._send()

    def readinto(self, space: memoryview) -> int:
        if not self._current:
            self._current = self._next()
        count = min(len(space), len(self._current))
        space[:count] = self._current[:count]
        self._current = self._current[count:]
        return count

    def _next(self) -> memoryview:
        _, request, coming = self._sent.popleft()
        self._bytes -= request.length
        self._send()
        return coming.result()

    def _send(self) -> None:
        while len(self._sent) < _REQUESTS_AHEAD and self._bytes < _BYTES_AHEAD:
            following = next(self._requests, None)
            if following is None:
                return
            piece, request = following
            self._sent.append((piece, request, self._pool.submit(self._fetch, request)))
            self._bytes += request.length


def _requests(piece: Piece) -> Iterator[Piece]:
    if not piece.length:
        yield piece
    for start in range(piece.start, piece.start + piece.length, _REQUEST_BYTES):
        yield Piece(piece.file, start, min(_REQUEST_BYTES, piece.start + piece.length - start))


class Filesystem(_Selected):
    """Anything else that fsspec reads: memory, HTTP, GCS, Azure, SFTP, HDFS, archives."""

    def __init__(self, url: str, filesystem: Any, path: str) -> None:
        self._filesystem = filesystem
        try:
            super().__init__(*_split(path, bool(filesystem.isfile(path))))
        except Exception as e:
            raise SourceRefused(url, f"{type(e).__name__}: {e}") from e
        self.url = url

    def files(self) -> Iterator[SourceFile]:
        try:
            for path, info in self._filesystem.find(self.root, detail=True).items():
                relative = str(path).removeprefix(self.root).lstrip("/")
                if self.has(relative):
                    yield SourceFile(checked_path(relative), int(info["size"]), _etag(info))
        except Exception as e:
            raise SourceRefused(self.url, f"{type(e).__name__}: {e}") from e

    def reading(self, pieces: Iterable[Piece]) -> Generator[tuple[Piece, ReadInto], None, None]:
        for piece in pieces:
            with self.open(piece.file) as opened:
                opened.seek(piece.start)
                yield piece, partial(_read_from, opened)
            self.check(piece.file)

    def open(self, file: SourceFile) -> IO[bytes]:
        try:
            opened: IO[bytes] = self._filesystem.open(f"{self.root.rstrip('/')}/{file.path}", "rb")
        except Exception as e:
            raise SourceRefused(f"{self.root}/{file.path}", f"{type(e).__name__}: {e}") from e
        return opened

    def check(self, file: SourceFile) -> None:
        where = f"{self.root.rstrip('/')}/{file.path}"
        try:
            info = self._filesystem.info(where)
        except FileNotFoundError as e:
            raise SourceChanged(where, file.etag, "nothing") from e
        _compare(where, file, SourceFile(file.path, int(info["size"]), _etag(info)))


def _etag(info: dict[str, Any]) -> str:
    """Of whatever a filesystem tells of a file, all that does not depend on how it was asked."""
    known = {"ETag", "etag", "mtime", "modified", "created", "LastModified", "last_modified", "md5Hash", "size"}
    said = sorted((name, str(value)) for name, value in info.items() if name in known)
    return hashlib.sha256(repr(said).encode()).hexdigest()[:32]


def _read_from(opened: IO[bytes], space: memoryview) -> int:
    data = opened.read(len(space))
    space[: len(data)] = data
    return len(data)
