"""What `cellray doctor` finds, each wrong thing provoked on this machine."""

import json
import os
import re
import resource
import socket
import subprocess
import sys
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from tests.listening import listening

from cellray import doctor, doctor_services
from cellray.cli import main

ROOT = Path(__file__).parents[2]
SERVICES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS")
SERVICES += ("MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE")


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """An empty working folder, and no services configured."""
    monkeypatch.chdir(tmp_path)
    for name in (*SERVICES, *SECRETS):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def nobody():
    """An address at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def mute():
    """An address that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def answering(status, body=b"", *, key=""):
    """Serve one HTTP status and body, as a server does that is something else.

    Paths without `key` get an empty JSON document.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            hit = key in self.path
            said = body if hit else b"{}"
            self.send_response(status if hit else 200)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        do_POST = do_GET  # noqa: N815 - http.server's name

        def log_message(self, *words):
            pass

    with listening(Handler) as url:
        yield url


def installed(folder, name, version, *lines):
    """Put a distribution into a folder, of which only the metadata are there."""
    (folder / f"{name}-{version}.dist-info").mkdir()
    text = "\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines])
    (folder / f"{name}-{version}.dist-info" / "METADATA").write_text(f"{text}\n")


def test_this_machine_is_well():
    found = {
        name: check() for name, check in doctor.CHECKS.items() if name not in {"memory", "disk"}
    }
    assert {name: one for name, one in found.items() if one.state == "fail"} == {}
    assert found["python"].state == "ok"
    assert found["torch"].found.startswith("torch 2")


def test_a_python_that_is_too_old_fails(tmp_path, monkeypatch):
    installed(tmp_path, "cellray", "9.9", "Requires-Python: >=3.99")
    monkeypatch.syspath_prepend(tmp_path)
    found = doctor.python()
    assert (found.state, found.mend) == ("fail", "make an environment of Python >=3.99")


def test_packages_out_of_their_bounds_fail(tmp_path, monkeypatch):
    installed(tmp_path, "typer", "0.1")
    monkeypatch.syspath_prepend(tmp_path)
    found = doctor.packages()
    assert found.state == "fail"
    assert "typer is 0.1, and cellray needs >=0.16" in found.found
    assert "-m pip install" in found.mend


def test_a_package_that_is_not_there_fails(tmp_path, monkeypatch):
    installed(tmp_path, "cellray", "9.9", "Requires-Dist: no-such-package>=1")
    monkeypatch.syspath_prepend(tmp_path)
    assert doctor.packages().found == "no-such-package is not installed"


def test_other_versions_than_the_tested_ones_are_warned_of(tmp_path, monkeypatch):
    installed(tmp_path, "typer", "7.0")
    monkeypatch.syspath_prepend(tmp_path)
    found = doctor.packages()
    assert found.state == "warning"
    assert re.search(r"typer 7\.0, not \d", found.found)
    assert str(ROOT / "constraints.txt") in found.mend


def test_a_library_that_cannot_be_imported_fails(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so: cannot open shared object')")
    done = run_doctor(tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT / 'platform'}")
    assert done.returncode == 2
    (torch,) = (one for one in json.loads(done.stdout)["checks"] if one["check"] == "torch")
    assert (torch["state"], torch["found"]) == ("fail", "libcudart.so: cannot open shared object")


@pytest.mark.parametrize("state", ["", ".cellray"])
def test_a_folder_that_may_not_be_written_fails(state, tmp_path):
    # /proc takes no files, from root either.
    folder = Path("/proc")
    if state:
        folder = tmp_path
        (folder / state).symlink_to("/proc")
    found = doctor.work_folder(folder)
    assert found.state == "fail"
    assert "cannot be written" in found.found
    assert "work in a folder" in found.mend


def test_a_full_disk_fails_and_a_small_one_is_warned_of(tmp_path):
    full = doctor.room(Path("/proc"), "make room")  # a file system of no bytes
    assert (full.state, full.mend) == ("fail", "make room")
    assert full.found.startswith("0.0 GiB of 0.0 GiB free")
    small = doctor.room(tmp_path, "make room", least=0, good=1 << 60)
    assert (small.state, small.mend) == ("warning", "make room")
    assert doctor.room(tmp_path, "make room", least=0, good=0).found == small.found


def test_shared_memory_that_is_small_or_absent_is_warned_of(tmp_path):
    small = doctor.shared_memory(Path("/proc"))
    assert small.state == "warning"
    assert "--shm-size" in small.mend
    assert doctor.shared_memory(tmp_path / "none").state == "warning"
    assert doctor.shared_memory(tmp_path, needed=0).state == "ok"


def test_little_memory_is_warned_of():
    assert doctor.memory(least=0).state == "ok"
    found = doctor.memory(least=1 << 60)
    assert (found.state, found.mend) == (
        "warning",
        "end other programs, or lower data.batch_size",
    )


@pytest.mark.parametrize(("limit", "state"), [(500, "fail"), (2_000, "warning")])
def test_few_open_files_are_told_with_the_command_that_allows_more(limit, state):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        found = doctor.open_files()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (found.state, found.found) == (state, f"{limit:,} open files a process")
    assert found.mend.startswith("ulimit -n ") or hard <= limit


@pytest.mark.parametrize("address", ["{}", "http://{}", "ray://{}"])
def test_a_ray_that_is_not_there_fails(address, nobody, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address.format(nobody))
    found = doctor_services.ray()
    assert found.state == "fail"
    assert nobody in found.found
    assert "check " in found.mend or "ray job submit" in found.mend


def test_a_cluster_that_takes_jobs_is_asked_without_ray_address(nobody, tmp_path, monkeypatch):
    """As `submit` does: the environment's dashboard, or else the local cluster of this folder."""
    assert "nothing names a cluster" in doctor_services.ray().found
    folder = tmp_path / ".cellray" / "cluster"
    folder.mkdir(parents=True)
    (folder / "token").write_text("t0ken")
    state = {"dashboard": f"http://{nobody}", "token": str(folder / "token")}
    (folder / "state.json").write_text(json.dumps(state))
    found = doctor_services.ray()
    assert found.state == "fail"
    assert f"no Ray takes jobs at http://{nobody}: nothing listens there" in found.found
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "ftp://there")
    assert "RAY_API_SERVER_ADDRESS is 'ftp://there'" in doctor_services.ray().found


