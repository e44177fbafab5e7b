"""KubeRay's manifests: by its API, naming only what exists, with the token and no secret."""

import copy
import json
import re
import shlex
from importlib import import_module
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "cluster" / "kuberay"
SCHEMA = json.loads((Path(__file__).parent / "kuberay.schema.json").read_text())
PINNED = (ROOT / "constraints.txt").read_text().splitlines()
KINDS = {"RayCluster": "raycluster", "RayJob": "rayjob", "RayService": "rayservice"}
SECRET = re.compile(r"(?i)(secret_access_key|password|token)\s*[:=]\s*\S")


def manifest(kind):
    return yaml.safe_load((FOLDER / f"{KINDS[kind]}.yaml").read_text())


def cluster(kind):
    spec = manifest(kind)["spec"]
    return {"RayJob": spec.get("rayClusterSpec"), "RayService": spec.get("rayClusterConfig")}.get(
        kind, spec
    )


def validate(document):
    kind = document["kind"]
    jsonschema.validate(document, SCHEMA | {"$ref": f"#/$defs/{kind}"})


def test_all_manifests_are_known():
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.yaml" for name in KINDS.values()}


@pytest.mark.parametrize("kind", KINDS)
def test_manifest_follows_the_schema(kind):
    document = manifest(kind)
    assert document["kind"] == kind
    validate(document)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("wrong", "what"),
    [({"maxReplica": 3}, "maxReplica"), ({"labels": {"a b": "c"}}, "a b")],
    ids=["a misspelt key", "a label that is none"],
)
def test_a_mistake_is_refused(kind, wrong, what):
    document = copy.deepcopy(manifest(kind))
    spec = document["spec"]
    spec = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    spec["workerGroupSpecs"][0] |= wrong
    with pytest.raises(jsonschema.ValidationError, match=what):
        validate(document)


@pytest.mark.parametrize("kind", KINDS)
def test_manifest_asks_for_the_token_and_holds_no_secret(kind):
    assert cluster(kind)["authOptions"] == {"mode": "token"}
    assert not SECRET.search((FOLDER / f"{KINDS[kind]}.yaml").read_text())
    groups = [cluster(kind)["headGroupSpec"], *cluster(kind)["workerGroupSpecs"]]
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "cellray"}}]


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_waits_in_the_heads_queue_for_a_day(kind):
    (head,) = cluster(kind)["headGroupSpec"]["template"]["spec"]["containers"]
    assert {"name": "RAY_JOB_START_TIMEOUT_SECONDS", "value": "86400"} in head["env"]


@pytest.mark.parametrize("kind", KINDS)
def test_manifest_names_the_pinned_ray(kind):
    assert f"ray=={cluster(kind)['rayVersion']}" in PINNED


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_groups_scale_from_none_and_bear_their_role(kind):
    assert cluster(kind)["enableInTreeAutoscaling"] is True
    assert cluster(kind)["autoscalerOptions"]["version"] == "v2"
    groups = {group["groupName"]: group for group in cluster(kind)["workerGroupSpecs"]}
    assert set(groups) == {"feed", "train"}
    for name, group in groups.items():
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
    ports = {
        port["name"]: port["containerPort"]
        for port in cluster("RayService")["headGroupSpec"]["template"]["spec"]["containers"][0][
            "ports"
        ]
    }
    assert ports["serve"] == config["http_options"]["port"]
