"""A server with the part of S3 that clients of large objects use, as fast as Python can: to see the client's limit.

Objects lie in memory. Signatures and checksums are not looked at, every bucket is there, and an etag is a number.
`python -m perf.s3sink` prints its port.
"""

import itertools
import re
import socketserver
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

_SEGMENT_BYTES = 2**20
_RANGE = re.compile(r"bytes=(\d+)-(\d*)$")
_PART_NUMBER = re.compile(rb"<PartNumber>(\d+)</PartNumber>")
_numbers = itertools.count(1)


@dataclass
class Object:
    segments: list[memoryview]
    etag: str = field(default_factory=lambda: f'"{next(_numbers):032x}"')
    modified_at: float = field(default_factory=time.time)

    @property
    def size_bytes(self) -> int:
        return sum(len(segment) for segment in self.segments)

    def between(self, start: int, end: int) -> Iterator[memoryview]:
        for segment in self.segments:
            if part := segment[max(0, start) : max(0, end)]:
                yield part
            start, end = start - len(segment), end - len(segment)


class Memory:
    """Objects and uploads. What is freed is used again: memory that is touched for the first time is slow."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.uploads: dict[str, dict[int, Object]] = {}
        self.lock = threading.Lock()
        self._free: list[memoryview] = []

    def segment(self, length: int) -> memoryview:
        if length < _SEGMENT_BYTES:
            return memoryview(bytearray(length))
        with suppress(IndexError):
            return self._free.pop()
        return memoryview(bytearray(_SEGMENT_BYTES))

    def remove(self, path: str) -> None:
        """An object, or a bucket with all that it has."""
        with self.lock:
            for each in [each for each in self.objects if each == path or each.startswith(f"{path}/")]:
                self.free(self.objects.pop(each))

    def free(self, freed: Object | None) -> None:
        self._free += [each for each in freed.segments if len(each) == _SEGMENT_BYTES] if freed else []


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Connection)
        self.memory = Memory()


class Connection(socketserver.StreamRequestHandler):
    """Requests, one after the other, until the client closes."""

    rbufsize = 2**16
    disable_nagle_algorithm = True
    server: Server

    def handle(self) -> None:
        with suppress(ConnectionError):
            while line := self.rfile.readline():
                method, target, _ = line.decode().split(" ")
                headers = dict(self._headers())
                if headers.get("expect", "").lower() == "100-continue":
                    self.request.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                body = self._body(int(headers.get("content-length", "0")))
                url = urlsplit(target)
                path, query = unquote(url.path).strip("/"), parse_qs(url.query, keep_blank_values=True)
                self._asked(method, path, {name: values[0] for name, values in query.items()}, headers, body)

    def _headers(self) -> Iterator[tuple[str, str]]:
        while line := self.rfile.readline().strip():
            name, _, value = line.decode().partition(":")
            yield name.lower(), value.strip()

    def _body(self, length: int) -> Object:
        segments = []
        while length:
            segments.append(segment := self.server.memory.segment(length))
            if self.rfile.readinto(segment) != len(segment):  # type: ignore[attr-defined]
                raise ConnectionError
            length -= len(segment)
        return Object(segments)

    def _asked(
        self, method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str], body: Object
    ) -> None:
        if method == "PUT" and "/" in path:
            self._put(path, query, headers, body)
        elif method == "POST":
            self._post(path, query, body)
        elif method == "DELETE":
            self.server.memory.remove(path)
            self._answer("204 No Content")
        elif method == "GET" and "/" not in path:
            self._answer("200 OK", self._listing(path, query))
        elif method in {"GET", "HEAD"} and "/" in path:
            self._get(method, path, headers)
        else:
            self._answer("200 OK")  # a bucket is made, or looked for

    def _put(self, path: str, query: Mapping[str, str], headers: Mapping[str, str], body: Object) -> None:
        memory = self.server.memory
        if "uploadId" in query:
            memory.uploads[query["uploadId"]][int(query["partNumber"])] = body
        else:
            with memory.lock:
                if headers.get("if-none-match") == "*" and path in memory.objects:
                    self._refuse("412 Precondition Failed", "PreconditionFailed")
                    return
                memory.free(memory.objects.get(path))
                memory.objects[path] = body
        self._answer("200 OK", extra=f"ETag: {body.etag}\r\n")

    def _post(self, path: str, query: Mapping[str, str], body: Object) -> None:
        memory = self.server.memory
        if "uploads" in query:
            upload = f"{next(_numbers)}"
            memory.uploads[upload] = {}
            xml = f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
        else:
            parts = memory.uploads.pop(query["uploadId"])
            numbers = [int(number) for number in _PART_NUMBER.findall(b"".join(body.segments))]
            made = Object([segment for number in sorted(numbers) for segment in parts[number].segments])
            with memory.lock:
                memory.free(memory.objects.get(path))
                memory.objects[path] = made
            xml = f"<CompleteMultipartUploadResult><ETag>{escape(made.etag)}</ETag></CompleteMultipartUploadResult>"
        self._answer("200 OK", xml.encode())

    def _get(self, method: str, path: str, headers: Mapping[str, str]) -> None:
        found = self.server.memory.objects.get(path)
        if found is None:
            self._refuse("404 Not Found", "NoSuchKey", has_body=method == "GET")
            return
        if headers.get("if-match", found.etag) != found.etag:
            self._refuse("412 Precondition Failed", "PreconditionFailed")
            return
        start, end, size, status, extra = 0, found.size_bytes, found.size_bytes, "200 OK", ""
        if asked := _RANGE.match(headers.get("range", "")):
            start, end = int(asked[1]), min(size, int(asked[2] or size - 1) + 1)
            status, extra = "206 Partial Content", f"Content-Range: bytes {start}-{end - 1}/{size}\r\n"
        extra += f"ETag: {found.etag}\r\nLast-Modified: {formatdate(found.modified_at, usegmt=True)}\r\n"
        self._head(status, end - start, extra)
        if method == "GET":
            for segment in found.between(start, end):
                self.request.sendall(segment)

    def _listing(self, bucket: str, query: Mapping[str, str]) -> bytes:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        folders, contents = set(), []
        for path, each in sorted(self.server.memory.objects.items()):
            name = path.removeprefix(f"{bucket}/")
            if name == path or not name.startswith(prefix):
                continue
            folder, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if found:
                folders.add(prefix + folder + delimiter)
                continue
            at = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(each.modified_at))
            contents.append(
                f"<Contents><Key>{escape(name)}</Key><LastModified>{at}</LastModified><ETag>{escape(each.etag)}</ETag>"
                f"<Size>{each.size_bytes}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            )
        common = [f"<CommonPrefixes><Prefix>{escape(each)}</Prefix></CommonPrefixes>" for each in sorted(folders)]
        return (
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(contents) + len(common)}</KeyCount>"
            f"<MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>{''.join(contents + common)}</ListBucketResult>"
        ).encode()

    def _refuse(self, status: str, code: str, has_body: bool = True) -> None:
        xml = f"<Error><Code>{code}</Code><Message>{status}</Message></Error>".encode()
        self._answer(status, xml if has_body else b"")

    def _answer(self, status: str, body: bytes = b"", extra: str = "") -> None:
        self._head(status, len(body), extra)
        if body:
            self.request.sendall(body)

    def _head(self, status: str, length: int, extra: str) -> None:
        self.request.sendall(f"HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{extra}\r\n".encode())


def main() -> None:
    with Server() as server:
        print(server.server_address[1], flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
