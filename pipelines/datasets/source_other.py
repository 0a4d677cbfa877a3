"""Whatever else fsspec reads as a source: memory, HTTP, GCS, Azure, SFTP, HDFS, archives."""

import hashlib
import io
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO, Any

from pipelines import filesystems
from pipelines.datasets.manifest import checked_path
from pipelines.datasets.source import Piece, ReadInto, Selected, SourceFile, compare, split
from pipelines.errors import FleetmarkError, SourceChanged, SourceRefused


class Filesystem(Selected):
    """Anything else that fsspec reads: memory, HTTP, GCS, Azure, SFTP, HDFS, archives."""

    def __init__(self, url: str) -> None:
        self._filesystem, path = filesystems.behind(url)
        with _refused(url):
            self._is_file = self._is_a_file(url, path)
        super().__init__(*split(path, self._is_file))
        self._path = path
        self.url = url

    def _is_a_file(self, url: str, path: str) -> bool:
        """Of a web server's folders only the last letter tells that they are none."""
        try:
            return not url.endswith("/") and self._filesystem.info(path)["type"] == "file"
        except FileNotFoundError:
            return False

    def files(self) -> Iterator[SourceFile]:
        with _refused(self.url):
            if self._is_file:
                yield self._listed(self._path, self._filesystem.info(self._path))
            else:
                yield from self._below(self.root)

    def _below(self, folder: str) -> Iterator[SourceFile]:
        """Not by fsspec's own find(), which leaves out what it may not list."""
        for info in self._filesystem.ls(folder, detail=True):
            path = str(info["name"])
            if info["type"] == "directory":
                yield from self._below(path)
            elif self.has(self._relative(path)):
                # asked for once more: a listing may put it in other words, or not know
                yield self._listed(path, self._filesystem.info(path))

    def _listed(self, path: str, info: dict[str, Any]) -> SourceFile:
        if info["size"] is None:
            raise SourceRefused(path, "its size is not known before it is read")
        return SourceFile(checked_path(self._relative(path)), int(info["size"]), _etag(info))

    def _relative(self, path: str) -> str:
        return path.removeprefix(self.root).lstrip("/")

    def reading(self, pieces: Iterable[Piece]) -> Generator[tuple[Piece, ReadInto], None, None]:
        for piece in pieces:
            self.check(piece.file)
            where = self._where(piece.file)
            with self._opened(where, streams=not piece.start) as opened:
                with _refused(where):
                    if piece.start:
                        opened.seek(piece.start)
                yield piece, partial(_read_from, where, opened)
            self.check(piece.file)

    def open(self, file: SourceFile) -> IO[bytes]:
        return self._opened(self._where(file), streams=False)

    def _opened(self, where: str, streams: bool) -> IO[bytes]:
        """`streams`: a web server is asked once for all of it, and need not know how to give a range."""
        how = {"block_size": 0} if streams and where.startswith(("http://", "https://")) else {}
        with _refused(where):
            opened: IO[bytes] = self._filesystem.open(where, "rb", **how)
        if isinstance(opened, io.BytesIO):  # fsspec's memory gives the file itself, with one position for all readers
            return io.BytesIO(opened.getvalue())
        return opened

    def check(self, file: SourceFile) -> None:
        where = self._where(file)
        try:
            with _refused(where):
                info = self._filesystem.info(where)
        except SourceRefused as e:
            if isinstance(e.__cause__, FileNotFoundError):
                raise SourceChanged(where, file.etag, "nothing") from e
            raise
        compare(where, file, SourceFile(file.path, info["size"], _etag(info)))

    def _where(self, file: SourceFile) -> str:
        return f"{self.root.rstrip('/')}/{file.path}"


@contextmanager
def _refused(url: str) -> Iterator[None]:
    """Whatever a filesystem of some kind raises, as our own error."""
    try:
        yield
    except FleetmarkError:
        raise
    except Exception as e:
        raise SourceRefused(url, f"{type(e).__name__}: {e}") from e


def _etag(info: dict[str, Any]) -> str:
    """Of whatever a filesystem tells of a file, all that does not depend on how it was asked."""
    known = {"etag", "mtime", "modified", "created", "lastmodified", "md5hash", "contentmd5", "digest", "size"}
    said = sorted((name, str(value)) for name, value in info.items() if _plain(name) in known)
    return hashlib.sha256(repr(said).encode()).hexdigest()[:32]


def _plain(name: str) -> str:
    return name.replace("-", "").replace("_", "").lower()


def _read_from(where: str, opened: IO[bytes], space: memoryview) -> int:
    with _refused(where):
        data = opened.read(len(space))
    space[: len(data)] = data
    return len(data)
