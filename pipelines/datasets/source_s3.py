"""Objects of an S3 server as a source."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import IO

from pipelines import bulk, filesystems
from pipelines.datasets.manifest import checked_path
from pipelines.datasets.source import Piece, ReadInto, Selected, SourceFile, split
from pipelines.errors import KeyNotFound, SourceChanged, SourceRefused, StoreRefused
from pipelines.settings import Settings

_REQUEST_BYTES = 8 * 2**20
_REQUESTS_AHEAD = 16
_BYTES_AHEAD = 32 * 2**20  # of one group that is being packed


class S3Prefix(Selected):
    """Objects of an S3 server, read in ranges that each ask for the etag that was listed."""

    def __init__(self, url: str, settings: Settings) -> None:
        endpoint = settings.source_endpoint
        bucket, _, _ = url.removeprefix("s3://").removeprefix("s3a://").partition("/")
        whole = bulk.S3(f"s3://{bucket}", endpoint, settings.store_retry_s)
        key = url.split("://", 1)[1][len(bucket) + 1 :]
        is_object = bool(key) and not set("*?[") & set(key) and whole.size(key) is not None
        super().__init__(*split(url, is_object))
        self.url = url
        self._objects = bulk.S3(self.root, endpoint, settings.store_retry_s)
        self._filesystem = partial(filesystems.s3, endpoint)

    def files(self) -> Iterator[SourceFile]:
        for each in _refused(self.url, self._objects.list):
            if self.has(each.key) and not self._is_folder(each):
                try:
                    yield SourceFile(checked_path(each.key), each.size_bytes, each.etag)
                except ValueError as e:
                    raise SourceRefused(f"{self.root}/{each.key}", str(e)) from e

    def _is_folder(self, listed: bulk.Listed) -> bool:
        """Whether a tool that shows folders has made it: empty, and with a slash at its end, which obstore cuts off."""
        return listed.size_bytes == 0 and self._objects.size(listed.key) is None

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