def test_a_ray_that_says_nothing_fails_in_time(mute, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", f"http://{mute}")
    monkeypatch.setattr(doctor_services, "PATIENCE", 3.0)
    found = doctor_services.ray()
    assert found.state == "fail"
    assert found.found.endswith("says nothing for 3 s")


def test_an_mlflow_that_is_not_there_fails(nobody, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://anna:{'hush'}@{nobody}")
    found = doctor_services.mlflow()
    assert found.state == "fail"
    assert "no MLflow answers" in found.found
    assert "MLFLOW_TRACKING_URI" in found.mend
    assert "hush" not in found.found


@pytest.mark.parametrize(("status", "said"), [(401, "refuses these credentials"), (404, "404")])
def test_an_mlflow_that_refuses_fails(status, said, monkeypatch):
    with answering(status) as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        found = doctor_services.mlflow()
    assert found.state == "fail"
    assert said in found.found


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (500, b"", "does not answer"),
        (400, b'{"error_code": "INVALID_STATE", "message": "half made"}', "half made"),
        (200, b'{"registered_models": 7}', "the check ended with"),
    ],
)
def test_an_mlflow_that_takes_a_knock_and_then_fails_is_one_finding(
    status, body, said, monkeypatch, capfd
):
    """Whatever it answers, the other checks are told."""
    with answering(status, body, key="registered-models") as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        assert main(["doctor", "--json"]) == 2
    checks = {one["check"]: one for one in json.loads(capfd.readouterr().out)["checks"]}
    assert list(checks) == list(doctor.CHECKS)
    assert checks["mlflow"]["state"] == "fail"
    assert said in checks["mlflow"]["found"]
    assert checks["mlflow"]["mend"]


def test_a_store_that_is_no_database_fails(tmp_path, monkeypatch):
    (tmp_path / "notes.db").write_text("not a database " * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/notes.db")
    found = doctor_services.mlflow()
    assert found.state == "fail"
    assert "notes.db" in found.found


def test_a_store_that_is_there_is_counted(store):
    found = doctor_services.mlflow()
    assert found.state == "ok"
    assert found.found.endswith("0 registered models")


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"AWS_ACCESS_KEY_ID": "anna"}, "AWS_SECRET_ACCESS_KEY is not"),
        ({"AWS_SECRET_ACCESS_KEY": "hush"}, "AWS_ACCESS_KEY_ID is not"),
        ({"AWS_ENDPOINT_URL": "127.0.0.1:9000"}, "no address"),
        (
            {
                "AWS_ENDPOINT_URL": "http://{nobody}",
                "AWS_ACCESS_KEY_ID": "anna",
                "AWS_SECRET_ACCESS_KEY": "hush",
            },
            "does not answer",
        ),
    ],
)
def test_object_storage_that_cannot_work_fails(env, said, nobody, monkeypatch):
    for name, value in env.items():
        monkeypatch.setenv(name, value.format(nobody=nobody))
    found = doctor_services.s3_credentials()
    assert found.state == "fail"
    assert said in found.found
    assert "AWS_" in found.mend or "http" in found.mend
    assert "hush" not in f"{found}"


def test_a_place_that_is_no_object_store_fails():
    assert "no object store" in doctor_services.s3_round_trip("plates.zarr").found


def run_doctor(folder, *words, **env):
    known = {name: value for name, value in os.environ.items() if name not in SERVICES + SECRETS}
    return subprocess.run(
        [sys.executable, "-m", "cellray", "doctor", "--json", *words],
        cwd=folder,
        env=known | env,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_everything_wrong_is_told_at_once_and_no_secret(tmp_path, nobody):
    env = {
        "RAY_ADDRESS": nobody,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "hush-token" * 8,
        "MLFLOW_TRACKING_URI": f"http://anna:hush-mlflow@{nobody}",
        "MLFLOW_TRACKING_PASSWORD": "hush-password",
        "AWS_ENDPOINT_URL": f"http://anna:hush-endpoint@{nobody}",
        "AWS_ACCESS_KEY_ID": "hush-key",
        "AWS_SECRET_ACCESS_KEY": "hush-secret",
    }
    done = run_doctor(tmp_path, "--s3", "s3://bucket/path", **env)
    assert done.returncode == 2, done.stderr
    document = json.loads(done.stdout)
    assert document["passed"] is False
    failed = {one["check"]: one for one in document["checks"] if one["state"] == "fail"}
    assert set(failed) == {"ray", "mlflow", "s3", "s3 round trip"}
    assert all(one["mend"] for one in failed.values())
    assert "hush" not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []
