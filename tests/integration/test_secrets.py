"""A run on a bucket, Ray and MLflow that all ask who one is: what it leaves behind, and its log."""

import base64
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest
from tests.integration.conftest import LOGIN
from tests.integration.mlflow_server import start_server
from tests.integration.proxy import Fault, proxied

from cellray.atlas.simulate import Simulation, simulate_anndata
from cellray.atlas.write import ingest
from cellray.cluster.processes import free_ports

pytestmark = pytest.mark.slow

PASSWORD = "mlflow-5d1e0b97c3a2"
RAY_TOKEN = "ray-0f6a4c1e8b7d93254e8c"
SERVE_TOKEN = "serve-77c1b0e94ad25f31"
SECRETS = (LOGIN.secret, PASSWORD, RAY_TOKEN, SERVE_TOKEN)
RECIPE = "configs/smoke.yaml"
ROOT = Path(__file__).parents[2]


def disguises(secret):
    """The forms in which a secret travels: plain, in a URL, and in a header of basic auth."""
    yield secret.encode()
    yield quote(secret, safe="").encode()
    yield base64.b64encode(f"admin:{secret}".encode()).rstrip(b"=")


def finds(folder):
    """Name the files under a folder that hold a secret."""
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    assert files, folder
    held = [(path, path.read_bytes()) for path in files]
    return [
        (str(path), secret)
        for path, content in held
        for secret in SECRETS
        if any(form in content for form in disguises(secret))
    ]


def status_of(url, token):
    headers = {"Authorization": f"Bearer {token}"}
    try:
        with urlopen(Request(url, headers=headers), timeout=30) as answer:
            return answer.status
    except HTTPError as error:
        error.close()
        return error.code


def served(process, url):
    """Wait for a server; give how it answers with its token and with others."""
    until = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < until:
        try:
            if status_of(f"{url}/healthz", "none") == 200:
                break
        except OSError:
            time.sleep(0.5)
    return {token: status_of(f"{url}/model", token) for token in (SERVE_TOKEN, PASSWORD)}


@pytest.fixture(scope="module")
def run(s3_server, tmp_path_factory):
    """Train on two workers, evaluate, embed and serve, with credentials wherever some may be."""
    folder = tmp_path_factory.mktemp("secrets")
    (folder / "mlflow").mkdir()
    (folder / "work").mkdir()
    server = start_server(
        folder / "mlflow",
        options=["--app-name", "basic-auth"],
        env={
            "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "flask-93b1d7f0a25c",
        },
    )
    # Ray's sockets lie under its folder, and a socket's path may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as ray:
        bucket = s3_server.bucket()
        env = {
            **os.environ,
            **s3_server.env,
            "MLFLOW_TRACKING_URI": server.url.replace("//", f"//admin:{PASSWORD}@"),
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": PASSWORD,
            "RAY_ADDRESS": "",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": RAY_TOKEN,
            "RAY_TMPDIR": ray,
            "CELLRAY_SERVE_TOKEN": SERVE_TOKEN,
            "CELLRAY_LOG": "json",
            "RAY_JOB_SUBMISSION_ID": "raysubmit_of_this_test",
        }
        python = [sys.executable, "-m", "cellray"]
        asked = {"cwd": folder / "work", "env": env, "text": True}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in s3_server.env.items():
                patch.setenv(name, value)
            cells = simulate_anndata(Simulation(n_cells=400, n_genes=120, seed=2))
            cells.write_h5ad(folder / "cells.h5ad")
            atlas = ingest([folder / "cells.h5ad"], f"s3://{bucket}/atlas")
        words = ["pretrain", "--recipe", ROOT / RECIPE, "--atlas", atlas.url, "--name", "secret"]
        words += ["--storage", f"s3://{bucket}/runs", "--num-workers", "2", "--json"]
        try:
            with proxied(env["AWS_ENDPOINT_URL"]) as proxy:
                proxy.faults.append(Fault("status", "X/data/c", times=2, status=503))
                done = subprocess.run(
                    [*python, *map(str, words)],
                    **(asked | {"env": env | {"AWS_ENDPOINT_URL": proxy.url}}),
                    capture_output=True,
                    timeout=500,
                    check=False,
                )
                assert proxy.hits() == 2
            model = ["models:/secret/1", "--atlas", atlas.url]
            for verb, more in (
                ("evaluate", ["--label", "cell_type"]),
                ("embed", ["--out", f"s3://{bucket}/z/"]),
            ):
                with (folder / "work" / verb).open("w") as output:
                    used = [*python, verb, *model, *more]
                    status = subprocess.call(used, **asked, stdout=output, stderr=output)
                assert status == 0, (folder / "work" / verb).read_text()
            with (folder / "work" / "serve").open("w") as output:
                port = free_ports(1)[0]
                server_words = ["serve", "models:/secret/1", "--port", str(port)]
                serving = subprocess.Popen(
                    [*python, *server_words], **asked, stdout=output, stderr=output
                )
                try:
                    answers = served(serving, f"http://127.0.0.1:{port}")
                finally:
                    serving.send_signal(signal.SIGINT)
                    serving.wait(60)
        finally:
            server.stop()
        (folder / "work" / "stdout").write_text(done.stdout)
        (folder / "work" / "stderr").write_text(done.stderr)
        assert done.returncode == 0, done.stderr
        kept = folder / "bucket"
        for key in s3_server.keys(bucket):
            path = kept / key
            path.parent.mkdir(parents=True, exist_ok=True)
            body = s3_server.client.get_object(Bucket=bucket, Key=key)["Body"].read()
            path.write_bytes(body)
        sessions = [path for path in Path(ray).rglob("session_2*") if path.is_dir()]
        assert len(sessions) == 4
        (folder / "ray").mkdir()
        for session in sessions:
            (session / "logs").rename(folder / "ray" / session.name)
        yield folder, json.loads(done.stdout), answers


