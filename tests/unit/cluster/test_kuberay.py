"""KubeRay's manifests: by its API, naming only what exists, with the token and no secret."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from tests.unit.cluster.kuberay import RELEASES, check_schema, cluster, groups, refusals

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "cluster" / "kuberay"
PINNED = (ROOT / "constraints.txt").read_text().splitlines()
KINDS = {"RayCluster": "raycluster", "RayJob": "rayjob", "RayService": "rayservice"}
SECRET = re.compile(r"(?i)(secret_access_key|password|token)\s*[:=]\s*\S")


def manifest(kind):
    return yaml.safe_load((FOLDER / f"{KINDS[kind]}.yaml").read_text())


def test_all_manifests_are_known():
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.yaml" for name in KINDS.values()}


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("kind", KINDS)
def test_manifest_follows_the_schemas(kind, release):
    document = manifest(kind)
    assert document["kind"] == kind
    check_schema(document, release)


@pytest.mark.parametrize("release", RELEASES)
def test_the_schemas_take_what_the_api_takes(release):
    document = manifest("RayCluster")
    spec = cluster(document)
    secret = {"valueFrom": {"secretKeyRef": {"name": "redis", "key": "password"}}}
    spec["gcsFaultToleranceOptions"] = {"redisAddress": "redis:6379", "redisPassword": secret}
    spec["autoscalerOptions"] |= {"resources": {"limits": {"cpu": 1, "memory": "512Mi"}}}
    spec["headGroupSpec"]["headService"] = {"spec": {"ports": [{"port": 80, "targetPort": 8000}]}}
    spec["workerGroupSpecs"][0]["template"]["spec"] |= {
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1.5Gi"}}],
    }
    check_schema(document, release)
    assert refusals(document) == []


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_a_manifest_is_refused(kind):
    assert refusals(manifest(kind)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_manifest_asks_for_the_token_and_holds_no_secret(kind):
    assert cluster(manifest(kind))["authOptions"] == {"mode": "token"}
    assert not SECRET.search((FOLDER / f"{KINDS[kind]}.yaml").read_text())
    for group in groups(cluster(manifest(kind))):
        (container,) = group["template"]["spec"]["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "cellray"}}]


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_waits_in_the_heads_queue_for_a_day(kind):
    (head,) = cluster(manifest(kind))["headGroupSpec"]["template"]["spec"]["containers"]
    assert {"name": "RAY_JOB_START_TIMEOUT_SECONDS", "value": "86400"} in head["env"]


@pytest.mark.parametrize("kind", KINDS)
def test_manifest_names_the_pinned_ray(kind):
    assert f"ray=={cluster(manifest(kind))['rayVersion']}" in PINNED


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_groups_scale_from_none_and_bear_their_role(kind):
    assert cluster(manifest(kind))["enableInTreeAutoscaling"] is True
    assert cluster(manifest(kind))["autoscalerOptions"]["version"] == "v2"
    workers = {group["groupName"]: group for group in cluster(manifest(kind))["workerGroupSpecs"]}
    assert set(workers) == {"feed", "train"}
    for name, group in workers.items():
        assert group["labels"] == {"cellray/role": name}
        assert group["minReplicas"] == 0 < group["maxReplicas"]
        (container,) = group["template"]["spec"]["containers"]
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (name == "train")


def asked(parsed):
    """The labels that a parsed command asks for."""
    from cellray.core.recipe import Recipe

    train = Recipe().with_(parsed["changes"]).train
    return train.labels, train.read_labels


ROLES = ({"cellray/role": "train"}, {"cellray/role": "feed"})


def test_rayjob_runs_a_job_that_exists_and_asks_for_the_groups(parse_command):
    python, script, *arguments = shlex.split(manifest("RayJob")["spec"]["entrypoint"])
    path = ROOT / Path(script).relative_to("/opt/cellray")
    assert python == "python"
    assert path.is_file()
    parsed = parse_command([path.stem, *arguments])
    assert (ROOT / parsed["recipe"].relative_to("/opt/cellray")).is_file()
    assert asked(parsed) == ROLES


@pytest.mark.parametrize("name", ["kuberay/raycluster.yaml", "ray.yaml"])
def test_the_command_that_is_shown_asks_for_the_groups(name, parse_command):
    text = (ROOT / "cluster" / name).read_text()
    shown = re.sub(r"\\\n# *", "", text)
    (command,) = re.findall(r"^# +cellray submit (.*)$", shown, re.MULTILINE)
    assert asked(parse_command(shlex.split(command))) == ROLES


def test_rayservice_serves_an_application_that_exists():
    from ray.serve.schema import ServeDeploySchema

    from cellray.serving.app import Settings

    config = yaml.safe_load(manifest("RayService")["spec"]["serveConfigV2"])
    schema = ServeDeploySchema.model_validate(config)
    (application,) = schema.applications
    module, _, name = application.import_path.partition(":")
    assert callable(getattr(import_module(module), name))
    settings = Settings(**application.args)
    assert settings.model == "models:/masked@champion"
    head = cluster(manifest("RayService"))["headGroupSpec"]["template"]["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in head["ports"]}
    assert ports["serve"] == config["http_options"]["port"]
