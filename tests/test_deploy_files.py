"""The files of deploy/: each accepted, strictly, by the schema of what reads it, and one about another."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from klaxon.config import parse_config

DEPLOY = Path(__file__).parent.parent / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
CUSTOM = {"PodMonitor"}
# What the Prometheus operator documents of a PodMonitor, as far as ours goes; any other key is refused.
POD_MONITOR = {
    "type": "object", "additionalProperties": False, "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "monitoring.coreos.com/v1"}, "kind": {"const": "PodMonitor"}, "metadata": {"type": "object", "required": ["name"]},
        "spec": {"type": "object", "additionalProperties": False, "required": ["selector", "podMetricsEndpoints"], "properties": {
            "selector": {"type": "object", "additionalProperties": False, "properties": {
                "matchLabels": {"type": "object"},
                "matchExpressions": {"type": "array", "items": {"type": "object", "additionalProperties": False, "required": ["key", "operator"], "properties": {
                    "key": {"type": "string"}, "operator": {"enum": ["In", "NotIn", "Exists", "DoesNotExist"]}, "values": {"type": "array"}}}}}},
            "podMetricsEndpoints": {"type": "array", "minItems": 1, "items": {"type": "object", "additionalProperties": False, "properties": {
                "port": {"type": "string"}, "path": {"type": "string"}, "interval": {"type": "string", "pattern": "^[0-9]+(ms|s|m)$"},
                "scheme": {"enum": ["http", "https"]}, "authorization": {"type": "object", "additionalProperties": False, "properties": {
                    "type": {"const": "Bearer"}, "credentials": {"type": "object", "additionalProperties": False, "required": ["name", "key"], "properties": {
                        "name": {"type": "string"}, "key": {"type": "string"}}}}}}}}}}}}


def documents(path):
    return [found for found in yaml.safe_load_all(path.read_text()) if found]


def the(kind, name="sidecar"):
    [found] = [found for found in documents(DEPLOY / "kubernetes" / f"{name}.yaml") if found["kind"] == kind]
    return found


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_manifest_holds_under_the_strict_schema(path):
    for found in documents(path):
        if found["kind"] in CUSTOM:
            jsonschema.validate(found, POD_MONITOR)
        else:
            kubernetes_validate.validate(found, "1.29", strict=True)


def test_the_schema_refuses_a_wrong_key():
    wrong = copy.deepcopy(the("Job"))
    wrong["spec"]["template"]["spec"]["initContainers"][0]["restartPolicies"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.29", strict=True)
    wrong = copy.deepcopy(the("PodMonitor", "pod-monitor"))
    wrong["spec"]["podMetricsEndpoints"][0]["intervall"] = "15s"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, POD_MONITOR)


def test_klaxon_is_a_native_sidecar_that_starts_before_the_trainer_and_has_no_rights():
    pod = the("Job")["spec"]["template"]["spec"]
    assert [one["name"] for one in pod["initContainers"]] == ["klaxon", "klaxon-page"]
    for one in pod["initContainers"]:
        assert one["restartPolicy"] == "Always"
        held = one["securityContext"]
        assert held["runAsNonRoot"] and held["readOnlyRootFilesystem"] and held["capabilities"] == {"drop": ["ALL"]} and not held["allowPrivilegeEscalation"]
    assert pod["terminationGracePeriodSeconds"] > 30, "time to drain"


def test_what_the_manifests_name_exists_in_them():
    config = the("ConfigMap", "klaxon-config")
    loaded = parse_config(tomllib.loads(config["data"]["config.toml"]), where="klaxon-config.yaml")
    for pod in (the("Job")["spec"]["template"]["spec"], the("Deployment", "scorer")["spec"]["template"]["spec"]):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        everything = [*pod.get("initContainers", []), *pod["containers"]]
        assert {mount["name"] for one in everything for mount in one["volumeMounts"]} == set(volumes)
        assert volumes["klaxon-config"]["configMap"]["name"] == config["metadata"]["name"]
        klaxon = everything[0]
        mounts = {mount["mountPath"] for mount in klaxon["volumeMounts"]}
        assert {loaded.run.dir, loaded.weights.dir, str(Path(loaded.daemon.socket).parent), str(Path(loaded.daemon.token_file).parent)} <= mounts
        assert [port["containerPort"] for port in klaxon["ports"]] == [loaded.daemon.port]
        for one in everything:
            for variable in one.get("env", []):
                if variable["name"] == "KLAXON_URL":
                    assert variable["value"] == f"unix://{loaded.daemon.socket}"
    labels = the("Job")["spec"]["template"]["metadata"]["labels"]
    assert the("NetworkPolicy", "network-policy")["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    [endpoint] = the("PodMonitor", "pod-monitor")["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in {port["name"] for port in the("Job")["spec"]["template"]["spec"]["initContainers"][0]["ports"]}


def test_the_compose_file_holds_under_the_compose_specification():
    done = subprocess.run(["check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(DEPLOY / "compose" / "compose.yaml")],
                          capture_output=True, text=True, env={"PATH": _beside_python()})
    assert done.returncode == 0, done.stdout + done.stderr
    services = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())["services"]
    assert all(one["read_only"] and one["cap_drop"] == ["ALL"] and one["user"] == "10001:10001" for one in services.values())
    assert all(port.startswith("127.0.0.1:") for one in services.values() for port in one.get("ports", []))


def _beside_python() -> str:
    import os
    import sys

    return f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
def test_systemd_takes_the_units_and_finds_them_well_shut_in(tmp_path):
    for unit in (DEPLOY / "systemd").glob("*.service"):
        (tmp_path / unit.name).write_text(unit.read_text().replace("/opt/klaxon/bin/klaxon", "/bin/true"))
    checked = subprocess.run(["systemd-analyze", "verify", *(str(tmp_path / f"{unit.stem}run1.service") for unit in (DEPLOY / "systemd").glob("*.service"))],
                             capture_output=True, text=True)
    assert checked.returncode == 0 and not checked.stderr.strip(), checked.stderr
    for unit in (DEPLOY / "systemd").glob("*.service"):
        judged = subprocess.run(["systemd-analyze", "security", "--offline=true", str(tmp_path / unit.name)], capture_output=True, text=True).stdout
        assert float(re.search(r"exposure level.*: ([0-9.]+)", judged).group(1)) < 4.0, judged[-400:]
