"""KubeRay's manifests, read as the Kubernetes API and KubeRay's operator read them.

A published CRD repeats Kubernetes' own types some ten times, in about a megabyte. Here those types
are the schemas that Kubernetes publishes (package kubernetes-validate), kuberay.schema.json is the
rest, and `refusals` has what no schema says: checks of the operator, as of v1.7, and of the API.
"""

import functools
import importlib.resources
import json
import re
from pathlib import Path

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

SPECS = json.loads((Path(__file__).parent / "kuberay.schema.json").read_text())
RELEASES = ("1.28", "1.37")  # of Kubernetes: that of KubeRay's API reference, and the newest
QUANTITY = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][-+]?[0-9]+)?\Z"
LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
DOMAIN = re.compile(r"(?!.{254})[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
PORT_NAME = re.compile(r"(?!.{16})(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")
LONGEST = {"RayCluster": 53, "RayJob": 47, "RayService": 47}  # names of more are made from it
GATED = (
    "historyServerOptions",
    "networkPolicy",
    "tlsOptions",
)  # only with an operator's feature gate


def cluster(document):
    """The spec of the manifest's cluster; empty where a RayJob selects one that runs."""
    key = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}.get(document["kind"])
    return document["spec"].get(key, {}) if key else document["spec"]


def groups(spec):
    """The head's group, then the workers'."""
    return [spec["headGroupSpec"], *spec.get("workerGroupSpecs", [])] if spec else []


def containers(group):
    return group["template"].get("spec", {}).get("containers", [])


def not_null(schema):
    """The same schema without null: the API drops a key with nothing after it, and says nothing."""
    if isinstance(schema, list):
        return [not_null(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: not_null(value) for key, value in schema.items()}
    if isinstance(kept.get("type"), list):
        kept["type"] = [one for one in kept["type"] if one != "null"]
    return kept


@functools.cache
def kubernetes(release):
    """Kubernetes' published types, strict. Their quantity is any string; the CRDs say which."""
    folder = importlib.resources.files("kubernetes_validate") / "kubernetes-json-schema"
    text = (folder / f"v{release}.0-local-strict" / "_definitions.json").read_text()
    published = not_null(json.loads(text))
    quantity = published["$defs"]["io.k8s.apimachinery.pkg.api.resource.Quantity"]
    quantity["oneOf"] = [{"type": "string", "pattern": QUANTITY}, {"type": "integer", "minimum": 0}]
    return Registry().with_resource(published["$id"], Resource.from_contents(published))


def check_schema(document, release):
    """Raise ValidationError where a key, a type or a value is not the API's."""
    whole = {
        "type": "object",
        "additionalProperties": False,
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": {"const": "ray.io/v1"},
            "kind": {"enum": list(LONGEST)},
            "metadata": {"$ref": "#/$defs/metadata"},
            "spec": {"$ref": f"#/$defs/{document['kind']}Spec"},
        },
    }
    Draft202012Validator(SPECS | whole, registry=kubernetes(release)).validate(document)


def refusals(document):
    """What is refused of a manifest that follows the schema, in words."""
    kind, spec = document["kind"], cluster(document)
    rules = [{"a name too long": len(document["metadata"]["name"]) > LONGEST[kind]}]
    if kind == "RayJob":
        rules += [rules_of_job(document["spec"])]
    if kind == "RayService":
        rules += [rules_of_service(spec)]
    if spec:
        rules += [rules_of_cluster(spec, standalone=kind == "RayCluster")]
    for group in groups(spec):
        rules += [rules_of_group(group, spec), *map(rules_of_container, containers(group))]
    return [what for rule in rules for what, broken in rule.items() if broken]


def rules_of_job(job):
    selected, mode = job.get("clusterSelector", {}), job.get("submissionMode")
    suspended, ends = job.get("suspend", False), job.get("shutdownAfterJobFinishes", False)
    retries = job.get("backoffLimit", 0) > 0
    return {
        "neither a cluster nor clusterSelector": not selected and "rayClusterSpec" not in job,
        "clusterSelector without ray.io/cluster": selected and not selected.get("ray.io/cluster"),
        "clusterSelector with SidecarMode": selected and mode == "SidecarMode",
        "clusterSelector with suspend": selected and suspended,
        "clusterSelector with backoffLimit": selected and retries,
        "suspend without shutdownAfterJobFinishes": suspended and not ends,
        "ttlSecondsAfterFinished without shutdownAfterJobFinishes": (
            job.get("ttlSecondsAfterFinished", 0) > 0 and not ends
        ),
        "deletionRules with shutdownAfterJobFinishes": (
            "deletionRules" in job.get("deletionStrategy", {}) and ends
        ),
        "InteractiveMode with backoffLimit": mode == "InteractiveMode" and retries,
        "SidecarMode with a submitter of its own": (
            mode == "SidecarMode" and {"submitterPodTemplate", "submitterConfig"} & set(job)
        ),
    }


