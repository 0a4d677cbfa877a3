"""A directory of this machine as a source."""

import os
from collections.abc import Generator, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import IO

from pipelines.datasets.source import Piece, ReadInto, Selected, SourceFile, compare, split
from pipelines.errors import SourceChanged, SourceRefused


class Directory(Selected):
    """A directory of this machine. Links to files are followed; anything else that is no file is refused by name."""

    def __init__(self, path: str) -> None:
        path = os.path.abspath(path)  # noqa: PTH100 - resolve() would follow links
        super().__init__(*(path, None) if Path(path).is_dir() else split(path, Path(path).is_file()))
        self.url = f"file://{path}"

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
                self._seek(piece, descriptor)
                yield piece, partial(self._read, piece.file.path, descriptor)
                self._compare(piece.file, descriptor)  # which also tells of a change before it was read
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
            # without O_NONBLOCK a FIFO that has taken the file's place would keep us waiting for a writer
            return os.open(f"{self.root}/{path}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError as e:
            raise SourceChanged(self._url(path), "a file", "nothing") from e
        except OSError as e:
            raise SourceRefused(self._url(path), e.strerror or str(e)) from e

    def _seek(self, piece: Piece, descriptor: int) -> None:
        try:
            os.lseek(descriptor, piece.start, os.SEEK_SET)
        except OSError as e:
            self._compare(piece.file, descriptor)  # it is a pipe by now
            raise SourceRefused(self._url(piece.file.path), e.strerror or str(e)) from e

    def _read(self, path: str, descriptor: int, space: memoryview) -> int:
        try:
            return os.readv(descriptor, [space])
        except OSError as e:
            raise SourceRefused(self._url(path), e.strerror or str(e)) from e

    def _compare(self, file: SourceFile, descriptor: int) -> None:
        compare(self._url(file.path), file, _stated(file.path, os.fstat(descriptor)))

    def _url(self, path: str) -> str:
        return f"file://{self.root}/{path}"


def _stated(path: str, stat: os.stat_result) -> SourceFile:
    """The change time is the kernel's own: nobody can set it back as one can a modification time."""
    return SourceFile(path, stat.st_size, f"{stat.st_mtime_ns:x}-{stat.st_ctime_ns:x}-{stat.st_ino:x}")
