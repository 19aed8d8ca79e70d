"""The image's versions, files and user, and the rights in object storage, agree with the rest of the repository."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml
from deploy_checks import PINS

ROOT = Path(__file__).parents[1]
RAYJOB = ROOT / "deploy" / "kuberay" / "job" / "rayjob.yaml"
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()


def instructions(name: str) -> list[str]:
    """Arguments of all Dockerfile instructions of this name, continued lines joined."""
    return re.findall(rf"^{name} +(.*)$", DOCKERFILE.replace("\\\n", " "), re.MULTILINE)


def test_the_image_is_the_one_of_the_cluster_file_with_the_pinned_ray() -> None:
    arguments = dict(a.split("=") for a in instructions("ARG"))
    (image,) = instructions("FROM")
    for name, value in arguments.items():
        image = image.replace(f"${{{name}}}", value)
    assert image == yaml.safe_load((ROOT / "cluster.yaml").read_text())["docker"]["worker_image"]
    assert arguments["RAY"] == PINS["ray"]
    (tag,) = set(re.findall(r"your-registry/(upl-ray:\S+)", DOCKERFILE))
    assert tag in RAYJOB.read_text()
    assert re.search(rf"^version = \"{tag.split(':')[1].split('-')[0]}\"$", (ROOT / "pyproject.toml").read_text(), re.M)


def test_the_image_has_exactly_the_pinned_versions() -> None:
    installs = [line for line in instructions("RUN") if "pip install" in line]
    assert "$(grep '^pip==' constraints.txt)" in installs[0]
    assert "--constraint constraints.txt --build-constraint constraints.txt ." in installs[1]
    assert not re.search(r"[a-z]==[0-9]", DOCKERFILE)  # no second place for a version
    assert "pip" in PINS


def test_the_image_copies_what_it_is_allowed_to_see() -> None:
    lines = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().splitlines()
    ignore = [line for line in lines if not line.startswith("#")]
    sources = [s for line in instructions("COPY") for s in line.split()[1:-1]]
    assert sources
    for source in sources:
        assert (ROOT / source).exists()
    assert ignore == ["*", *(f"!{s}" for s in sources), "**/__pycache__"]


def test_the_image_runs_as_the_user_of_the_pods() -> None:
    (user,) = instructions("USER")
    contexts = values_of(yaml.safe_load(RAYJOB.read_text()), "securityContext")
    assert {f"{c['runAsUser']}:{c['runAsGroup']}" for c in contexts if "runAsUser" in c} == {user}


def values_of(data: Any, key: str) -> list[Any]:
    """The values of a key at any depth."""
    if isinstance(data, list):
        return [v for item in data for v in values_of(item, key)]
    if not isinstance(data, dict):
        return []
    return ([data[key]] if key in data else []) + [v for item in data.values() for v in values_of(item, key)]


def test_the_bucket_policy_gives_the_rights_that_the_readme_names() -> None:
    policy = json.loads((ROOT / "deploy" / "aws" / "bucket-policy.json").read_text())
    granted: dict[str, set[str]] = {}
    for statement in policy["Statement"]:
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
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert "needs the rights to list, get and put, and to delete only with `--keep-features`" in readme
