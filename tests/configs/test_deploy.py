"""The image, compose, the chart and the unit: they parse, agree with the engine, and pass their own tools."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from engine import __version__
from engine.config import load
from engine.config.tree import Config
from tests.test_documents import ENVIRONMENT, ROOT

DEPLOY = ROOT / "configs" / "deploy"
CHART = DEPLOY / "helm" / "headrace"
# A configuration with a value of each kind that TOML must get right.
OTHER: dict[str, Any] = {
    "memory": {"limit": "1.5 GB"},
    "shutdown": {"timeout": "1.5m"},
    "batch": {"rows": 50000, "interval": "1m"},
    "source": {
        "uri": "mongodb://a/?x=<&>",
        "split": {"orders": 2},
        "expanded_events": True,
        "pipeline": [
            {"$match": {"total": {"$gt": 0.5}}},
            {"$match": {"fullDocument.kind": {"$in": ["a", 'b"\n']}}},
        ],
    },
}


def values() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return found


def schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
    return found


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return found


def unit() -> dict[str, list[str]]:
    """The settings of the service, each with its values in order."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(
        r"^(\w+)=(.*)$", (DEPLOY / "systemd" / "headrace.service").read_text(), re.MULTILINE
    ):
        found.setdefault(name, []).append(value)
    return found


def run(tool: str, *arguments: str) -> str:
    """Its output; skips if the tool is not installed."""
    found = shutil.which(tool) or shutil.which(tool, path=Path(sys.executable).parent)
    if found is None:
        pytest.skip(f"{tool} is not installed")
    done = subprocess.run([found, *arguments], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def written(path: Path, found: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(found))
    return path


# --- every file parses --------------------------------------------------------------------------------------


def test_every_file_parses() -> None:
    templates = CHART / "templates"
    for path in (each for ending in ("*.yaml", "*.yml") for each in DEPLOY.rglob(ending)):
        if templates not in path.parents:
            assert list(yaml.safe_load_all(path.read_text())), path
    for path in DEPLOY.rglob("*.json"):
        assert json.loads(path.read_text()), path


# --- image and compose --------------------------------------------------------------------------------------


def test_the_image_runs_without_rights_and_copies_what_is_in_its_context() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    assert re.search(r"^USER 10001:10001$", text, re.MULTILINE)
    assert "/health" in re.findall(r"^HEALTHCHECK .*(?:\n +.*)*", text, re.MULTILINE)[0]
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    sent = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = {
        word for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE) for word in line.split()[:-1]
    }
    assert all((ROOT / each).exists() for each in copied)
    assert {each for each in copied if each not in sent and each.partition("/")[0] not in sent} == set()
    assert ignored[1] == "*"


def test_compose_is_hardened_and_mounts_what_exists() -> None:
    found = compose()["services"]
    engine = found["headrace"]
    assert engine["read_only"]
    assert engine["cap_drop"] == ["ALL"]
    assert "shm_size" not in engine
    for name, service in found.items():
        assert service.get("profiles", []) == ([] if name == "headrace" else ["monitoring"])
        for mount in service.get("volumes", ()):
            source = mount.partition(":")[0]
            assert source in compose()["volumes"] or (DEPLOY / source).exists(), mount
    assert (DEPLOY / engine["build"]["context"] / engine["build"]["dockerfile"]).exists()


# --- the memory and the time that containers, pods and units give ---------------------------------------------


def test_memory_and_time_follow_from_the_configuration() -> None:
    config = load(DEPLOY / "headrace.toml", ENVIRONMENT)
    memory_mib = config.memory.limit * 9 // 8 // 2**20
    engine, service = compose()["services"]["headrace"], unit()
    assert engine["mem_limit"] == engine["memswap_limit"] == f"{memory_mib}m"
    assert service["MemoryMax"] == [f"{memory_mib}M"]
    for given in (engine["stop_grace_period"], *service["TimeoutStopSec"]):
        assert int(given.removesuffix("s")) == config.shutdown.timeout + 15


# --- systemd ------------------------------------------------------------------------------------------------


def test_the_unit_reads_its_secret_and_stops_in_order() -> None:
    service = unit()
    assert service["KillMode"] == ["mixed"]
    assert service["RestartPreventExitStatus"] == ["2"]
    assert "ProtectProc" not in service  # engine.owner must see the processes of other users
    (secret,) = (each for each in service["Environment"] if each.startswith("MONGODB_URI"))
    name = service["LoadCredential"][0].partition(":")[0]
    assert secret == f"MONGODB_URI_FILE=%d/{name}"


