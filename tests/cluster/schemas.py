"""Strict checks of Kubernetes objects, offline: an unknown field is refused at any depth.

Objects of Kubernetes, pods inside others included, are checked by Kubernetes' own schemas, which the package
kubernetes-validate holds. No package holds those of KubeRay, so the fields of ray.io/v1 are written down here as
KubeRay 1.7.0 documents them.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
from referencing import Registry, Resource

KUBERNETES = "1.34.0"
"""Version of Kubernetes whose schemas count."""

DEFINITIONS = "https://kubernetes.io/api/_definitions.json"
"""What the schemas call the file of all types."""

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
POSITIVE: Schema = {"type": "integer", "minimum": 1}
NUMBER: Schema = {"type": "number", "minimum": 0}
STRINGS: Schema = {"type": "object", "additionalProperties": STRING}


def core(name: str) -> Schema:
    """A type of Kubernetes, by its name behind `io.k8s.`."""
    return {"$ref": f"{DEFINITIONS}#/$defs/io.k8s.{name}"}


def several(items: Schema) -> Schema:
    """A list."""
    return {"type": "array", "items": items}


def one_of(*values: str) -> Schema:
    """A string of a few."""
    return {"enum": list(values)}


def fields(*required: str, **properties: Schema) -> Schema:
    """An object that has these fields and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


POD = core("api.core.v1.PodTemplateSpec")
RESOURCES = core("api.core.v1.ResourceRequirements")
ENV = several(core("api.core.v1.EnvVar"))

GROUP = {"rayStartParams": STRINGS, "template": POD, "resources": STRINGS, "labels": STRINGS}

HEAD_GROUP = fields(
    "template",
    headService=core("api.core.v1.Service"),
    enableIngress=BOOLEAN,
    ingressOptions=fields(
        host=STRING,
        path=STRING,
        pathType=one_of("Exact", "Prefix", "ImplementationSpecific"),
        tls=several(core("api.networking.v1.IngressTLS")),
    ),
    serviceType=one_of("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"),
    **GROUP,
)

WORKER_GROUP = fields(
    "groupName",
    "minReplicas",
    "maxReplicas",
    "template",
    suspend=BOOLEAN,
    groupName=STRING,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    idleTimeoutSeconds=COUNT,
    priority={"type": "integer"},
    scaleStrategy=fields(workersToDelete=several(STRING)),
    numOfHosts=POSITIVE,
    **GROUP,
)

AUTOSCALER = fields(
    resources=RESOURCES,
    image=STRING,
    imagePullPolicy=one_of("Always", "IfNotPresent", "Never"),
    securityContext=core("api.core.v1.SecurityContext"),
    idleTimeoutSeconds=COUNT,
    upscalingMode=one_of("Default", "Aggressive", "Conservative"),
    version=one_of("v1", "v2"),
    env=ENV,
    envFrom=several(core("api.core.v1.EnvFromSource")),
    volumeMounts=several(core("api.core.v1.VolumeMount")),
    command=several(STRING),
    args=several(STRING),
)

REDIS_CREDENTIAL = fields(valueFrom=core("api.core.v1.EnvVarSource"), value=STRING)

FAULT_TOLERANCE = fields(
    backend=one_of("redis", "rocksdb"),
    redisUsername=REDIS_CREDENTIAL,
    redisPassword=REDIS_CREDENTIAL,
    externalStorageNamespace=STRING,
    redisAddress=STRING,
    storage=fields(
        claimName=STRING,
        size=STRING,
        storageClassName=STRING,
        accessModes=several(STRING),
        subPath=STRING,
        deletionPolicy=one_of("DeleteWithCluster", "Retain"),
    ),
)

NETWORK_RULES = {
    "ingressRules": several(core("api.networking.v1.NetworkPolicyIngressRule")),
    "egressRules": several(core("api.networking.v1.NetworkPolicyEgressRule")),
}

