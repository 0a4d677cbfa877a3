"""Source files as Python's file objects, for libraries that want one; every read is of the file that was listed."""

import io
import threading
from contextlib import closing

from pipelines.datasets.source import Piece, ReadInto, Source, SourceFile
from pipelines.errors import SourceChanged


class Stream(io.RawIOBase):
    """The bytes of a piece, first to last. A read gives all it was asked for, so that blocks are always the same.

    pyarrow reads ahead in threads of its own, also when nobody wants more: what was closed is not read.
    """

    def __init__(self, source: Source, piece: Piece) -> None:
        self._lock = threading.Lock()
        self._where = f"{source.url}: {piece.file.path}"
        self._left = piece.length
        self._reading = source.reading([piece])
        _, self._into = next(self._reading)
        self._compare_at_end()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        with self._lock:
            if self.closed:
                raise ValueError("it is closed")
            data = bytearray(self._left if size < 0 else min(size, self._left))
            _fill(memoryview(data), self._into, self._where)
            self._left -= len(data)
            if data:
                self._compare_at_end()
        return data  # type: ignore[return-value]  # as good as bytes, and not copied once more

    def close(self) -> None:
        with self._lock:
            self._reading.close()
            super().close()

    def _compare_at_end(self) -> None:
        if not self._left:
            next(self._reading, None)


class Ranges(io.RawIOBase):
    """A file to seek in; each read is a range by itself, of the file that was listed."""

    def __init__(self, source: Source, file: SourceFile) -> None:
        self._source = source
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size_bytes}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._file.size_bytes - self._at)
        piece = Piece(self._file, self._at, left if size < 0 else min(size, left))
        with closing(Stream(self._source, piece)) as stream:
            data = stream.read()
        self._at += len(data)
        return data


def _fill(space: memoryview, into: ReadInto, where: str) -> None:
    while space:
        count = into(space)
        if not count:
            raise SourceChanged(where, f"{len(space)} B more", "its end")
        space = space[count:]
