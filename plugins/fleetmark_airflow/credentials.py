"""The keys of nodes: each signs its requests with a private key of its own, and the api-server knows the public ones.

`python -m fleetmark_airflow.credentials` adds, lists and revokes them in the file that `[fleetmark] node_keys` names, a
JSON Web Key Set (RFC 7517) whose keys say which node they belong to. A node may have two while its key is changed.
"""

import fcntl
import hashlib
import json
import os
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Literal

import click
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)
from pydantic import TypeAdapter, ValidationError

from pipelines.console import Verbs
from pipelines.errors import BadFile, Unknown
from pipelines.records import Name, Record


class NodeKey(Record):
    """A public key, and whose it is."""

    node: Name
    kid: str
    x: str  # the key's 32 bytes in base64, see RFC 8037
    kty: Literal["OKP"] = "OKP"
    crv: Literal["Ed25519"] = "Ed25519"
    alg: Literal["EdDSA"] = "EdDSA"
    use: Literal["sig"] = "sig"

    @property
    def public(self) -> Ed25519PublicKey:
        return Ed25519PublicKey.from_public_bytes(urlsafe_b64decode(f"{self.x}="))


class KeySet(Record):
    keys: tuple[NodeKey, ...] = ()


def of_node(node: str, public: Ed25519PublicKey) -> NodeKey:
    """Its id is the thumbprint of RFC 7638, which the worker puts into what it signs."""
    x = _base64(public.public_bytes(Encoding.Raw, PublicFormat.Raw))
    members = json.dumps({"crv": "Ed25519", "kty": "OKP", "x": x}, separators=(",", ":"))
    return NodeKey(node=node, kid=_base64(hashlib.sha256(members.encode()).digest()), x=x)


def load(path: Path) -> Mapping[str, NodeKey]:
    """The trusted keys by their ids, none where there is no file; it is read again when it has changed.

    Raises:
        BadFile: it is not such a file.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return {}
    return _load(path, found.st_mtime_ns, found.st_ino)


@lru_cache(maxsize=1)
def _load(path: Path, changed_at: int, inode: int) -> Mapping[str, NodeKey]:  # noqa: ARG001 - the key of what is remembered
    try:
        keys = KeySet.model_validate_json(path.read_bytes()).keys
        return {key.kid: key for key in keys if key.public}
    except ValueError as e:  # pydantic's, that of base64 and of a key that is none
        raise BadFile(str(path), "key set", f"is not one of nodes' keys ({e})") from e


def add(path: Path, key: NodeKey) -> None:
    """Trust the key from the next request on; adding it again changes nothing.

    Raises:
        BadFile: another node has this key.
    """
    with _locked(path):
        known = load(path)
        if (held := known.get(key.kid, key)).node != key.node:
            raise BadFile(str(path), f"key {key.kid}", f"is the key of {held.node}; each node needs one of its own")
        _write(path, {**known, key.kid: key})


def revoke(path: Path, node: str, kid: str = "") -> tuple[NodeKey, ...]:
    """Trust the node's keys, or only that of the id, no longer; gives what was removed.

    Raises:
        Unknown: there is no such key.
    """
    with _locked(path):
        known = load(path)
        gone = tuple(key for key in known.values() if key.node == node and kid in ("", key.kid))
        if not gone:
            raise Unknown("key of node", f"{node} {kid}".strip(), tuple(sorted({key.node for key in known.values()})))
        _write(path, {each.kid: each for each in known.values() if each not in gone})
    return gone


def _write(path: Path, keys: Mapping[str, NodeKey]) -> None:
    new = path.with_name(f".{path.name}.new")
    new.write_text(KeySet(keys=tuple(sorted(keys.values(), key=lambda key: key.node))).model_dump_json(indent=1) + "\n")
    new.chmod(0o644)  # public keys; the api-server need not be who writes them
    new.replace(path)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Two who add at the same time do so one after the other."""
    descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def make(path: Path) -> Ed25519PublicKey:
    """Write a new private key, which its owner alone can read; gives the public one.

    Raises:
        BadFile: there is a file already.
    """
    made = Ed25519PrivateKey.generate()
    pem = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as e:
        raise BadFile(str(path), "private key", "is there already, and is not overwritten") from e
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
    return made.public_key()


def read_public(path: Path) -> Ed25519PublicKey:
    """What `openssl pkey -pubout` wrote.

    Raises:
        BadFile: it is something else.
    """
    try:
        key = load_pem_public_key(path.read_bytes())
    except (ValueError, UnsupportedAlgorithm) as e:
        raise BadFile(str(path), "PEM", "is not a public key") from e
    if not isinstance(key, Ed25519PublicKey):
        raise BadFile(str(path), "PEM", "is not an Ed25519 key: openssl genpkey -algorithm ed25519")
    return key


def _base64(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--file", "path", type=click.Path(path_type=Path), envvar="AIRFLOW__FLEETMARK__NODE_KEYS", required=True,
              help="The file of [fleetmark] node_keys.")  # fmt: skip
@click.pass_context
def main(context: click.Context, path: Path) -> None:
    """The keys with which nodes sign their requests. What is done here holds from a node's next request on."""
    context.obj = path


@main.command("add")
@click.argument("node")
@click.option("--public", type=click.Path(path_type=Path, exists=True), help="The public key, made on the node.")
@click.option("--make", "private", type=click.Path(path_type=Path), help="Make a pair; the private key goes here.")
@click.pass_obj
def _add(path: Path, node: str, public: Path | None, private: Path | None) -> None:
    """Trust a key of NODE, which has the name that it has in the inventory."""
    if (public is None) == (private is None):
        raise click.UsageError("give either --public or --make")
    try:
        TypeAdapter(Name).validate_python(node)
    except ValidationError as e:
        raise click.BadParameter(f"{node!r} is no node's name", param_hint="NODE") from e
    key = of_node(node, make(private) if private else read_public(public or Path()))
    add(path, key)
    click.echo(f"{node}  {key.kid}")


@main.command("list")
@click.pass_obj
def _list(path: Path) -> None:
    """Show whose keys are trusted."""
    for key in load(path).values():
        click.echo(f"{key.node}  {key.kid}")


@main.command("revoke")
@click.argument("node")
@click.option("--key", "kid", default="", help="Only this one: the other is its successor.")
@click.pass_obj
def _revoke(path: Path, node: str, kid: str) -> None:
    """Trust NODE no longer."""
    for key in revoke(path, node, kid):
        click.echo(f"{key.node}  {key.kid}  revoked")


if __name__ == "__main__":
    main()
