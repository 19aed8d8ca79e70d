"""What is wrong with Kubernetes objects: references, resources, rights, schedules, versions; and their schemas."""

from __future__ import annotations

import datetime
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from deploy_schema import KINDS
from kustomized import Object, merged, selected

ROOT = Path(__file__).parents[1]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
TO_CREATE = {"upl-s3"}  # secrets that docs say how to make; each must be optional
IMAGE = re.compile(rf"^your-registry/upl-ray:[0-9.]+-ray{re.escape(PINS['ray'])}-py311-gpu$")
UNITS = {"": 1.0, "m": 1e-3, "Mi": 2.0**20, "Gi": 2.0**30}
LONGEST_NAME = 47  # of a RayJob (KubeRay's validation.go); a RayCronJob's RayJobs add `-xxxxx`


def problems(objects: list[Object]) -> list[str]:
    """Everything wrong with a set of objects that is applied together, a sentence each."""
    found = schema_problems(objects)
    if found:  # the rest relies on the fields being there
        return found
    found += [p for pod in pods(objects) for p in (*reference_problems(*pod, objects), *container_problems(*pod))]
    found += [p for name, spec in ray_jobs(objects) for p in ray_problems(name, spec, objects)]
    return found + rights_problems(objects) + schedule_problems(objects)


def schema_problems(objects: list[Object]) -> list[str]:
    """Objects of kinds or with fields that their API does not know."""
    found = []
    for one in [*objects, *created(objects)]:
        schema = KINDS.get(one.get("kind", ""))
        if schema is None:
            found.append(f"kind {one.get('kind')}")
            continue
        errors = jsonschema.Draft202012Validator(schema).iter_errors(one)
        found += [f"schema: {one['kind']} {e.json_path}: {e.message[:200]}" for e in errors]
    return found