def rules_of_service(spec):
    service = spec["headGroupSpec"].get("headService", {})
    return {"a name for the head's service": service.get("metadata", {}).get("name")}


def rules_of_cluster(spec, *, standalone):
    auth = spec.get("authOptions", {})
    token = "authOptions" in spec and auth.get("mode", "token") == "token"
    of_kubernetes = auth.get("enableK8sTokenAuth", False)
    ray = tuple(int(part) for part in re.findall(r"\d+", spec.get("rayVersion", ""))[:2])
    head = {one["name"] for pod in containers(spec["headGroupSpec"]) for one in pod.get("env", [])}
    return {
        "a token needs rayVersion, 2.52 or newer": token and ray < (2, 52),
        "Kubernetes' tokens need rayVersion, 2.55 or newer": of_kubernetes and ray < (2, 55),
        "Kubernetes' tokens are for a RayCluster": of_kubernetes and not standalone,
        "Kubernetes' tokens with secretName": of_kubernetes and auth.get("secretName"),
        "Kubernetes' tokens without mode: token": of_kubernetes and not token,
        "upgradeStrategy is for a RayCluster": "upgradeStrategy" in spec and not standalone,
        "a feature that is off by default": set(GATED) & set(spec),
        "the autoscaler's version, twice": (
            "RAY_enable_autoscaler_v2" in head and "version" in spec.get("autoscalerOptions", {})
        ),
        "Redis without gcsFaultToleranceOptions": (
            "RAY_REDIS_ADDRESS" in head and "gcsFaultToleranceOptions" not in spec
        ),
    }


def rules_of_group(group, spec):
    start, labels = set(group.get("rayStartParams", {})), group.get("labels", {})
    scaled = spec.get("enableInTreeAutoscaling", False)
    v2 = scaled and spec.get("autoscalerOptions", {}).get("version", "v2") == "v2"
    return {
        "no container": not containers(group),
        "a label that is none": not all(map(is_label, labels.items())),
        "labels in rayStartParams": "labels" in start,
        "resources, and rayStartParams that say the same": (
            group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & start
        ),
        "minReplicas above maxReplicas": group.get("minReplicas", 0) > group.get("maxReplicas", 0),
        "a group suspended under the autoscaler": group.get("suspend") and scaled,
        "restartPolicy under autoscaler v2 is Never": (
            v2 and group["template"].get("spec", {}).get("restartPolicy", "Never") != "Never"
        ),
        "a group's idle time needs autoscaler v2": "idleTimeoutSeconds" in group and not v2,
        "a group's priority needs autoscaler v2": group.get("priority") and not v2,
    }


def is_label(label):
    (domain, slash, name), value = label[0].rpartition("/"), label[1]
    prefixed = not slash or DOMAIN.fullmatch(domain)
    return LABEL.fullmatch(name) and prefixed and (not value or LABEL.fullmatch(value))


def rules_of_container(container):
    ports, resources = container.get("ports", []), container.get("resources", {})
    named = [port["name"] for port in ports if "name" in port]
    asked, allowed = (resources.get(key, {}) for key in ("requests", "limits"))
    policies = {"Always", "IfNotPresent", "Never"}
    return {
        "a container's name": not DNS_LABEL.fullmatch(container["name"]),
        "no image": not container.get("image"),
        "imagePullPolicy": container.get("imagePullPolicy", "Always") not in policies,
        "a port that is none": not all(0 < port["containerPort"] < 65536 for port in ports),
        "a port's name": not all(map(PORT_NAME.fullmatch, named)),
        "two ports of one name": len(set(named)) < len(named),
        "GPUs are asked for as they are allowed": (
            "nvidia.com/gpu" in asked and asked["nvidia.com/gpu"] != allowed.get("nvidia.com/gpu")
        ),
    }