RAY_CLUSTER = fields(
    "headGroupSpec",
    upgradeStrategy=fields(type=one_of("Recreate", "None")),
    authOptions=fields(enableK8sTokenAuth=BOOLEAN, secretName=STRING, mode=one_of("disabled", "token")),
    suspend=BOOLEAN,
    managedBy=STRING,
    autoscalerOptions=AUTOSCALER,
    headServiceAnnotations=STRINGS,
    enableInTreeAutoscaling=BOOLEAN,
    gcsFaultToleranceOptions=FAULT_TOLERANCE,
    historyServerOptions=fields(
        collectorOptions=fields(image=STRING, imagePullPolicy=STRING, resources=RESOURCES, env=ENV)
    ),
    networkPolicy=fields(
        mode=one_of("DenyAll", "DenyAllIngress", "DenyAllEgress"),
        head=fields(**NETWORK_RULES),
        worker=fields(**NETWORK_RULES),
        workerGroups=several(fields("groupName", groupName=STRING, **NETWORK_RULES)),
    ),
    tlsOptions=fields(enabled=BOOLEAN),
    headGroupSpec=HEAD_GROUP,
    rayVersion=STRING,
    workerGroupSpecs=several(WORKER_GROUP),
)

DELETION = one_of("DeleteCluster", "DeleteWorkers", "DeleteSelf", "DeleteNone")

RAY_JOB = fields(
    activeDeadlineSeconds=POSITIVE,
    backoffLimit=COUNT,
    rayClusterSpec=RAY_CLUSTER,
    submitterPodTemplate=POD,
    metadata=STRINGS,
    clusterSelector=STRINGS,
    submitterConfig=fields(backoffLimit=COUNT),
    managedBy=STRING,
    deletionStrategy=fields(
        onSuccess=fields(policy=DELETION),
        onFailure=fields(policy=DELETION),
        deletionRules=several(
            fields(
                "policy",
                "condition",
                policy=DELETION,
                condition=fields(
                    jobStatus=one_of("SUCCEEDED", "FAILED"), jobDeploymentStatus=one_of("Failed"), ttlSeconds=COUNT
                ),
            )
        ),
    ),
    entrypoint=STRING,
    runtimeEnvYAML=STRING,
    jobId=STRING,
    submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    entrypointResources=STRING,
    entrypointNumCpus=NUMBER,
    entrypointNumGpus=NUMBER,
    ttlSecondsAfterFinished=COUNT,
    preRunningDeadlineSeconds=POSITIVE,
    shutdownAfterJobFinishes=BOOLEAN,
    suspend=BOOLEAN,
)

RAY = {"RayCluster": RAY_CLUSTER, "RayJob": RAY_JOB}


def _read(name: str) -> Schema:
    folder = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{KUBERNETES}-local-strict"
    schema: Schema = json.loads((folder / name).read_text())
    return schema


@functools.cache
def _kubernetes() -> Registry[Any]:
    return Registry().with_resource(DEFINITIONS, Resource.from_contents(_read("_definitions.json")))


@functools.cache
def _validator(api_version: str, kind: str) -> Any:
    """What checks objects of a kind. Raises `LookupError` for one that nobody knows."""
    if api_version == "ray.io/v1" and kind in RAY:
        schema = fields(
            "metadata",
            "spec",
            apiVersion=one_of(api_version),
            kind=one_of(kind),
            metadata=core("apimachinery.pkg.apis.meta.v1.ObjectMeta"),
            spec=RAY[kind],
        )
    else:
        group = re.sub(r"^([^./]*)[^/]*/", r"\1-", api_version)
        try:
            schema = _read(f"{kind.lower()}-{group}.json")
        except FileNotFoundError:
            raise LookupError(f"{api_version} {kind}: Kubernetes {KUBERNETES} has no such kind.") from None
    return jsonschema.Draft202012Validator(schema, registry=_kubernetes())


def complaints(item: dict[str, Any]) -> list[str]:
    """What is wrong with an object, each with the place."""
    try:
        validator = _validator(item.get("apiVersion", ""), item.get("kind", ""))
    except LookupError as error:
        return [str(error)]
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in validator.iter_errors(item)]


def ray_start_flags() -> set[str]:
    """The flags of `ray start`, out of its source: importing that takes ten times as long."""
    (package,) = importlib.util.find_spec("ray").submodule_search_locations  # type: ignore[union-attr,misc]
    source = (Path(package) / "scripts" / "scripts.py").read_text().partition("\ndef start(")[0]
    return set(re.findall(r'"(--[\w-]+)', source[source.rindex("@cli.command") :]))
