"""infra/kubernetes: kustomize builds it, and Kubernetes' own schemas allow every field of it."""

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate as schemas
import pytest
import yaml

from pipelines import process

FOLDER = Path(__file__).parents[2] / "infra/kubernetes"
UNPACKED = FOLDER.parents[1] / ".venv/kubectl/usr/bin/kubectl"  # by infra/bootstrap.sh
VERSIONS = ("1.29", "1.37")
OVERLAYS = ("base", "gpu")


def written(name: str) -> dict[str, Any]:
    """A file of the base, which is a whole manifest."""
    return dict(yaml.safe_load((FOLDER / "base" / name).read_text()))


@cache
def built(overlay: str) -> list[dict[str, Any]]:
    """What would be applied to a cluster."""
    kubectl = shutil.which("kubectl") or shutil.which(UNPACKED)
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    argv = (kubectl, "kustomize", str(FOLDER / overlay))
    made = process.run(argv, timeout_s=120)
    assert made.exit_status == 0, made.stderr
    return list(yaml.safe_load_all(made.stdout))


def worker(overlay: str) -> dict[str, Any]:
    (found,) = (each for each in built(overlay) if each["kind"] == "DaemonSet")
    return dict(found)


def pod(overlay: str) -> dict[str, Any]:
    return dict(worker(overlay)["spec"]["template"]["spec"])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_manifest_is_valid_by_the_schema_of_its_kind(overlay: str, version: str) -> None:
    manifests = built(overlay)
    assert {each["kind"] for each in manifests} == {"Namespace", "ConfigMap", "DaemonSet"}
    for manifest in manifests:
        schemas.validate(manifest, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_base_is_valid_as_it_is_written(version: str) -> None:
    for name in ("namespace.yaml", "worker.yaml"):
        schemas.validate(written(name), version, strict=True)


def test_the_schema_refuses_a_misspelt_field() -> None:
    manifest = written("worker.yaml")
    manifest["spec"]["template"]["spec"]["hostNetwrok"] = True
    with pytest.raises(schemas.ValidationError, match="hostNetwrok"):
        schemas.validate(manifest, VERSIONS[0], strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_worker_has_its_nodes_name_and_its_credentials_by_reference_alone(overlay: str) -> None:
    (container,) = pod(overlay)["containers"]
    environment = {each["name"]: each for each in container["env"]}
    assert environment["FLEETMARK_NODE"]["valueFrom"] == {"fieldRef": {"fieldPath": "spec.nodeName"}}
    assert container["args"][2:4] == ["--queues=$(FLEETMARK_NODE)", "--edge-hostname=$(FLEETMARK_NODE)"]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert "secretKeyRef" in environment[name]["valueFrom"]
    assert environment["AIRFLOW__API_AUTH__JWT_SECRET"].get("value", "") == ""
    assert [each for each in built(overlay) if each["kind"] == "Secret"] == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_container_is_root_or_may_become_it_or_has_no_limits(overlay: str) -> None:
    described = pod(overlay)
    assert described["securityContext"]["runAsNonRoot"]
    assert described["securityContext"]["runAsUser"] == 50000
    assert described["automountServiceAccountToken"] is False
    for container in (*described["initContainers"], *described["containers"]):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"memory", "ephemeral-storage"} <= set(container["resources"]["limits"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_directories_of_the_node_are_the_three_that_it_needs_and_are_not_made(overlay: str) -> None:
    found = {each["name"]: each["hostPath"] for each in pod(overlay)["volumes"] if "hostPath" in each}
    paths = {"state": "/var/lib/fleetmark", "scratch": "/scratch", "lock": "/run/lock"}
    assert found == {name: {"path": path, "type": "Directory"} for name, path in paths.items()}


def test_the_gpu_overlay_sees_all_gpus_and_asks_for_none() -> None:
    described = pod("gpu")
    (container,) = described["containers"]
    assert described["runtimeClassName"] == "nvidia"
    assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"} in container["env"]
    assert "nvidia.com/gpu" not in container["resources"]["limits"]
    assert described["nodeSelector"] == {"fleetmark/node": "true", "nvidia.com/gpu.present": "true"}
