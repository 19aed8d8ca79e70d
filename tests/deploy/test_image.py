"""The image's versions, files and user, and the rights in object storage, agree with the rest of the repository."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
RAYJOB = (ROOT / "deploy" / "kuberay" / "job" / "rayjob.yaml").read_text()
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
PINS = (ROOT / "constraints.txt").read_text().splitlines()


def instructions(name: str) -> list[str]:
    """Arguments of all Dockerfile instructions of this name, continued lines joined."""
    return re.findall(rf"^{name} +(.*)$", DOCKERFILE.replace("\\\n", " "), re.MULTILINE)


def test_the_image_is_the_one_of_the_cluster_file_and_of_every_pod_with_the_pinned_ray() -> None:
    arguments = dict(a.split("=") for a in instructions("ARG"))
    (image,) = instructions("FROM")
    for name, value in arguments.items():
        image = image.replace(f"${{{name}}}", value)
    assert image == yaml.safe_load((ROOT / "cluster.yaml").read_text())["docker"]["worker_image"]
    assert f"ray=={arguments['RAY']}" in PINS
    (tag,) = set(re.findall(r"your-registry/(upl-ray:\S+)", DOCKERFILE + RAYJOB))
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert tag == f"upl-ray:{version[1]}-ray{arguments['RAY']}-{arguments['PYTHON']}-{arguments['DEVICE']}"


def test_the_image_has_exactly_the_pinned_versions() -> None:
    installs = [line for line in instructions("RUN") if "pip install" in line]
    assert "$(grep '^pip==' constraints.txt)" in installs[0]
    assert "--constraint constraints.txt --build-constraint constraints.txt ." in installs[1]
    assert not re.search(r"[a-z]==[0-9]", DOCKERFILE)  # no second place for a version
    assert any(pin.startswith("pip==") for pin in PINS)


def test_the_image_copies_all_that_it_is_allowed_to_see() -> None:
    lines = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().splitlines()
    sources = [s for line in instructions("COPY") for s in line.split()[1:-1]]
    assert sources
    assert [s for s in sources if not (ROOT / s).exists()] == []
    assert [line for line in lines if not line.startswith("#")] == ["*", *(f"!{s}" for s in sources), "**/__pycache__"]


def test_the_image_runs_as_the_user_of_the_pods() -> None:
    users, groups = (set(re.findall(rf"{key}: (\d+)", RAYJOB)) for key in ("runAsUser", "runAsGroup"))
    assert [f"{user}:{group}" for user in users for group in groups] == instructions("USER")


def test_the_bucket_policy_deletes_features_alone() -> None:
    granted: dict[str, set[str]] = {}
    for statement in json.loads((ROOT / "deploy" / "aws" / "bucket-policy.json").read_text())["Statement"]:
        assert statement["Effect"] == "Allow"
        actions, resources = (v if isinstance(v, list) else [v] for v in (statement["Action"], statement["Resource"]))
        for action in actions:
            granted.setdefault(action, set()).update(resources)
    bucket = "arn:aws:s3:::BUCKET"
    assert granted == {
        "s3:ListBucket": {bucket},
        "s3:GetObject": {f"{bucket}/images/*", f"{bucket}/new/*", f"{bucket}/upl-run/*"},
        "s3:PutObject": {f"{bucket}/upl-run/*"},
        "s3:DeleteObject": {f"{bucket}/upl-run/features-*"},
    }
