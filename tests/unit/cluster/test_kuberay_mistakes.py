"""Mistakes planted in KubeRay's manifests: each is refused, by the schemas or by a rule."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from referencing import Resource
from tests.unit.cluster.kuberay import (
    RELEASES,
    SPECS,
    check_schema,
    cluster,
    kubernetes,
    refusals,
    rules_of_cluster,
    rules_of_container,
    rules_of_group,
    rules_of_job,
    rules_of_service,
)

FOLDER = Path(__file__).parents[3] / "cluster" / "kuberay"
KINDS = {"RayCluster": "raycluster", "RayJob": "rayjob", "RayService": "rayservice"}
ABSENT = object()
HEAD, GROUP = "headGroupSpec", "workerGroupSpecs.0"
POD = f"{HEAD}.template.spec"
WORKER = f"{GROUP}.template.spec.containers.0"
CONTAINER = f"{POD}.containers.0"
PROBE = {"httpGet": {"path": "/api/version", "port": 8265}}

# What is planted where in the cluster's spec, and what the message names.
IN_THE_SCHEMA = {
    "a misspelt key of the cluster": ({"rayVersoin": "2.60.0"}, "rayVersoin"),
    "a misspelt key of the autoscaler": ({"autoscalerOptions.idleTimeout": 60}, "idleTimeout"),
    "a misspelt key of a group": ({f"{GROUP}.maxReplica": 3}, "maxReplica"),
    "a misspelt key of a pod": ({f"{POD}.restartPolcy": "Never"}, "restartPolcy"),
    "a misspelt key of a container": ({f"{CONTAINER}.workDir": "/tmp"}, "workDir"),
    "a misspelt key of resources": ({f"{WORKER}.resources.limit": {"cpu": "1"}}, "limit"),
    "a misspelt key of a port": ({f"{CONTAINER}.ports.0.port": 6379}, "port"),
    "a misspelt key of a probe": (
        {f"{CONTAINER}.livenessProbe": PROBE | {"periodSecond": 5}},
        "periodSecond",
    ),
    "a misspelt kind of volume": (
        {f"{POD}.volumes": [{"name": "shm", "emptyDirectory": {}}]},
        "emptyDirectory",
    ),
    "a misspelt reference": (
        {f"{CONTAINER}.envFrom": [{"secretRefs": {"name": "cellray"}}]},
        "secretRefs",
    ),
    "a string for a number": ({f"{GROUP}.maxReplicas": "4"}, "'4' is not of type 'integer'"),
    "a number for a string": ({"rayVersion": 2.6}, "2.6 is not of type 'string'"),
    "a number for an argument": ({f"{HEAD}.rayStartParams": {"num-cpus": 0}}, "0 is not of type"),
    "a word for a boolean": ({"enableInTreeAutoscaling": "yes"}, "'yes' is not of type 'boolean'"),
    "less than none": ({f"{GROUP}.minReplicas": -1}, "-1 is less than the minimum"),
    "a mode that is none": ({"authOptions.mode": "Token"}, "'Token' is not one of"),
    "a version that is none": ({"autoscalerOptions.version": 2}, "2 is not one of"),
    "a service that is none": ({f"{HEAD}.serviceType": "Ingress"}, "'Ingress' is not one of"),
    "no head": ({HEAD: ABSENT}, "'headGroupSpec' is a required property"),
    "no template": ({f"{HEAD}.template": ABSENT}, "'template' is a required property"),
    "no containers": ({f"{POD}.containers": ABSENT}, "'containers' is a required property"),
    "no name of a group": ({f"{GROUP}.groupName": ABSENT}, "'groupName' is a required property"),
    "no name of a container": ({f"{CONTAINER}.name": ABSENT}, "'name' is a required property"),
    "no name of a variable": ({f"{CONTAINER}.env": [{"value": "1"}]}, "'name' is a required"),
    "a number for a variable": ({f"{CONTAINER}.env.0.value": 86400}, "86400 is not of type"),
    "variables as a mapping": ({f"{CONTAINER}.env": {"A": "1"}}, "is not of type 'array'"),
    "variables of nothing": ({f"{CONTAINER}.env": None}, "None is not of type 'array'"),
    "a quantity with a blank": ({f"{WORKER}.resources.limits.memory": "4Gi b"}, "4Gi b"),
    "a quantity in bytes": ({f"{WORKER}.resources.requests.memory": "32GB"}, "32GB"),
    "a quantity that is a fraction": ({f"{WORKER}.resources.limits.cpu": 0.5}, "0.5"),
}
OF_A_KIND = {
    "an older version": (
        "RayCluster",
        {"apiVersion": "ray.io/v1alpha1"},
        "'ray.io/v1' was expected",
    ),
    "a capital in the name": ("RayCluster", {"metadata.name": "Cellray"}, "Cellray"),
    "a misspelt key of metadata": ("RayCluster", {"metadata.label": {"a": "b"}}, "label"),
    "no spec": ("RayJob", {"spec": ABSENT}, "'spec' is a required property"),
    "a misspelt key of a job": ("RayJob", {"spec.entrypointNumCPUs": 1}, "entrypointNumCPUs"),
    "a mode of submission": ("RayJob", {"spec.submissionMode": "K8sJob"}, "'K8sJob' is not one of"),
    "no time at all": ("RayJob", {"spec.activeDeadlineSeconds": 0}, "less than the minimum"),
    "half a deletion": (
        "RayJob",
        {"spec.deletionStrategy": {"onSuccess": {"policy": "DeleteSelf"}}},
        "'onFailure' is a required property",
    ),
    "a job's key in a service": ("RayService", {"spec.rayClusterSpec": {}}, "rayClusterSpec"),
    "no cluster": ("RayService", {"spec.rayClusterConfig": ABSENT}, "'rayClusterConfig' is a req"),
    "a mapping for text": ("RayService", {"spec.serveConfigV2": {}}, "is not of type 'string'"),
    "an upgrade": (
        "RayService",
        {"spec.upgradeStrategy": {"type": "RollingUpdate"}},
        "'RollingUpdate' is not one of",
    ),
    "an upgrade without its options": (
        "RayService",
        {"spec.upgradeStrategy": {"type": "NewClusterWithIncrementalUpgrade"}},
        "'clusterUpgradeOptions' is a required property",
    ),
}

# The same for what follows the schemas, in the cluster's spec and in the whole manifest.
BY_A_RULE = {
    "no container": {f"{POD}.containers": []},
    "a label that is none": {f"{GROUP}.labels": {"a b": "c"}},
    "labels in rayStartParams": {f"{GROUP}.rayStartParams": {"labels": "cellray/role=feed"}},
    "resources, and rayStartParams that say the same": {
        f"{GROUP}.resources": {"CPU": "1"},
        f"{GROUP}.rayStartParams": {"num-cpus": "1"},
    },
    "minReplicas above maxReplicas": {f"{GROUP}.minReplicas": 9},
    "a group suspended under the autoscaler": {f"{GROUP}.suspend": True},
    "restartPolicy under autoscaler v2 is Never": {f"{POD}.restartPolicy": "Always"},
    "a group's idle time needs autoscaler v2": {
        "autoscalerOptions.version": "v1",
        f"{GROUP}.idleTimeoutSeconds": 60,
    },
    "a group's priority needs autoscaler v2": {
        "enableInTreeAutoscaling": False,
        f"{GROUP}.priority": 1,
    },
    "a container's name": {f"{CONTAINER}.name": "ray_head"},
    "no image": {f"{CONTAINER}.image": ABSENT},
    "imagePullPolicy": {f"{CONTAINER}.imagePullPolicy": "IfAbsent"},
    "a port that is none": {f"{CONTAINER}.ports.0.containerPort": 70000},
    "a port's name": {f"{CONTAINER}.ports.0.name": "gcs-server-of-the-head"},
    "two ports of one name": {f"{CONTAINER}.ports.0.name": "dashboard"},
    "GPUs are asked for as they are allowed": {
        f"{WORKER}.resources.requests": {"nvidia.com/gpu": "1"}
    },
    "a token needs rayVersion, 2.52 or newer": {"rayVersion": "2.51.0"},
    "Kubernetes' tokens need rayVersion, 2.55 or newer": {
        "rayVersion": "2.54.1",
        "authOptions.enableK8sTokenAuth": True,
    },
    "Kubernetes' tokens with secretName": {
        "authOptions": {"enableK8sTokenAuth": True, "secretName": "token"}
    },
    "Kubernetes' tokens without mode: token": {
        "authOptions": {"enableK8sTokenAuth": True, "mode": "disabled"}
    },
    "a feature that is off by default": {"networkPolicy": {"mode": "DenyAll"}},
    "the autoscaler's version, twice": {
        f"{CONTAINER}.env": [{"name": "RAY_enable_autoscaler_v2", "value": "1"}]
    },
    "Redis without gcsFaultToleranceOptions": {
        f"{CONTAINER}.env": [{"name": "RAY_REDIS_ADDRESS", "value": "redis:6379"}]
    },
}
SELECTED = {"spec.rayClusterSpec": ABSENT, "spec.clusterSelector": {"ray.io/cluster": "cellray"}}
BY_A_RULE_OF_A_KIND = {
    "a name too long": ("RayService", {"metadata.name": "a" * 48}),
    "neither a cluster nor clusterSelector": ("RayJob", {"spec.rayClusterSpec": ABSENT}),
    "clusterSelector without ray.io/cluster": ("RayJob", {"spec.clusterSelector": {"a": "b"}}),
    "clusterSelector with SidecarMode": (
        "RayJob",
        SELECTED | {"spec.submissionMode": "SidecarMode"},
    ),
    "clusterSelector with suspend": ("RayJob", SELECTED | {"spec.suspend": True}),
    "clusterSelector with backoffLimit": ("RayJob", SELECTED | {"spec.backoffLimit": 1}),
    "suspend without shutdownAfterJobFinishes": (
        "RayJob",
        {"spec.suspend": True, "spec.shutdownAfterJobFinishes": False},
    ),
    "ttlSecondsAfterFinished without shutdownAfterJobFinishes": (
        "RayJob",
        {"spec.shutdownAfterJobFinishes": ABSENT},
    ),
    "deletionRules with shutdownAfterJobFinishes": (
        "RayJob",
        {
            "spec.deletionStrategy": {
                "deletionRules": [{"policy": "DeleteSelf", "condition": {"jobStatus": "FAILED"}}]
            }
        },
    ),
    "InteractiveMode with backoffLimit": (
        "RayJob",
        {"spec.submissionMode": "InteractiveMode", "spec.backoffLimit": 1},
    ),
    "SidecarMode with a submitter of its own": (
        "RayJob",
        {"spec.submissionMode": "SidecarMode", "spec.submitterConfig": {"backoffLimit": 1}},
    ),
    "a name for the head's service": (
        "RayService",
        {"spec.rayClusterConfig.headGroupSpec.headService": {"metadata": {"name": "head"}}},
    ),
    "Kubernetes' tokens are for a RayCluster": (
        "RayJob",
        {"spec.rayClusterSpec.authOptions.enableK8sTokenAuth": True},
    ),
    "upgradeStrategy is for a RayCluster": (
        "RayService",
        {"spec.rayClusterConfig.upgradeStrategy": {"type": "Recreate"}},
    ),
}


def manifest(kind):
    return yaml.safe_load((FOLDER / f"{KINDS[kind]}.yaml").read_text())


def plant(tree, mistakes):
    """Change what the dotted paths name, in place."""
    for path, value in mistakes.items():
        *way, last = path.split(".")
        place = tree
        for step in way:
            place = place[int(step) if isinstance(place, list) else step]
        if value is ABSENT:
            del place[last]
        else:
            place[last] = value


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("wrong", "named"), IN_THE_SCHEMA.values(), ids=IN_THE_SCHEMA)
def test_the_schemas_refuse_it(kind, release, wrong, named):
    document = manifest(kind)
    plant(cluster(document), wrong)
    with pytest.raises(jsonschema.ValidationError) as refused:
        check_schema(document, release)
    assert named in refused.value.message


@pytest.mark.parametrize(("kind", "wrong", "named"), OF_A_KIND.values(), ids=OF_A_KIND)
def test_the_schema_of_its_kind_refuses_it(kind, wrong, named):
    document = manifest(kind)
    plant(document, wrong)
    with pytest.raises(jsonschema.ValidationError) as refused:
        check_schema(document, RELEASES[-1])
    assert named in refused.value.message


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rule", "wrong"), BY_A_RULE.items(), ids=BY_A_RULE)
def test_a_rule_refuses_it(kind, rule, wrong):
    document = manifest(kind)
    plant(cluster(document), wrong)
    check_schema(document, RELEASES[-1])
    assert rule in refusals(document)


@pytest.mark.parametrize(
    ("rule", "kind", "wrong"),
    [(rule, *planted) for rule, planted in BY_A_RULE_OF_A_KIND.items()],
    ids=BY_A_RULE_OF_A_KIND,
)
def test_a_rule_of_its_kind_refuses_it(rule, kind, wrong):
    document = manifest(kind)
    plant(document, wrong)
    check_schema(document, RELEASES[-1])
    assert rule in refusals(document)


@pytest.mark.parametrize("release", RELEASES)
def test_all_that_the_schema_refers_to_is_there(release):
    jsonschema.Draft202012Validator.check_schema(SPECS)
    known = kubernetes(release).with_resource("", Resource.from_contents(SPECS)).resolver()
    references = re.findall(r'"\$ref": "(.+?)"', json.dumps(SPECS))
    for one in references:
        assert known.lookup(one).contents


def test_every_rule_is_seen_to_refuse():
    document = manifest("RayJob")
    spec = cluster(document)
    head = spec["headGroupSpec"]
    rules = {"a name too long", *rules_of_job(document["spec"]), *rules_of_service(spec)}
    rules |= {*rules_of_cluster(spec, standalone=False), *rules_of_group(head, spec)}
    rules |= {*rules_of_container(head["template"]["spec"]["containers"][0])}
    assert rules == {*BY_A_RULE, *BY_A_RULE_OF_A_KIND}
