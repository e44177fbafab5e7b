"""The files in cluster/: by the published schemas, and naming only what exists."""

import json
import re
import shlex
from pathlib import Path

import jsonschema
import pytest
import yaml

from cellray.cli_cluster import VERBS

ROOT = Path(__file__).parents[3]
LAUNCHER = ROOT / "cluster" / "ray.yaml"
RAYJOB = ROOT / "cluster" / "kuberay" / "rayjob.yaml"
DOCKERFILE = ROOT / "cluster" / "Dockerfile"
PINNED = (ROOT / "constraints.txt").read_text().splitlines()


@pytest.fixture(scope="module")
def launcher():
    return yaml.safe_load(LAUNCHER.read_text())


@pytest.fixture(scope="module")
def rayjob():
    return yaml.safe_load(RAYJOB.read_text())


@pytest.fixture(scope="module")
def schema():
    return json.loads((Path(__file__).parent / "rayjob.schema.json").read_text())


def test_launcher_follows_rays_schema(launcher):
    import ray.autoscaler

    path = Path(ray.autoscaler.__file__).parent / "ray-schema.json"
    jsonschema.validate(launcher, json.loads(path.read_text()))
    assert launcher["head_node_type"] in launcher["available_node_types"]
    workers = [kind for kind in launcher["available_node_types"] if kind != "head"]
    wanted = sum(launcher["available_node_types"][kind]["max_workers"] for kind in workers)
    assert wanted <= launcher["max_workers"]


def test_launcher_starts_with_a_token_and_keeps_the_dashboard_on_loopback(launcher):
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "RAY_AUTH_MODE=token ray start" in launcher[commands][-1]
    assert "--dashboard-host=127.0.0.1" in launcher["head_start_ray_commands"][-1]


def test_launcher_start_commands_parse(launcher):
    from ray.scripts.scripts import start

    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        words = shlex.split(launcher[commands][-1].rpartition("ray start ")[2])
        start.make_context("start", words)


def test_rayjob_follows_the_schema(rayjob, schema):
    jsonschema.validate(rayjob, schema)


def test_a_misspelt_key_is_refused(rayjob, schema):
    spec = rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    wrong = json.loads(json.dumps(rayjob))
    wrong["spec"]["rayClusterSpec"]["workerGroupSpecs"][0] = spec | {"maxReplica": 3}
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.validate(wrong, schema)


def test_rayjob_keeps_the_token_and_no_secret(rayjob):
    assert rayjob["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert not re.search(r"(?i)(secret_access_key|password|token)\s*:\s*\S", RAYJOB.read_text())


def test_rayjob_runs_a_job_that_exists(rayjob, parse_command):
    python, script, *arguments = shlex.split(rayjob["spec"]["entrypoint"])
    path = ROOT / Path(script).relative_to("/opt/cellray")
    assert python == "python"
    assert path.is_file()
    parsed = parse_command([path.stem, *arguments])
    assert (ROOT / parsed["recipe"].relative_to("/opt/cellray")).is_file()


def test_versions_of_ray_agree(rayjob):
    (pinned,) = (line.removeprefix("ray==") for line in PINNED if line.startswith("ray=="))
    assert rayjob["spec"]["rayClusterSpec"]["rayVersion"] == pinned
    assert f"FROM rayproject/ray:{pinned}-py311" in DOCKERFILE.read_text()


def test_dockerfile_copies_what_exists():
    text = DOCKERFILE.read_text()
    ignored = (ROOT / "cluster" / "Dockerfile.dockerignore").read_text().splitlines()
    copied = [
        word
        for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE)
        for word in line.split()[:-1]
        if not word.startswith("--")
    ]
    assert copied
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name.removeprefix('./')}" in ignored


def test_image_takes_the_commit_that_runs_record():
    text = DOCKERFILE.read_text()
    assert "--build-arg CELLRAY_GIT_COMMIT=" in text
    argument = re.search(r"^ARG CELLRAY_GIT_COMMIT\b", text, re.MULTILINE)
    kept = re.search(r"^ENV CELLRAY_GIT_COMMIT=\$CELLRAY_GIT_COMMIT$", text, re.MULTILINE)
    assert argument
    assert kept
    assert text.index("RUN pip") < argument.start() < kept.start()


def test_shipped_code_does_not_take_the_images_commit():
    text = (ROOT / "cluster" / "runtime_env.yaml").read_text()
    assert yaml.safe_load(text)["env_vars"]["CELLRAY_GIT_COMMIT"] == ""
    assert 'env CELLRAY_GIT_COMMIT="$(git describe' in text


def test_no_job_unpickles_a_model():
    name = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"
    assert re.search(rf"^ENV .*\b{name}=false\b", DOCKERFILE.read_text(), re.MULTILINE)
    text = (ROOT / "cluster" / "runtime_env.yaml").read_text()
    assert yaml.safe_load(text)["env_vars"][name] == "false"


def test_embeddings_outlive_the_jobs_folder():
    text = (ROOT / "jobs" / "embed.py").read_text()
    (out,) = re.findall(r"--out (\S+)", text)
    assert Path(out).parent == Path("/mnt/shared")
    assert "that all nodes share (here /mnt/shared" in text


def test_runtime_env_ships_the_package():
    shipped = yaml.safe_load((ROOT / "cluster" / "runtime_env.yaml").read_text())
    assert shipped["working_dir"] == "."
    assert [ROOT / name for name in shipped["py_modules"]] == [ROOT / "platform" / "cellray"]


@pytest.mark.parametrize("job", sorted((ROOT / "jobs").glob("*.py")), ids=lambda path: path.stem)
def test_job_shows_a_command_that_parses(job, parse_command):
    text = job.read_text().replace("\\\n", " ")
    (command,) = re.findall(r"^ *python (jobs/.*)$|-- +python (jobs/.*)$", text, re.MULTILINE)
    script, *arguments = shlex.split(max(command))
    assert script == f"jobs/{job.name}"
    parsed = parse_command([*VERBS[job.stem], *arguments])
    recipe = parsed.get("recipe")
    assert recipe is None or (ROOT / recipe).is_file()
