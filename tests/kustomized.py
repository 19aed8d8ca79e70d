"""What `kubectl kustomize` makes of the folders in deploy/kuberay, as far as they use it; tested against kubectl."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]

LOCAL = "config.kubernetes.io/local-config"


def render(folder: Path) -> list[Object]:
    """The objects that `kubectl apply -k` would send, in any order."""
    rules = yaml.safe_load((folder / "kustomization.yaml").read_text())
    objects: list[Object] = []
    for resource in rules["resources"]:
        path = folder / resource
        objects += render(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))
    objects += [config_map(folder, g["name"], g["files"]) for g in rules.get("configMapGenerator", [])]
    for patch in rules.get("patches", []):
        for change in yaml.safe_load(patch["patch"]):
            assert change["op"] == "add"
            for one in selected(objects, patch["target"]):
                put(one, change["path"].strip("/").split("/"), change["value"])
    for rule in rules.get("replacements", []):
        replace(objects, rule)
    for one in objects:
        one["metadata"]["namespace"] = rules["namespace"]
    return [o for o in objects if LOCAL not in o["metadata"].get("annotations", {})]


def config_map(folder: Path, name: str, files: list[str]) -> Object:
    """The ConfigMap of some files of this folder; kustomize reads none from outside."""
    data = {file: (folder / file).read_text() for file in files}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def selected(objects: list[Object], target: dict[str, str]) -> list[Object]:
    """The objects of this kind and, if it is given, this name."""
    return [o for o in objects if o["kind"] == target["kind"] and target.get("name") in (None, o["metadata"]["name"])]


def put(value: Object, path: list[str], new: Any) -> None:
    """Set a nested field."""
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = copy.deepcopy(new)


def replace(objects: list[Object], rule: dict[str, Any]) -> None:
    """Copy a field of one object to others."""
    (value,) = selected(objects, rule["source"])
    for key in rule["source"]["fieldPath"].split("."):
        value = value[key]
    for target in rule["targets"]:
        for one in selected(objects, target["select"]):
            for path in target["fieldPaths"]:
                put(one, path.split("."), value)


def merged(target: Any, patch: Any) -> Any:
    """A JSON merge patch, by the pseudocode of RFC 7386."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result