def test_a_secret_can_be_named_in_the_environment(tmp_path: Path) -> None:
    """As compose and the unit do."""
    path = tmp_path / "mongodb-uri"
    path.write_text("mongodb://reader:word@db.example/\n")
    config = load(DEPLOY / "headrace.toml", {"MONGODB_URI_FILE": str(path)})
    assert config.source.uri == "mongodb://reader:word@db.example/"
    assert "word" not in config.redactor()("mongodb://reader:word@db.example/")


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    text = (DEPLOY / "systemd" / "headrace.service").read_text()
    path = tmp_path / "headrace.service"
    path.write_text(text.replace("/opt/headrace/bin/headrace", shutil.which("true") or "/bin/true"))
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if "headrace.service" in line] == []


# --- the chart ----------------------------------------------------------------------------------------------


def test_the_values_meet_their_schema() -> None:
    jsonschema.Draft7Validator.check_schema(schema())
    jsonschema.validate(values(), schema())
    assert schema()["properties"].keys() - {"global"} == values().keys()


def test_the_schema_has_the_sections_of_the_configuration() -> None:
    sections = {each for each in Config.__struct_fields__ if each != "fetched"}
    assert schema()["properties"]["config"]["properties"].keys() == sections


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("replica", 2),
        ("config.sinks", {}),
        ("config.memory.limit", "1Gi!"),
        ("config.shutdown.timeout", "25 seconds"),
        ("config.telemetry", {"listen": "0.0.0.0:9000"}),
        ("strategy.type", "BlueGreen"),
        ("serviceAccount.roleArn", "headrace"),
        ("image.digest", "latest"),
    ],
)
def test_wrong_values_are_refused(path: str, wrong: Any) -> None:
    found = section = values()
    *parents, last = path.split(".")
    for each in parents:
        section = section[each]
    section[last] = wrong
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found, schema())


def test_the_chart_is_of_this_version() -> None:
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == __version__


def rendered(*arguments: str) -> dict[str, dict[str, Any]]:
    """The chart's objects, by kind."""
    text = run("helm", "template", "test", str(CHART), "--namespace", "data", *arguments)
    return {each["kind"]: each for each in yaml.safe_load_all(text) if each}


def config_of(found: dict[str, dict[str, Any]], tmp_path: Path) -> Config:
    """The configuration that a rendered chart gives to the engine."""
    path = tmp_path / "headrace.toml"
    secret = tmp_path / "mongodb-uri"
    secret.write_text("mongodb://db.example/")
    text = found["ConfigMap"]["data"]["headrace.toml"]
    path.write_text(text.replace("/run/secrets/headrace/mongodb-uri", str(secret)))
    return load(path, {})


def test_helm_renders_what_the_engine_reads(tmp_path: Path) -> None:
    found = rendered()
    assert found.keys() == {"ConfigMap", "Deployment", "NetworkPolicy", "Service", "ServiceAccount"}
    pod = found["Deployment"]["spec"]["template"]["spec"]
    config = config_of(found, tmp_path)
    assert config.source.uri == "mongodb://db.example/"
    assert config.telemetry.listen == "0.0.0.0:8080"
    assert pod["terminationGracePeriodSeconds"] == config.shutdown.timeout + 15
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["memory"] == f"{config.memory.limit * 9 // 8 // 2**20}Mi"
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    assert found["Deployment"]["spec"]["strategy"] == strategy
    assert config.fleet.generation == 1  # the revision of the release


def test_helm_renders_other_values(tmp_path: Path) -> None:
    given = {
        "config": OTHER,
        "replicas": 2,
        "serviceMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True},
        "serviceAccount": {"roleArn": "arn:aws:iam::123456789012:role/headrace"},
        "resources": {"limits": {"cpu": "2"}},
    }
    found = rendered("--values", str(written(tmp_path / "values.yaml", given)))
    config = config_of(found, tmp_path)
    assert config.source.uri == OTHER["source"]["uri"]
    assert list(config.source.pipeline) == OTHER["source"]["pipeline"]
    assert (config.source.split, config.source.expanded_events) == ({"orders": 2}, True)
    assert config.batch.rows == 50000
    pod = found["Deployment"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == config.shutdown.timeout + 15 == 105
    (container,) = pod["containers"]
    memory = f"{-(-config.memory.limit * 9 // (8 * 2**20))}Mi"
    assert container["resources"] == {
        "requests": {"cpu": "1", "memory": memory},
        "limits": {"cpu": "2", "memory": memory},
    }
    assert "PodDisruptionBudget" in found
    annotations = found["ServiceAccount"]["metadata"]["annotations"]
    assert annotations == {"eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/headrace"}
    rules = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
    assert found["PrometheusRule"]["spec"] == rules
    dashboard = rendered("--set", "dashboard.enabled=true", "--show-only", "templates/dashboard.yaml")
    text = dashboard["ConfigMap"]["data"]["headrace.json"]
    assert json.loads(text) == json.loads((CHART / "files" / "dashboard.json").read_text())


def test_helm_accepts_the_chart() -> None:
    run("helm", "lint", "--strict", str(CHART))


def test_hadolint_accepts_the_dockerfile() -> None:
    run("hadolint", str(DEPLOY / "Dockerfile"))
