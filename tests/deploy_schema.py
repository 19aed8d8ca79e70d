"""JSON schemas of what deploy/kuberay uses of KubeRay and Kubernetes: an unknown field or a wrong type is an error.

Names, types, enumerations and required fields are facts of KubeRay 1.6 (ray-operator/apis/ray/v1: rayjob_types.go,
raycluster_types.go, raycronjob_types.go) and of the Kubernetes API (core/v1, batch/v1, rbac/v1). Fields that are not
used are left out on purpose: add them here, with a look at the source, before using them.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
FLAG: Schema = {"type": "boolean"}
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
NAME: Schema = {"type": "string", "pattern": r"^[a-z]([a-z0-9-]*[a-z0-9])?$", "maxLength": 63}
CRON: Schema = {"type": "string", "pattern": r"^([0-9*/,-]+ ){4}[0-9*/,-]+$"}
QUANTITIES: Schema = {"type": "object", "additionalProperties": {"type": "string", "pattern": r"^[0-9]+(m|Mi|Gi)?$"}}


def whole(least: int = 0) -> Schema:
    """A whole number; YAML's text is none."""
    return {"type": "integer", "minimum": least}


def one_of(*values: Any) -> Schema:
    """An enumeration."""
    return {"enum": list(values)}


def listed(item: Schema) -> Schema:
    """A list that is not empty."""
    return {"type": "array", "items": item, "minItems": 1}


def closed(required: str = "", **fields: Schema) -> Schema:
    """An object of these fields and no others, some of which (a text of names) must be there."""
    return {"type": "object", "properties": fields, "required": required.split(), "additionalProperties": False}


def kind(version: str, name: str, required: str = "", **fields: Schema) -> Schema:
    """A whole Kubernetes object."""
    head = {"apiVersion": one_of(version), "kind": one_of(name), "metadata": METADATA}
    return closed(f"apiVersion kind metadata {required}", **head, **fields)


METADATA = closed("name", name=NAME, namespace=NAME, labels=TEXTS, annotations=TEXTS)
RESOURCES = closed("limits requests", limits=QUANTITIES, requests=QUANTITIES)
CONTAINER_SECURITY = closed(allowPrivilegeEscalation=FLAG, capabilities=closed("drop", drop=listed(TEXT)))
CONTAINER = closed(
    "name image resources",
    name=NAME,
    image=TEXT,
    command=listed(TEXT),
    ports=listed(closed("containerPort", name=NAME, containerPort=whole(1))),
    env=listed(closed("name value", name=TEXT, value={"type": "string"})),
    envFrom=listed(closed("secretRef", secretRef=closed("name", name=NAME, optional=FLAG))),
    resources=RESOURCES,
    securityContext=CONTAINER_SECURITY,
    volumeMounts=listed(closed("name mountPath", name=NAME, mountPath=TEXT, readOnly=FLAG)),
)
VOLUME = closed(
    "name",
    name=NAME,
    configMap=closed("name", name=NAME),
    emptyDir=closed(medium=one_of("", "Memory"), sizeLimit={"type": "string", "pattern": "^[0-9]+(Mi|Gi)$"}),
)
POD = closed(
    "containers",
    serviceAccountName=NAME,
    automountServiceAccountToken=FLAG,
    restartPolicy=one_of("Always", "OnFailure", "Never"),
    securityContext=closed(
        runAsNonRoot=FLAG,
        runAsUser=whole(),
        runAsGroup=whole(),
        fsGroup=whole(),
        seccompProfile=closed("type", type=one_of("RuntimeDefault", "Unconfined", "Localhost")),
    ),
    tolerations=listed(
        closed(
            key=TEXT,
            operator=one_of("Exists", "Equal"),
            effect=one_of("NoSchedule", "PreferNoSchedule", "NoExecute"),
        )
    ),
    containers=listed(CONTAINER),
    volumes=listed(VOLUME),
)
POD_TEMPLATE = closed("spec", metadata=closed(labels=TEXTS, annotations=TEXTS), spec=POD)

RAY_CLUSTER = closed(
    "headGroupSpec",
    rayVersion=TEXT,
    authOptions=closed(mode=one_of("disabled", "token")),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=closed(
        idleTimeoutSeconds=whole(),
        resources=RESOURCES,
        securityContext=CONTAINER_SECURITY,
    ),
    headGroupSpec=closed("rayStartParams template", rayStartParams=TEXTS, template=POD_TEMPLATE),
    workerGroupSpecs=listed(
        closed(
            "groupName minReplicas maxReplicas rayStartParams template",
            groupName=NAME,
            replicas=whole(),
            minReplicas=whole(),
            maxReplicas=whole(),
            rayStartParams=TEXTS,
            template=POD_TEMPLATE,
        )
    ),
)
RAY_JOB = closed(
    "entrypoint rayClusterSpec",
    entrypoint=TEXT,
    submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    backoffLimit=whole(),
    activeDeadlineSeconds=whole(1),
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=whole(),
    rayClusterSpec=RAY_CLUSTER,
    submitterPodTemplate=POD_TEMPLATE,
)
JOB = closed("template", backoffLimit=whole(), activeDeadlineSeconds=whole(1), template=POD_TEMPLATE)
CRON_JOB = closed(
    "schedule jobTemplate",
    schedule=CRON,
    timeZone=TEXT,
    concurrencyPolicy=one_of("Allow", "Forbid", "Replace"),
    startingDeadlineSeconds=whole(),
    jobTemplate=closed("spec", spec=JOB),
)
VERBS = one_of("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
RULE = closed(
    "apiGroups resources verbs",
    apiGroups=listed({"type": "string"}),
    resources=listed(TEXT),
    resourceNames=listed(NAME),
    verbs=listed(VERBS),
)

KINDS: dict[str, Schema] = {
    "RayJob": kind("ray.io/v1", "RayJob", "spec", spec=RAY_JOB),
    "RayCronJob": kind(
        "ray.io/v1", "RayCronJob", "spec", spec=closed("schedule jobTemplate", schedule=CRON, jobTemplate=RAY_JOB)
    ),
    "CronJob": kind("batch/v1", "CronJob", "spec", spec=CRON_JOB),
    "ConfigMap": kind("v1", "ConfigMap", "data", data=TEXTS),
    "ServiceAccount": kind("v1", "ServiceAccount"),
    "Role": kind("rbac.authorization.k8s.io/v1", "Role", "rules", rules=listed(RULE)),
    "RoleBinding": kind(
        "rbac.authorization.k8s.io/v1",
        "RoleBinding",
        "roleRef subjects",
        roleRef=closed("apiGroup kind name", apiGroup=TEXT, kind=one_of("Role", "ClusterRole"), name=NAME),
        subjects=listed(closed("kind name", kind=one_of("ServiceAccount"), name=NAME, namespace=NAME)),
    ),
}
