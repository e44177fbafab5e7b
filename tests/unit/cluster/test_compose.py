"""The compose file: by its schema, on loopback only, its secrets from a file that git ignores."""

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
FILE = ROOT / "cluster" / "compose.yaml"
EXAMPLE = ROOT / "cluster" / "compose.env.example"
SECRETS = {"AWS_SECRET_ACCESS_KEY", "POSTGRES_PASSWORD", "PGPASSWORD", "RAY_AUTH_TOKEN"}
SECRETS |= {"MINIO_ROOT_PASSWORD", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_AUTH_ADMIN_PASSWORD"}
SECRETS |= {"MLFLOW_FLASK_SERVER_SECRET_KEY"}


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load(FILE.read_text())


def check(file):
    command = [Path(sys.executable).with_name("check-jsonschema")]
    command += ["--builtin-schema", "vendor.compose-spec", file]
    return subprocess.run(command, capture_output=True, text=True)


def test_it_follows_the_published_schema():
    done = check(FILE)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("right", "wrong", "named"),
    [
        ("healthcheck:", "healthchek:", "healthchek"),
        ("condition: service_healthy", "condition: healthy", "healthy"),
        ("deploy: {replicas: 2}", "deploy: {replica: 2}", "replica"),
        ("retries: 30", "retries: [30]", "[30]"),
        ('ports: ["127.0.0.1:9000:9000"]', "ports: 9000", "9000"),
    ],
)
def test_a_mistake_is_refused(right, wrong, named, tmp_path):
    text = FILE.read_text()
    assert right in text
    (tmp_path / "compose.yaml").write_text(text.replace(right, wrong))
    done = check(tmp_path / "compose.yaml")
    assert done.returncode == 1
    assert named in done.stdout


def test_every_service_is_watched_and_pinned(compose):
    for name, service in compose["services"].items():
        assert re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*", service["image"]), name
        assert name == "bucket" or service["healthcheck"]["test"][0] == "CMD", name


def test_ports_are_published_on_loopback_only(compose):
    ports = [port for one in compose["services"].values() for port in one.get("ports", [])]
    assert sorted(ports) == [f"127.0.0.1:{port}:{port}" for port in (5000, 8265, 9000)]
    assert not any("network_mode" in one for one in compose["services"].values())


def test_secrets_come_from_the_environment_file(compose):
    for name, service in compose["services"].items():
        for key, value in service["environment"].items():
            if key in SECRETS:
                assert re.fullmatch(r"\$\{\w+:\?set it in cluster/compose\.env\}", value), name
    asked = set(re.findall(r"\$\{(\w+):\?", FILE.read_text()))
    lines = [line for line in EXAMPLE.read_text().splitlines() if not line.startswith("#")]
    given = dict(line.split("=", 1) for line in lines)
    assert set(given) == asked
    assert {key for key, value in given.items() if value} == {"S3_ACCESS_KEY"}
    ignored = ["git", "check-ignore", "--quiet", "cluster/compose.env"]
    assert subprocess.run(ignored, cwd=ROOT).returncode == 0


def test_the_bucket_is_made_with_the_servers_own_keys(compose):
    service = compose["services"]["bucket"]
    assert service["entrypoint"] == ["mc"]
    named = service["environment"]["MC_HOST_here"]
    keys = compose["services"]["s3"]["environment"]
    user, password = keys["MINIO_ROOT_USER"], keys["MINIO_ROOT_PASSWORD"]
    assert named == f"http://{user}:{password}@s3:9000"


def test_no_secret_is_among_arguments(compose):
    """Every user of the machine can read the arguments of a process."""
    for service in compose["services"].values():
        words = " ".join(service.get("command", []))
        assert not re.search(r"(?<!\$)\$\{", words)
        assert not re.search(r"\$\$\{?\w*(PASSWORD|SECRET|TOKEN|KEY)", words)
        assert not re.search(r"//[^/\s]*:[^/\s]*@", words)


# MLflow's tables use an option that SQLAlchemy 2.1 is going to drop.
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
def test_mlflow_asks_who_one_is(compose):
    from click import Context
    from mlflow.cli import server

    service = compose["services"]["mlflow"]
    program, verb, *words = service["command"]
    assert (program, verb) == ("mlflow", "server")
    parsed = server.make_context("server", list(words), resilient_parsing=True)
    assert isinstance(parsed, Context)
    assert parsed.params["app_name"] == "basic-auth"
    assert "0.0.0.0" not in parsed.params["allowed_hosts"]
    (config,) = compose["services"]["mlflow"]["configs"]
    assert (
        config["target"] == compose["services"]["mlflow"]["environment"]["MLFLOW_AUTH_CONFIG_PATH"]
    )
    settings = configparser.ConfigParser()
    settings.read_string(compose["configs"]["mlflow-auth"]["content"])
    assert settings["mlflow"]["default_permission"] == "NO_PERMISSIONS"
    assert settings["mlflow"]["database_uri"] == parsed.params["backend_store_uri"]


@pytest.mark.parametrize("name", ["ray-head", "ray-worker"])
def test_ray_starts_with_a_token(compose, name):
    from ray.scripts.scripts import cli

    service = compose["services"][name]
    health = service["healthcheck"]["test"]
    for wanted, command in (("start", service["command"]), ("status", health[1:])):
        program, verb, *words = command
        assert (program, verb) == ("ray", wanted)
        cli.commands[verb].make_context(verb, list(words))
    assert service["environment"]["RAY_AUTH_MODE"] == "token"
    waits = service["environment"].get("RAY_JOB_START_TIMEOUT_SECONDS")
    assert waits == ("86400" if name == "ray-head" else None)
    assert service["environment"]["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
