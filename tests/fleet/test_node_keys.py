"""The file of nodes' keys, and the command that an operator calls."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from airflow.api_fastapi.auth.tokens import JWKS, key_to_jwk_dict
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from fleetmark_airflow import credentials
from pipelines import process
from pipelines.errors import BadFile, Unknown


def call(path: Path, *argv: str) -> Result:
    return CliRunner().invoke(credentials.main, ["--file", str(path), *argv])


def openssl(*argv: str) -> None:
    assert process.run(("openssl", *argv), timeout_s=60).exit_status == 0


def test_an_added_key_is_the_one_that_airflow_signs_with_and_reads(tmp_path: Path) -> None:
    keys, private = tmp_path / "nodes.jwks", tmp_path / "gpu-01.key"
    assert call(keys, "add", "gpu-01", "--make", str(private)).exit_code == 0
    airflows = key_to_jwk_dict(load_pem_private_key(private.read_bytes(), None))
    (ours,) = json.loads(keys.read_text())["keys"]
    assert {name: ours[name] for name in airflows} == airflows
    jwks = JWKS(url=str(keys))._fetch_local_jwks()
    assert jwks is not None
    assert jwks["keys"] == [ours]
    assert private.stat().st_mode & 0o777 == 0o600


def test_a_key_that_openssl_made_on_the_node_needs_only_its_public_half_here(tmp_path: Path) -> None:
    keys, private, public = tmp_path / "nodes.jwks", tmp_path / "node.key", tmp_path / "gpu-01.pub"
    openssl("genpkey", "-algorithm", "ed25519", "-out", str(private))
    openssl("pkey", "-in", str(private), "-pubout", "-out", str(public))
    added = call(keys, "add", "gpu-01", "--public", str(public))
    assert added.stdout == f"gpu-01  {key_to_jwk_dict(load_pem_private_key(private.read_bytes(), None))['kid']}\n"
    assert call(keys, "list").stdout == added.stdout


def test_a_nodes_key_is_changed_by_adding_the_new_one_and_revoking_the_old(tmp_path: Path) -> None:
    keys = tmp_path / "nodes.jwks"
    old, new = (
        call(keys, "add", "gpu-01", "--make", str(tmp_path / name)).stdout.split()[1] for name in ("old", "new")
    )
    call(keys, "add", "gpu-02", "--make", str(tmp_path / "other"))
    assert call(keys, "revoke", "gpu-01", "--key", old).stdout == f"gpu-01  {old}  revoked\n"
    assert {key.kid: key.node for key in credentials.load(keys).values() if key.node == "gpu-01"} == {new: "gpu-01"}
    assert call(keys, "revoke", "gpu-01").exit_code == 0
    assert [key.node for key in credentials.load(keys).values()] == ["gpu-02"]


def test_one_key_is_never_two_nodes(tmp_path: Path) -> None:
    keys = tmp_path / "nodes.jwks"
    public = credentials.make(tmp_path / "shared.key")
    credentials.add(keys, credentials.of_node("gpu-01", public))
    with pytest.raises(BadFile, match="is the key of gpu-01"):
        credentials.add(keys, credentials.of_node("gpu-02", public))


def test_keys_that_are_added_at_the_same_time_are_all_there(tmp_path: Path) -> None:
    keys = tmp_path / "nodes.jwks"
    made = [credentials.of_node(f"gpu-{n:02}", credentials.make(tmp_path / f"{n}.key")) for n in range(16)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: credentials.add(keys, key), made))
    assert credentials.load(keys) == {key.kid: key for key in made}


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (("add", "gpu-01"), "give either --public or --make"),
        (("add", "../gpu", "--make", "{there}"), "is no node's name"),
        (("add", "gpu-01", "--make", "{there}"), "is there already, and is not overwritten"),
        (("add", "gpu-01", "--public", "{there}"), "is not a public key"),
        (("add", "gpu-01", "--public", "{rsa}"), "is not an Ed25519 key"),
        (("revoke", "gpu-09"), "unknown key of node 'gpu-09'"),
    ],
)
def test_a_wrong_call_ends_with_one_sentence_and_changes_nothing(
    tmp_path: Path, argv: tuple[str, ...], sentence: str
) -> None:
    keys, there, rsa = tmp_path / "nodes.jwks", tmp_path / "there", tmp_path / "rsa.pub"
    there.write_text("something")
    openssl("genpkey", "-algorithm", "RSA", "-out", str(tmp_path / "rsa"))
    openssl("pkey", "-in", str(tmp_path / "rsa"), "-pubout", "-out", str(rsa))
    done = call(keys, *(each.format(there=there, rsa=rsa) for each in argv))
    assert done.exit_code == 2
    assert sentence in done.output
    assert not keys.exists()
    assert there.read_text() == "something"


@pytest.mark.parametrize(
    "text", ["", "[]", '{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}', '{"keys": [{"node": "a", "kid": "b", "x": "c"}]}']
)
def test_a_file_that_is_no_key_set_trusts_nobody(tmp_path: Path, text: str) -> None:
    keys = tmp_path / "nodes.jwks"
    keys.write_text(text)
    with pytest.raises(BadFile, match="is not one of nodes' keys"):
        credentials.load(keys)
    with pytest.raises((BadFile, Unknown)):
        credentials.revoke(keys, "a")
    assert keys.read_text() == text
