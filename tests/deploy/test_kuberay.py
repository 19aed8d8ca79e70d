"""deploy/kuberay without a cluster: KubeRay's own definition, versions, secrets, commands and configuration."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from upl_ray.config.cli import load_config, load_predict

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "deploy" / "kuberay"
# KubeRay's CustomResourceDefinition: ray-operator/config/crd/bases/ray.io_rayjobs.yaml of its repository.
DEFINITION = ROOT.parent / "shared" / "data" / "kuberay" / "rayjobs.yaml"
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
Object = dict[str, Any]

needs_definition = pytest.mark.skipif(not DEFINITION.is_file(), reason="KubeRay's definition of RayJob is not at hand")
needs_kubectl = pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl")


def main_job() -> Object:
    """The RayJob of the main job."""
    job: Object = yaml.safe_load((KUBERAY / "job" / "rayjob.yaml").read_text())
    return job


def cron_jobs() -> list[Object]:
    """The CronJobs of both schedules."""
    items: list[Object] = yaml.safe_load((KUBERAY / "cronjob" / "cronjobs.yaml").read_text())["items"]
    return items


def follower(cron_job: Object) -> Object:
    """The template of a CronJob's pod."""
    template: Object = cron_job["spec"]["jobTemplate"]["spec"]["template"]
    return template


def scheduled() -> list[tuple[str, str, Object]]:
    """Of each CronJob: name and changes, as its command has them, and the RayJob that they make of the main job."""
    found = []
    for one in cron_jobs():
        (container,) = follower(one)["spec"]["containers"]
        name, changes = (*container["command"][2:], "{}")[:2]
        job, fields = main_job(), yaml.safe_load(changes)
        for section in fields:
            job[section] |= fields[section]
        found.append((name, changes, job))
    return found


