"""Where a dataset's files come from: a directory, a glob, a single file, a prefix of S3, or any other fsspec URL."""

import glob
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import IO, NamedTuple, Protocol
from urllib.parse import parse_qsl, urlsplit

from pipelines import filesystems
from pipelines.errors import SourceChanged, SourceRefused
from pipelines.settings import Settings

_SIGNED = {"x-amz-signature", "x-goog-signature", "signature", "sig", "token"}  # parameters that are credentials


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
    _refuse_secrets(url)
    scheme, found, _ = url.partition("://")
    if not found or scheme == "file":
        from pipelines.datasets.source_directory import Directory

        return Directory(url.removeprefix("file://"))
    if scheme in {"s3", "s3a"}:
        from pipelines.datasets.source_s3 import S3Prefix

        return S3Prefix(url, settings)
    from pipelines.datasets.source_other import Filesystem

    return Filesystem(url)


def _refuse_secrets(url: str) -> None:
    """A source's URL is kept with the version, for everyone to read.

    Raises:
        SourceRefused: it has a password, or is signed.
    """
    parts = urlsplit(url)
    shown = f"{parts.scheme}://{parts.hostname or ''}{parts.path}"
    if "://" in url and parts.password is not None:
        raise SourceRefused(shown, "a password does not belong in a URL; fsspec reads it from FSSPEC_<SCHEME>_PASSWORD")
    if "://" in url and _SIGNED & {name.lower() for name, _ in parse_qsl(parts.query)}:
        raise SourceRefused(shown, "a signed URL is a secret; give the credentials by the environment instead")


class Selected:
    """The root of a source, and which of the files below it belong to it."""

    def __init__(self, root: str, pattern: str | None) -> None:
        self.root = root
        self._matches = filesystems.glob_matcher(pattern) if pattern else None

    def has(self, path: str) -> bool:
        return self._matches is None or self._matches(path)


def split(url: str, is_file: bool) -> tuple[str, str | None]:
    """The folder that paths are relative to, and the pattern below it, where there is one."""
    if is_file:
        root, _, name = url.rpartition("/")
        return root or "/", glob.escape(name)
    magic = min((place for place in map(url.find, "*?[") if place >= 0), default=None)
    if magic is None:
        return url.rstrip("/") or "/", None
    root, _, _ = url[:magic].rpartition("/")
    return root or "/", url[len(root) + 1 :]


def compare(url: str, planned: SourceFile, found: SourceFile) -> None:
    """Raises: SourceChanged: a file is not the one that was listed."""
    if planned != found:
        raise SourceChanged(url, f"{planned.size_bytes} B {planned.etag}", f"{found.size_bytes} B {found.etag}")
