"""The only door to fsspec: filesystems of a directory, of an S3 server, of any URL; and what their exceptions mean."""

import os
import re
from collections.abc import Callable
from typing import Any

import fsspec
from fsspec.utils import glob_translate

from pipelines.errors import StoreRefused

_TRANSIENT_AWS = {
    "SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "ConditionalRequestConflict",
    "500", "502", "503", "504",
}  # fmt: skip


def local() -> Any:
    """This machine's files. What is written makes the folders that it needs."""
    return fsspec.filesystem("file", auto_mkdir=True)


def s3(endpoint: str | None) -> Any:
    """An S3 server through s3fs: each call asks the server, once."""
    plain_http = (endpoint or "").startswith("http://")
    filesystem = fsspec.filesystem(
        "s3",
        endpoint_url=endpoint,
        client_kwargs={"region_name": os.environ.get("AWS_REGION")},  # boto reads AWS_DEFAULT_REGION alone
        use_listings_cache=False,
        skip_instance_cache=True,
        config_kwargs={
            "retries": {"total_max_attempts": 1},  # one place retries: Store._retrying
            "connect_timeout": 5,
            "read_timeout": 60,
            # over plain http boto hashes every body for the signature, at a sixth of the speed; our keys carry hashes
            "s3": {"addressing_style": "path", "payload_signing_enabled": not plain_http},
        },
    )
    filesystem.retries = 1
    return filesystem


def behind(url: str) -> tuple[Any, str]:
    """The filesystem behind a URL of any kind, and the path in it.

    Raises:
        StoreRefused: fsspec knows no such kind of URL, or what it needs for that is not installed.
    """
    try:
        filesystem, path = fsspec.url_to_fs(url, use_listings_cache=False)
    except (ValueError, ImportError) as e:
        raise StoreRefused(url, str(e)) from e
    return filesystem, str(path)


def glob_matcher(pattern: str) -> Callable[[str], bool]:
    """Whether a path matches a glob as fsspec reads it: `*` within a folder, `**` across folders."""
    matches = re.compile(glob_translate(pattern)).match
    return lambda path: matches(path) is not None


def aws_code(e: BaseException) -> str | None:
    """The S3 error code behind an exception of s3fs, which wraps botocore's."""
    response = getattr(e.__cause__ or e, "response", None)
    return str(response["Error"].get("Code")) if isinstance(response, dict) else None


def is_transient(e: BaseException) -> bool:
    """Whether the same call may succeed a little later."""
    if isinstance(e, TimeoutError | ConnectionError) or aws_code(e) in _TRANSIENT_AWS:
        return True
    if not _is_botocore(e):
        return False
    from aiohttp import ClientError  # loaded with s3fs, and only then
    from botocore.exceptions import ConnectTimeoutError, EndpointConnectionError, HTTPClientError

    return isinstance(e, HTTPClientError | EndpointConnectionError | ConnectTimeoutError | ClientError)


def is_refusal(e: BaseException) -> bool:
    """Whether the system or the server has said no; anything else is a fault of ours."""
    return isinstance(e, OSError) or _is_botocore(e)


def problem(e: BaseException) -> str:
    """What it says, with its code."""
    code = aws_code(e) or type(e).__name__
    return code if str(e) in {"", "None"} else f"{code}: {e}"  # Ceph RGW sends codes without a message


def _is_botocore(e: BaseException) -> bool:
    return type(e).__module__.startswith(("botocore", "aiobotocore", "aiohttp"))
