"""The files in cluster/ for machines: by the published schemas, and naming only what exists."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml

from cellray.submitting import VERBS

ROOT = Path(__file__).parents[3]
LAUNCHER = ROOT / "cluster" / "ray.yaml"
DOCKERFILE = ROOT / "cluster" / "Dockerfile"
HADOLINT = Path(sys.executable).with_name("hadolint")
PINNED = (ROOT / "constraints.txt").read_text().splitlines()


@pytest.fixture(scope="module")
def launcher():
    return yaml.safe_load(LAUNCHER.read_text())


@pytest.fixture(scope="module")
def check_launcher():
    """Ray's own schema of what `ray up` reads."""
    import ray.autoscaler

    path = Path(ray.autoscaler.__file__).parent / "ray-schema.json"
    return jsonschema.Draft7Validator(json.loads(path.read_text())).validate


def test_launcher_follows_rays_schema(launcher, check_launcher):
    check_launcher(launcher)
    assert launcher["head_node_type"] in launcher["available_node_types"]
    workers = [kind for kind in launcher["available_node_types"] if kind != "head"]
    wanted = sum(launcher["available_node_types"][kind]["max_workers"] for kind in workers)
    assert wanted <= launcher["max_workers"]


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("idle_timeout_minutes:", "idle_timeout_minute:"),
        ("pull_before_run:", "pull_before_runs:"),
        ("min_workers: 0", "min_worker: 0"),
        ("max_workers: 8", "max_workers: eight"),
        ("resources: {CPU: 0}", "resources: {CPU: none}"),
        ("labels: {cellray/role: feed}", "labels: [cellray/role]"),
        ("type: aws", "kind: aws"),
    ],
)
def test_a_mistake_in_the_launchers_file_is_refused(right, wrong, check_launcher):
    text = LAUNCHER.read_text()
    assert right in text
    with pytest.raises(jsonschema.ValidationError):
        check_launcher(yaml.safe_load(text.replace(right, wrong)))


def test_launcher_starts_with_a_token_and_keeps_the_dashboard_on_loopback(launcher):
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "RAY_AUTH_MODE=token ray start" in launcher[commands][-1]
    assert "--dashboard-host=127.0.0.1" in launcher["head_start_ray_commands"][-1]
    assert "RAY_JOB_START_TIMEOUT_SECONDS=86400" in launcher["head_start_ray_commands"][-1]


def test_launcher_names_nodes_by_what_they_do(launcher):
    kinds = launcher["available_node_types"]
    labels = {kind: kinds[kind].get("labels", {}) for kind in kinds}
    assert labels == {"head": {}} | {kind: {"cellray/role": kind} for kind in ("feed", "train")}


def test_launcher_start_commands_parse(launcher):
    from ray.scripts.scripts import start

    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        words = shlex.split(launcher[commands][-1].rpartition("ray start ")[2])
        start.make_context("start", words)


def test_the_launchers_other_commands_parse():
    """Those that its head shows, and those that it gives nodes: Ray's own command takes them."""
    from ray.scripts.scripts import cli

    shown = re.findall(r"^(?:#     |  - )ray (\w+)((?: [\w/.=-]+)*)", LAUNCHER.read_text(), re.M)
    named = re.findall(r"`ray ([\w-]+)((?: [\w/.=-]+)*)`", LAUNCHER.read_text())
    complete = [*shown, *((verb, words) for verb, words in named if words)]
    assert {verb for verb, _ in complete} == {"up", "dashboard", "down", "stop", "get-auth-token"}
    for verb, words in complete:
        cli.commands[verb].make_context(verb, words.split())


def test_launcher_gives_every_node_that_works_access_to_the_bucket(launcher):
    """Ray's launcher gives a profile of its own making to the head alone."""
    kinds = launcher["available_node_types"]
    workers = [kind for kind in kinds if kind != launcher["head_node_type"]]
    profiles = [kinds[kind]["node_config"].get("IamInstanceProfile") for kind in workers]
    assert profiles == [{"Name": "cellray-nodes"}] * 2


@pytest.mark.parametrize("commands", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_launcher_gives_ray_the_variables_of_the_nodes_file(commands, launcher, tmp_path):
    """What Ray's processes have, jobs inherit; without the file Ray starts as well."""
    (mount,) = re.findall(r"^  # (~\S+): ~\S+$", LAUNCHER.read_text(), re.MULTILINE)
    stub = tmp_path / "bin" / "ray"
    stub.parent.mkdir()
    stub.write_text('#!/bin/sh\necho "$RAY_AUTH_MODE $MLFLOW_TRACKING_PASSWORD"\n')
    stub.chmod(0o755)
    env = {"HOME": str(tmp_path), "PATH": f"{stub.parent}:/usr/bin:/bin", "RAY_HEAD_IP": "10.0.0.1"}
    said = []
    for line in (None, "MLFLOW_TRACKING_PASSWORD='a b$c'\n"):
        if line:
            (tmp_path / mount.removeprefix("~/")).write_text(line)
        command = ["bash", "-c", launcher[commands][-1]]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        said.append(done.stdout.strip())
    assert said == ["token", "token a b$c"]


def test_image_has_the_pinned_ray():
    (pinned,) = (line.removeprefix("ray==") for line in PINNED if line.startswith("ray=="))
    assert f"FROM rayproject/ray:{pinned}-py311" in DOCKERFILE.read_text()


def test_image_is_linted():
    done = subprocess.run([HADOLINT, DOCKERFILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_linter_finds_what_is_wrong(tmp_path):
    wrong = DOCKERFILE.read_text().replace("FROM rayproject/ray:", "FROM rayproject/ray #")
    (tmp_path / "Dockerfile").write_text(wrong)
    done = subprocess.run([HADOLINT, tmp_path / "Dockerfile"], capture_output=True, text=True)
    assert "DL3006" in done.stdout


def test_image_installs_what_mlflow_needs_for_postgres():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert [re.split(r"[<>=]", one)[0] for one in extras["postgres"]] == ["psycopg2-binary"]
    assert '".[postgres]"' in DOCKERFILE.read_text()
    assert any(line.startswith("psycopg2-binary==") for line in PINNED)


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
    places = re.findall(r"--out (s3:)?", text)
    assert places
    assert all(places)


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