def strict(schema: Any) -> Any:
    """A schema that refuses unknown fields, which Kubernetes drops without an error."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    return {"additionalProperties": False} | closed if isinstance(schema.get("properties"), dict) else closed


@cache
def ray_job_schema() -> Any:
    """JSON schema of a RayJob, version v1."""
    definition = yaml.load(DEFINITION.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (schema,) = (v["schema"]["openAPIV3Schema"] for v in definition["spec"]["versions"] if v["name"] == "v1")
    closed = strict(schema)
    closed["properties"]["metadata"] = {"type": "object"}
    return closed


def schema_errors(value: Object, schema: Any) -> str:
    errors = jsonschema.Draft202012Validator(schema).iter_errors(value)
    return "; ".join(f"{e.json_path}: {e.message[:200]}" for e in errors)


@needs_definition
def test_kuberay_accepts_every_ray_job() -> None:
    for job in (main_job(), *(job for _, _, job in scheduled())):
        assert schema_errors(job, ray_job_schema()) == ""


@needs_definition
def test_the_pods_of_the_schedules_are_pods() -> None:
    pod = ray_job_schema()["properties"]["spec"]["properties"]["submitterPodTemplate"]
    for one in cron_jobs():
        assert schema_errors(follower(one), pod) == ""


@needs_definition
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("backOffLimit",), 2),
        (("ttlSecondsAfterFinished",), "600"),
        (("rayClusterSpec", "headGroupSpec", "rayStartParams"), {"num-cpus": 0}),
        (("rayClusterSpec", "headGroupSpec", "template", "spec", "volumes", 0, "emptydir"), {}),
        (("submitterPodTemplate", "spec", "containers", 0, "resources", "limits"), {"cpu": "half"}),
    ],
    ids=lambda value: str(value[-1]) if isinstance(value, tuple) else "",
)
def test_a_misspelled_or_mistyped_field_is_found(path: tuple[str | int, ...], value: object) -> None:
    job = copy.deepcopy(main_job())
    section: Any = job["spec"]
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    assert str(path[-1]) in schema_errors(job, ray_job_schema())


def kubectl(*args: str | Path) -> str:
    """Output of a kubectl command that needs no cluster."""
    environment = {**os.environ, "KUBECONFIG": os.devnull}
    done = subprocess.run(["kubectl", *args], capture_output=True, text=True, env=environment, timeout=60, check=True)
    return done.stdout


@needs_kubectl
def test_each_folder_applies_what_it_says() -> None:
    applied = {}
    for folder in ("job", "cronjob"):
        objects = list(yaml.safe_load_all(kubectl("kustomize", KUBERAY / folder)))
        assert {o["metadata"]["namespace"] for o in objects} == {"upl-ray"}
        applied[folder] = {f"{o['kind']}/{o['metadata']['name']}" for o in objects}
    shared = {"ServiceAccount/upl-ray", "ConfigMap/upl-config", "ConfigMap/upl-rayjob"}
    assert applied["job"] == shared | {"RayJob/upl"}
    rights = {f"{kind}/upl-schedule" for kind in ("ServiceAccount", "Role", "RoleBinding", "ConfigMap")}
    assert applied["cronjob"] == shared | rights | {"CronJob/upl-weekly", "CronJob/upl-nightly"}  # no run starts now


@needs_kubectl
def test_kubectl_makes_the_scheduled_ray_jobs_of_the_main_job() -> None:
    for name, changes, job in scheduled():
        patch = ["--type", "merge", "--patch", changes, "--output", "yaml"]
        assert yaml.safe_load(kubectl("patch", "--local", "-f", KUBERAY / "job" / "rayjob.yaml", *patch)) == job
        assert job["metadata"]["name"] == name


def test_the_schedules_may_create_and_replace_their_ray_jobs_alone() -> None:
    _, role, _ = yaml.safe_load_all((KUBERAY / "cronjob" / "access.yaml").read_text())
    assert all((rule["apiGroups"], rule["resources"]) == (["ray.io"], ["rayjobs"]) for rule in role["rules"])
    names = {name for name, _, _ in scheduled()}
    assert [set(rule["resourceNames"]) for rule in role["rules"] if rule["verbs"] != ["create"]] == [names]


@pytest.mark.parametrize(("name", "script"), [("upl", "upl"), ("upl-nightly", "predict")])
def test_the_commands_are_those_of_the_readme(name: str, script: str) -> None:
    (job,) = (job for n, _, job in scheduled() if n == name)
    assert job["spec"]["entrypoint"] == (
        f"python /home/ray/upl-ray/jobs/{script}.py /home/ray/config/{script}.yaml"  # both folders are in the pod
    )
    assert f"python jobs/{script}.py" in (ROOT / "README.md").read_text()
    assert (ROOT / "jobs" / f"{script}.py").is_file()
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert {"name": "config", "mountPath": "/home/ray/config", "readOnly": True} in head["containers"][0][
        "volumeMounts"
    ]
    assert {"name": "config", "configMap": {"name": "upl-config"}} in head["volumes"]


def test_the_jobs_read_their_configuration() -> None:
    files, jobs = KUBERAY / "job", ROOT / "jobs"
    config = load_config([str(files / "upl.yaml")], default=jobs / "demo.yaml")
    assert config.target_backbone.label == "RN50-openai"
    nightly = load_predict([str(files / "predict.yaml")], default=jobs / "predict.yaml")
    assert nightly.classifier == config.storage_path  # its newest classifier
    assert nightly.corpus.uris != config.corpus.uris
    (group,) = main_job()["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    (worker,) = group["template"]["spec"]["containers"]
    most = group["maxReplicas"] * int(worker["resources"]["limits"]["nvidia.com/gpu"])
    assert 1 < config.compute.request["GPU"] <= most
    assert config.compute.wait_for_resources_s > 600  # new nodes pull an image of many GB


def test_the_cluster_is_the_ray_that_was_tested_and_closed_to_strangers() -> None:
    cluster = main_job()["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == PINS["ray"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"  # the head runs no work


MANIFESTS = sorted([*KUBERAY.rglob("*.yaml"), ROOT / "deploy" / "aws" / "bucket-policy.json"])


@pytest.mark.parametrize("path", [p for p in MANIFESTS if p.suffix == ".yaml"], ids=lambda p: p.stem)
def test_every_placeholder_is_marked(path: Path) -> None:
    placeholder = re.compile(r"BUCKET|your-registry|0{12}")
    unmarked = [line for line in path.read_text().splitlines() if placeholder.search(line) and "# CHANGE" not in line]
    assert unmarked == []


def test_no_secret_is_written_down() -> None:
    for path in MANIFESTS:
        assert not re.search(r"^kind: Secret|AKIA[0-9A-Z]|SECRET_ACCESS_KEY['\"]?:\s*\S", path.read_text(), re.M)
