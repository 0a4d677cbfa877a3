"""Whatever else fsspec reads as a source: memory, HTTP, GCS, Azure, SFTP, HDFS, archives."""

import hashlib
from collections.abc import Generator, Iterable, Iterator
from functools import partial
from typing import IO, Any

from pipelines import storage
from pipelines.datasets.manifest import checked_path
from pipelines.datasets.source import Piece, ReadInto, Selected, SourceFile, compare, split
from pipelines.errors import SourceChanged, SourceRefused


class Filesystem(Selected):
    """Anything else that fsspec reads: memory, HTTP, GCS, Azure, SFTP, HDFS, archives."""

    def __init__(self, url: str) -> None:
        self._filesystem, path = storage.other_filesystem(url)
        try:
            super().__init__(*split(path, bool(self._filesystem.isfile(path))))
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
        compare(where, file, SourceFile(file.path, int(info["size"]), _etag(info)))


def _etag(info: dict[str, Any]) -> str:
    """Of whatever a filesystem tells of a file, all that does not depend on how it was asked."""
    known = {"ETag", "etag", "mtime", "modified", "created", "LastModified", "last_modified", "md5Hash", "size"}
    said = sorted((name, str(value)) for name, value in info.items() if name in known)
    return hashlib.sha256(repr(said).encode()).hexdigest()[:32]


def _read_from(opened: IO[bytes], space: memoryview) -> int:
    data = opened.read(len(space))
    space[: len(data)] = data
    return len(data)
