"""deploy/kuberay is checked offline: schemas, references, resources, rights, versions and schedules."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy_checks import created, problems, shortest_gap
from kustomized import Object, merged, put, render, selected

from upl_ray.command_line import load_config, load_predict

ROOT = Path(__file__).parents[1]
KUBERAY = ROOT / "deploy" / "kuberay"
FOLDERS = ("job", "raycronjob", "cronjob")

needs_kubectl = pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl")


def kubectl(*args: str | Path) -> str:
    """Output of a kubectl command that needs no cluster."""
    environment = {**os.environ, "KUBECONFIG": os.devnull}
    done = subprocess.run(["kubectl", *args], capture_output=True, text=True, env=environment, timeout=60, check=True)
    return done.stdout


def find(objects: list[Object], kind: str, name: str) -> Object:
    (one,) = selected(objects, {"kind": kind, "name": name})
    return one


@pytest.mark.parametrize("folder", FOLDERS)
def test_nothing_is_wrong(folder: str) -> None:
    assert problems(render(KUBERAY / folder)) == []


def test_each_folder_applies_what_it_says() -> None:
    shared = {("ServiceAccount", "upl-ray"), ("ConfigMap", "upl-config"), ("ConfigMap", "upl-rayjob")}
    applied = {f: {(o["kind"], o["metadata"]["name"]) for o in render(KUBERAY / f)} - shared for f in FOLDERS}
    assert applied["job"] == {("RayJob", "upl")}
    assert applied["raycronjob"] == {("RayCronJob", "upl-weekly"), ("RayCronJob", "upl-nightly")}
    assert applied["cronjob"] >= {("CronJob", "upl-weekly"), ("CronJob", "upl-nightly")}
    assert "RayJob" not in {kind for kind, _ in applied["cronjob"]}  # or applying the schedule would start a run


def test_both_schedules_run_the_same_jobs() -> None:
    crons, created_jobs = (render(KUBERAY / f) for f in ("raycronjob", "cronjob"))
    for job in created(created_jobs):
        name = job["metadata"]["name"]
        cron = find(crons, "RayCronJob", name)
        assert cron["spec"]["jobTemplate"] == job["spec"]
        assert cron["spec"]["schedule"] == find(created_jobs, "CronJob", name)["spec"]["schedule"]


@needs_kubectl
@pytest.mark.parametrize("folder", FOLDERS)
def test_kustomize_makes_the_same_objects(folder: str) -> None:
    def by_name(objects: list[Object]) -> dict[tuple[str, str], Object]:
        return {(o["kind"], o["metadata"]["name"]): o for o in objects}

    real = list(yaml.safe_load_all(kubectl("kustomize", KUBERAY / folder)))
    assert by_name(real) == by_name(render(KUBERAY / folder))


@needs_kubectl
@pytest.mark.parametrize("name", ["upl-weekly", "upl-nightly"])
def test_kubectl_changes_the_template_in_the_same_way(name: str) -> None:
    template, changes = KUBERAY / "job" / "rayjob.yaml", KUBERAY / "cronjob" / f"{name}.yaml"
    real = kubectl("patch", "--local", "-f", template, "--type", "merge", "--patch-file", changes, "-o", "yaml")
    assert yaml.safe_load(real) == merged(yaml.safe_load(template.read_text()), yaml.safe_load(changes.read_text()))


HEAD = ("spec", "rayClusterSpec", "headGroupSpec")
WORKERS = ("spec", "rayClusterSpec", "workerGroupSpecs", 0)
WORKER = (*WORKERS, "template", "spec", "containers", 0)
FOLLOWER = ("spec", "jobTemplate", "spec", "template", "spec")


@pytest.mark.parametrize(
    ("folder", "kind", "name", "path", "value", "found"),
    [
        ("job", "RayJob", "upl", ("apiVersion",), "ray.io/v1alpha1", "ray.io/v1"),
        ("job", "RayJob", "upl", ("spec", "backOffLimit"), 2, "backOffLimit"),
        ("job", "RayJob", "upl", ("spec", "schedule"), "0 1 * * 6", "schedule"),
        ("job", "RayJob", "upl", ("spec", "ttlSecondsAfterFinished"), "600", "ttlSeconds"),
        ("job", "RayJob", "upl", ("spec", "submissionMode"), "K8SJobMode", "submissionMode"),
        ("job", "RayJob", "upl", ("spec", "shutdownAfterJobFinishes"), False, "its cluster stays"),
        ("job", "RayJob", "upl", ("spec", "entrypoint"), "python jobs/upl.py", "entrypoint"),
        ("job", "RayJob", "upl", ("spec", "entrypoint"), "python /home/ray/upl-ray/jobs/upl.py /etc/a.yaml", "/etc/a"),
        ("job", "RayJob", "upl", ("metadata", "name"), "a" * 48, "too long"),
        ("job", "RayJob", "upl", ("spec", "rayClusterSpec", "rayVersion"), "2.59.0", "rayVersion"),
        ("job", "RayJob", "upl", ("spec", "rayClusterSpec", "authOptions", "mode"), "disabled", "anyone"),
        ("job", "RayJob", "upl", (*HEAD, "rayStartParams"), {}, "tasks on the head"),
        ("job", "RayJob", "upl", (*HEAD, "rayStartParams"), {"num-cpus": 0}, "not of type 'string'"),
        ("job", "RayJob", "upl", (*HEAD, "template", "spec", "serviceAccountName"), "ray", "no ServiceAccount"),
        ("job", "RayJob", "upl", (*HEAD, "template", "spec", "restartPolicy"), "Always", "restartPolicy"),
        ("job", "RayJob", "upl", (*HEAD, "template", "spec", "volumes", 1, "configMap", "name"), "cfg", "no ConfigMap"),
        ("job", "RayJob", "upl", (*WORKERS, "minReplicas"), 0, "replicas"),
        ("job", "RayJob", "upl", (*WORKERS, "replicas"), 5, "replicas"),
        ("job", "RayJob", "upl", (*WORKERS, "rayStartParams"), {"num-cpus": "8"}, "num-cpus 8"),
        ("job", "RayJob", "upl", (*WORKERS, "rayStartParams"), {"num-gpus": "2"}, "num-gpus 2"),
        ("job", "RayJob", "upl", (*WORKER, "image"), "your-registry/upl-ray:0.1.0-ray2.59.0-py311-gpu", "image"),
        ("job", "RayJob", "upl", (*WORKER, "resources", "requests", "cpu"), "6", "requests and limits"),
        ("job", "RayJob", "upl", (*WORKER, "resources", "limits"), {"cpu": "7", "memory": "26Gi"}, "no GPU"),
        ("job", "RayJob", "upl", (*WORKER, "resources", "limits", "memory"), "15Gi", "shared memory"),
        ("job", "RayJob", "upl", (*WORKER, "envFrom", 0, "secretRef", "name"), "s3", "secret"),
        ("job", "RayJob", "upl", (*WORKER, "envFrom", 0, "secretRef", "optional"), False, "secret"),
        ("job", "RayJob", "upl", (*WORKER, "securityContext"), {"allowPrivilegeEscalation": True}, "securityContext"),
        ("job", "RayJob", "upl", (*WORKER, "volumeMounts", 0, "name"), "shm", "volumes"),
        ("job", "RayJob", "upl", (*WORKERS, "template", "spec", "securityContext", "runAsUser"), 0, "runs as root"),
        ("raycronjob", "RayCronJob", "upl-nightly", ("spec", "concurrencyPolicy"), "Forbid", "concurrencyPolicy"),
        ("raycronjob", "RayCronJob", "upl-nightly", ("spec", "schedule"), "every night", "schedule"),
        ("raycronjob", "RayCronJob", "upl-nightly", ("spec", "jobTemplate", "backoffLimit"), 3, "longer than its"),
        ("raycronjob", "RayCronJob", "upl-weekly", ("spec", "schedule"), "0 1 * * *", "longer than its"),
        ("cronjob", "CronJob", "upl-nightly", ("spec", "concurrencyPolicy"), "Allow", "may start twice"),
        ("cronjob", "CronJob", "upl-nightly", ("spec", "jobTemplate", "spec", "backoffLimit"), 1, "may start twice"),
        (
            "cronjob",
            "CronJob",
            "upl-nightly",
            ("spec", "jobTemplate", "spec", "activeDeadlineSeconds"),
            60,
            "ends before",
        ),
        ("cronjob", "CronJob", "upl-nightly", (*FOLLOWER, "serviceAccountName"), "default", "no ServiceAccount"),
        ("cronjob", "CronJob", "upl-nightly", (*FOLLOWER, "containers", 0, "command", 2), "upl-weekly", "creates"),
        ("cronjob", "CronJob", "upl-nightly", (*FOLLOWER, "containers", 0, "command", 2), "upl-hourly", "creates upl"),
        ("cronjob", "Role", "upl-schedule", ("rules", 0, "verbs"), ["create", "delete"], "any name"),
        ("cronjob", "Role", "upl-schedule", ("rules", 0, "resources"), ["pods"], "rights to"),
        ("cronjob", "Role", "upl-schedule", ("rules", 1, "verbs", 0), "*", "not one of"),
        ("cronjob", "Role", "upl-schedule", ("rules", 1, "resourceNames"), ["upl-weekly"], "rights to"),
        ("cronjob", "RoleBinding", "upl-schedule", ("roleRef", "name"), "upl", "no Role"),
        ("cronjob", "RoleBinding", "upl-schedule", ("subjects", 0, "namespace"), "default", "no subject"),
    ],
    ids=lambda value: ".".join(map(str, value[-2:])) if isinstance(value, tuple) else None,
)
def test_a_broken_copy_is_found(
    folder: str, kind: str, name: str, path: tuple[Any, ...], value: Any, found: str
) -> None:
    objects = copy.deepcopy(render(KUBERAY / folder))
    put(find(objects, kind, name), list(path), value)
    assert found in "; ".join(problems(objects))


def test_gaps_between_runs() -> None:
    assert shortest_gap("0 22 * * *") == 24 * 3600
    assert shortest_gap("0 1 * * 6") == 7 * 24 * 3600
    assert shortest_gap("30 * * * *") == 3600


def test_the_jobs_read_their_configuration() -> None:
    files, jobs = KUBERAY / "job", ROOT / "jobs"
    config = load_config([str(files / "upl.yaml")], default=jobs / "demo.yaml")
    assert config.target_backbone.label == "RN50-openai"
    nightly = load_predict([str(files / "predict.yaml")], default=jobs / "predict.yaml")
    assert nightly.classifier == config.storage_path  # its newest classifier, whatever that is
    assert nightly.corpus.uris != config.corpus.uris
    group = find(render(files), "RayJob", "upl")["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    (worker,) = group["template"]["spec"]["containers"]
    most = group["maxReplicas"] * int(worker["resources"]["limits"]["nvidia.com/gpu"])
    assert 1 < config.compute.request["GPU"] <= most
    assert config.compute.wait_for_resources_s > 600  # new nodes pull an image of many GB


@pytest.mark.parametrize(
    ("name", "script", "file"),
    [
        ("upl-weekly", "upl.py", "upl.yaml"),
        ("upl-nightly", "predict.py", "predict.yaml"),
    ],
)
def test_the_scripts_are_in_the_image(name: str, script: str, file: str) -> None:
    (job,) = (j for j in created(render(KUBERAY / "cronjob")) if j["metadata"]["name"] == name)
    (workdir,) = re.findall(r"^WORKDIR (.*)$", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)
    assert job["spec"]["entrypoint"].split() == ["python", f"{workdir}/jobs/{script}", f"/home/ray/config/{file}"]
    assert (ROOT / "jobs" / script).is_file()


MANIFESTS = sorted([*KUBERAY.rglob("*.yaml"), ROOT / "deploy" / "aws" / "bucket-policy.json"])


def values(data: Any) -> list[Any]:
    """All values inside nested mappings and lists."""
    if isinstance(data, dict | list):
        return [v for item in (data.values() if isinstance(data, dict) else data) for v in values(item)]
    return [data]


@pytest.mark.parametrize("path", [p for p in MANIFESTS if p.suffix == ".yaml"], ids=lambda p: p.stem)
def test_every_placeholder_is_marked_in_a_comment(path: Path) -> None:
    text = path.read_text()
    placeholder = re.compile(r"BUCKET|your-registry|0{12}")
    assert [line for line in text.splitlines() if placeholder.search(line) and not line.endswith("# CHANGE")] == []
    assert [v for v in values(list(yaml.safe_load_all(text))) if "CHANGE" in str(v)] == []


def test_no_secret_is_written_down() -> None:
    kinds = {o["kind"] for folder in FOLDERS for o in render(KUBERAY / folder)}
    assert "Secret" not in kinds
    for path in MANIFESTS:
        assert not re.search(r"AKIA[0-9A-Z]|SECRET_ACCESS_KEY['\"]?:\s*\S", path.read_text())