def test_a_run_leaves_no_secret_behind(run):
    folder, _, answers = run
    assert answers == {SERVE_TOKEN: 200, PASSWORD: 401}
    assert [*folder.glob("bucket/runs/*/*/checkpoint_*")]
    assert [*folder.glob("mlflow/artifacts/**/launch.json")]
    assert [*folder.glob("mlflow/artifacts/**/report.html")]
    assert [*folder.glob("bucket/z/*.parquet")]
    places = [*(folder / name for name in ("work", "bucket", "ray")), folder / "mlflow"]
    assert [found for place in places for found in finds(place)] == []


def test_the_search_finds_what_is_there(tmp_path):
    (tmp_path / "log").write_text(f"http://admin:{PASSWORD}@127.0.0.1")
    header = base64.b64encode(f"admin:{PASSWORD}".encode()).decode()
    (tmp_path / "header").write_text(f"Authorization: Basic {header}")
    assert {Path(path).name for path, _ in finds(tmp_path)} == {"log", "header"}


def lines(text):
    """Give the lines that are JSON documents of cellray's."""
    found = [json.loads(line) for line in text.splitlines() if line.startswith('{"time"')]
    return [one for one in found if one["logger"].startswith("cellray")]


def test_log_lines_say_run_job_and_rank(run):
    folder, answer, _ = run
    about = {"run": answer["run_id"], "job": "raysubmit_of_this_test"}
    told = lines((folder / "work" / "stderr").read_text())
    training = [one for one in told if one.get("stage") == "train"]
    assert training[-1]["done"] == training[-1]["total"]
    assert training[-1]["train_loss"] > 0
    assert all(one.items() >= about.items() for one in training)

    logged = (folder / "ray").glob("*/worker-*.err")
    workers = [one for path in logged for one in lines(path.read_text())]
    begun = {one["rank"]: one for one in workers if "trains from step 0" in one["message"]}
    assert set(begun) == {0, 1}
    for one in begun.values():
        assert one.items() >= (about | {"level": "info", "logger": "cellray.train.worker"}).items()

    # Whoever reads first meets the store's failures: the driver, or a task of Ray Data's.
    again = [one for one in (*told, *workers) if one["message"].startswith("reading ")]
    assert len(again) == 2
    assert {(one["logger"], one["job"]) for one in again} == {
        ("cellray.atlas.storage", about["job"])
    }
    (replica,) = {one["replica"] for one in workers if "serves models:/secret/1" in one["message"]}
    assert replica.isalnum()