def created(objects: list[Object]) -> list[Object]:
    """The RayJobs that the CronJobs create: the template with the changes of the name that their command ends in."""
    maps = {o["metadata"]["name"]: o["data"] for o in selected(objects, {"kind": "ConfigMap"})}
    jobs = []
    for one in selected(objects, {"kind": "CronJob"}):
        (container,) = one["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        changes = maps["upl-schedule"].get(f"{container['command'][-1]}.yaml", "{}")
        jobs.append(merged(yaml.safe_load(maps["upl-rayjob"]["rayjob.yaml"]), yaml.safe_load(changes)))
    return jobs


def ray_jobs(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Name and spec of every RayJob that the objects are, or bring about."""
    for one in [*selected(objects, {"kind": "RayJob"}), *created(objects)]:
        yield one["metadata"]["name"], one["spec"]
    for one in selected(objects, {"kind": "RayCronJob"}):
        yield f"{one['metadata']['name']}-xxxxx", one["spec"]["jobTemplate"]


def pods(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Name and spec of every pod."""
    for name, spec in ray_jobs(objects):
        cluster = spec["rayClusterSpec"]
        groups = {g["groupName"]: g for g in cluster["workerGroupSpecs"]}
        for group, pod in {"head": cluster["headGroupSpec"], **groups}.items():
            yield f"{name} {group}", pod["template"]["spec"]
        yield f"{name} submitter", spec["submitterPodTemplate"]["spec"]
    for one in selected(objects, {"kind": "CronJob"}):
        yield f"CronJob {one['metadata']['name']}", one["spec"]["jobTemplate"]["spec"]["template"]["spec"]


def reference_problems(pod: str, spec: Object, objects: list[Object]) -> Iterator[str]:
    """Volumes, ConfigMaps, Secrets and ServiceAccounts that are used and not there, or there and not used."""
    volumes = {v["name"]: v for v in spec.get("volumes", [])}
    mounted = {m["name"] for c in spec["containers"] for m in c.get("volumeMounts", [])}
    if mounted != set(volumes):
        yield f"{pod}: volumes {sorted(volumes)}, mounted {sorted(mounted)}"
    for volume in volumes.values():
        if "configMap" in volume and not selected(objects, {"kind": "ConfigMap", "name": volume["configMap"]["name"]}):
            yield f"{pod}: no ConfigMap {volume['configMap']['name']}"
    account = spec.get("serviceAccountName")
    if account and not selected(objects, {"kind": "ServiceAccount", "name": account}):
        yield f"{pod}: no ServiceAccount {account}"
    secrets = [e["secretRef"] for c in spec["containers"] for e in c.get("envFrom", [])]
    yield from (f"{pod}: secret {s}" for s in secrets if s["name"] not in TO_CREATE or s.get("optional") is not True)


def container_problems(pod: str, spec: Object) -> Iterator[str]:
    """Containers that could take more than they ask for, or rights that they do not need."""
    if spec["securityContext"].get("runAsNonRoot") is not True or not spec["securityContext"].get("runAsUser"):
        yield f"{pod}: runs as root"
    if spec.get("restartPolicy") != "Never":
        yield f"{pod}: restartPolicy"  # required by the autoscaler (v2), and a Job must not start a second RayJob
    for one in spec["containers"]:
        security = one.get("securityContext", {})
        if security != {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}:
            yield f"{pod}: securityContext of {one['name']}"
        if one["resources"]["limits"] != one["resources"]["requests"]:
            yield f"{pod}: requests and limits of {one['name']} differ"
        memory = amount(one["resources"]["limits"]["memory"])
        shared = sum(amount(v["emptyDir"]["sizeLimit"]) for v in spec.get("volumes", []) if "emptyDir" in v)
        if not shared < 0.5 * memory:
            yield f"{pod}: shared memory of {shared:g} in {memory:g} bytes"


def amount(quantity: str) -> float:
    """A Kubernetes quantity as a number: CPUs or bytes."""
    number = quantity.rstrip("miGM")
    return float(number) * UNITS[quantity.removeprefix(number)]


def ray_problems(name: str, spec: Object, objects: list[Object]) -> Iterator[str]:
    """A RayJob against its image, its configuration and Ray's own resources."""
    cluster, head = spec["rayClusterSpec"], spec["rayClusterSpec"]["headGroupSpec"]
    if len(name) > LONGEST_NAME:
        yield f"{name}: the name is too long"
    if cluster["rayVersion"] != PINS["ray"]:
        yield f"{name}: rayVersion {cluster['rayVersion']}"
    images = {c["image"] for pod, s in pods(objects) if pod.startswith(f"{name} ") for c in s["containers"]}
    yield from (f"{name}: image {i}" for i in images if not IMAGE.match(i))
    if cluster.get("authOptions") != {"mode": "token"}:
        yield f"{name}: anyone may submit jobs"
    if head["rayStartParams"].get("num-cpus") != "0":
        yield f"{name}: tasks on the head"
    for group in cluster["workerGroupSpecs"]:
        (worker,) = group["template"]["spec"]["containers"]
        yield from worker_problems(f"{name} {group['groupName']}", group, worker["resources"]["limits"])
    yield from entrypoint_problems(name, spec["entrypoint"].split(), head["template"]["spec"], objects)
    if not (spec["shutdownAfterJobFinishes"] and spec["ttlSecondsAfterFinished"] > 0):
        yield f"{name}: its cluster stays, or goes before its logs are read"


def worker_problems(name: str, group: Object, limits: dict[str, str]) -> Iterator[str]:
    """A worker group: how many, with how many GPUs, and what Ray is told of it."""
    if not 1 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
        yield f"{name}: replicas"
    if amount(limits.get("nvidia.com/gpu", "0")) < 1:
        yield f"{name}: no GPU"
    for parameter, resource in (("num-cpus", "cpu"), ("num-gpus", "nvidia.com/gpu")):
        told = group["rayStartParams"].get(parameter, limits.get(resource))
        if told != limits.get(resource):
            yield f"{name}: {parameter} {told}, but {limits.get(resource)} in the limits"


def entrypoint_problems(name: str, words: list[str], head: Object, objects: list[Object]) -> Iterator[str]:
    """The command runs a script of the image with a file that is mounted into the head."""
    mounts = {m["mountPath"]: m["name"] for c in head["containers"] for m in c["volumeMounts"]}
    volumes = {v["name"]: v for v in head["volumes"]}
    if words[0] != "python" or not re.fullmatch(r"/home/ray/upl-ray/jobs/[a-z]+\.py", words[1]):
        yield f"{name}: entrypoint {words[:2]}"
    for file in [Path(w) for w in words[2:] if w.endswith(".yaml")]:
        volume = volumes.get(mounts.get(str(file.parent), ""), {})
        maps = selected(objects, {"kind": "ConfigMap", "name": volume.get("configMap", {}).get("name", "")})
        if not any(file.name in m["data"] for m in maps):
            yield f"{name}: {file} is not mounted"


def rights_problems(objects: list[Object]) -> list[str]:
    """The CronJobs' rights: RayJobs alone, `create`, and what else they do only with the names that they create."""
    wanted = {o["metadata"]["name"] for o in created(objects)}
    found = []
    for role in selected(objects, {"kind": "Role"}):
        for rule in role["rules"]:
            if (rule["apiGroups"], rule["resources"]) != (["ray.io"], ["rayjobs"]):
                found.append(f"rights to {rule['resources']}")
            if "resourceNames" not in rule and rule["verbs"] != ["create"]:
                found.append(f"rights {rule['verbs']} to any name")
            if set(rule.get("resourceNames", wanted)) != wanted:
                found.append(f"rights to {rule['resourceNames']}, RayJobs {sorted(wanted)}")
    for binding in selected(objects, {"kind": "RoleBinding"}):
        found += [] if selected(objects, binding["roleRef"]) else [f"no Role {binding['roleRef']['name']}"]
        for subject in binding["subjects"]:
            same = [o for o in selected(objects, subject) if o["metadata"]["namespace"] == subject["namespace"]]
            found += [] if same else [f"no subject {subject}"]
    return found


def schedule_problems(objects: list[Object]) -> list[str]:
    """Runs that could meet the next one."""
    found = []
    for one in selected(objects, {"kind": "RayCronJob"}):
        if attempts(one["spec"]["jobTemplate"]) >= shortest_gap(one["spec"]["schedule"]):
            found.append(f"{one['metadata']['name']} may take longer than its schedule allows")
    for one, job in zip(selected(objects, {"kind": "CronJob"}), created(objects), strict=True):
        name, spec = one["metadata"]["name"], one["spec"]
        if job["metadata"]["name"] != name:
            found.append(f"CronJob {name} creates {job['metadata']['name']}")
        if spec.get("concurrencyPolicy") != "Forbid" or spec["jobTemplate"]["spec"].get("backoffLimit") != 0:
            found.append(f"CronJob {name} may start twice")
        if (
            not attempts(job["spec"])
            < spec["jobTemplate"]["spec"]["activeDeadlineSeconds"]
            < shortest_gap(spec["schedule"])
        ):
            found.append(f"CronJob {name} ends before its RayJob, or after its next run")
    return found


def attempts(spec: dict[str, Any]) -> int:
    """Longest time of all attempts of a RayJob [seconds]; KubeRay counts the deadline anew for each."""
    return int((spec["backoffLimit"] + 1) * spec["activeDeadlineSeconds"])


def shortest_gap(schedule: str) -> float:
    """Shortest time between two runs [seconds], by trying every minute of some weeks."""
    fields = schedule.split()
    start = datetime.datetime(2026, 1, 1)
    times = [start + datetime.timedelta(minutes=i) for i in range(60 * 24 * 7 * 5)]
    runs = [
        t
        for t in times
        for now in [(t.minute, t.hour, t.day, t.month, t.isoweekday() % 7)]
        if all(field in ("*", str(value)) for field, value in zip(fields, now, strict=True))
    ]
    return min((b - a).total_seconds() for a, b in itertools.pairwise(runs))
