"""A local cluster: started by one shell, used by others, ended by a third."""

import base64
import stat
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import boto3
import psutil
import pytest
from botocore.exceptions import ClientError
from tests.integration.local_cluster import UP, answer, cellray, listening, marked, state

LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder whose cluster runs."""
    folder = tmp_path_factory.mktemp("local")
    try:
        answer(folder, *UP)
        yield folder
    finally:
        cellray(folder, "cluster", "down")


@pytest.fixture(scope="module")
def env(folder):
    return answer(folder, "cluster", "env")


def refusal(url, **headers):
    """The status with which a server refuses; 0 if it does not."""
    try:
        with urlopen(Request(url, headers=headers), timeout=30):
            return 0
    except HTTPError as error:
        error.close()
        return error.code


def basic(user, password):
    words = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"Authorization": f"Basic {words}"}


def s3_client(env, secret=None):
    return boto3.client(
        "s3",
        endpoint_url=env["AWS_ENDPOINT_URL"],
        region_name=env["AWS_REGION"],
        aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=secret or env["AWS_SECRET_ACCESS_KEY"],
    )


def test_it_runs_when_its_shell_is_gone(folder):
    found = answer(folder, "cluster", "status")
    assert found["complete"]
    assert found["nodes"] == 2
    names = [one["name"] for one in found["processes"]]
    assert names[-3:] == ["mlflow", "head", "worker-1"]
    assert all(Path(one["log"]).exists() for one in found["processes"])
    again = cellray(folder, *UP)
    assert again.returncode == 2
    assert "a cluster runs already" in again.stderr


def test_what_opens_it_is_for_its_user_only(folder):
    kept = folder / ".cellray" / "cluster"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
    for name in ("state.json", "token", "credentials.json", "s3/proxy.conf", "mlflow/auth.ini"):
        assert stat.S_IMODE((kept / name).stat().st_mode) == 0o600, name


def test_ray_refuses_who_has_no_token(folder, env):
    url = f"{env['RAY_API_SERVER_ADDRESS']}/api/jobs/"
    token = Path(env["RAY_AUTH_TOKEN_PATH"]).read_text()
    assert refusal(url) == 401
    assert refusal(url, Authorization="Bearer " + "0" * 64) == 403
    assert refusal(url, Authorization=f"Bearer {token}") == 0


def test_rays_agents_refuse_who_has_no_token(folder):
    """They listen on all interfaces, and tell everyone no more than their metrics."""
    asked = {
        "dashboard-agent-listen-port": ("/api/job_agent/jobs/", 401),
        "runtime-env-agent-port": ("/get_or_create_runtime_env", 401),
        "metrics-export-port": ("/metrics", 0),
    }
    hosts = {one.laddr.port: one.laddr.ip for one in listening()}
    nodes = [one for one in state(folder)["processes"] if one["name"] in {"head", "worker-1"}]
    assert len(nodes) == 2
    for node in nodes:
        words = dict(
            word.removeprefix("--").split("=", 1)
            for word in psutil.Process(node["pid"]).cmdline()
            if "=" in word
        )
        for name, (path, status) in asked.items():
            port = int(words[name])
            host = "127.0.0.1" if hosts[port] in {"::", "0.0.0.0"} else hosts[port]
            url = f"http://{host}:{port}{path}"
            assert refusal(url) == status, name


def test_mlflow_refuses_who_has_no_password_and_foreign_pages(env):
    url = f"{env['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/registered-models/search"
    user, password = env["MLFLOW_TRACKING_USERNAME"], env["MLFLOW_TRACKING_PASSWORD"]
    assert refusal(url) == 401
    assert refusal(url, **basic(user, "password1234")) == 401
    good = basic(user, password)
    assert refusal(url, **good) == 0
    assert refusal(url, **good, Host="evil.example") == 403
    create = f"{env['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/experiments/create"
    asked = Request(create, b"{}", good | {"Origin": "http://evil.example"})
    with pytest.raises(HTTPError, match="403"):
        urlopen(asked, timeout=30)


def test_s3_refuses_other_keys(env):
    client = s3_client(env)
    assert [one["Name"] for one in client.list_buckets()["Buckets"]] == ["cellray"]
    client.close()
    wrong = s3_client(env, "wrong")
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        wrong.list_objects_v2(Bucket="cellray")
    wrong.close()
    assert refusal(f"{env['AWS_ENDPOINT_URL']}/v1/AUTH_cellray/cellray") == 401  # Swift's own API


def test_it_listens_on_loopback(folder, env):
    """Ray opens the ports between its nodes on all interfaces, whatever it is told."""
    ours = {process.pid: process for process in marked(state(folder)["mark"])}
    assert len(ours) > 7
    chosen = {
        urlsplit(env[name]).port
        for name in ("RAY_API_SERVER_ADDRESS", "MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL")
    }
    open_to_all = set()
    for one in listening():
        if one.laddr.port in chosen:
            assert one.laddr.ip == "127.0.0.1"
            chosen.remove(one.laddr.port)
        elif one.pid in ours and one.laddr.ip not in LOOPBACK:
            open_to_all.add(one.pid)
    assert not chosen
    for pid in open_to_all:
        words = " ".join(ours[pid].cmdline())
        assert "ray" in words
        assert "mlflow" not in words
        assert "swift" not in words


def test_no_secret_is_written_where_others_read(folder, env):
    """Neither in a log nor among the arguments of a process, which all users see."""
    secrets = [env["MLFLOW_TRACKING_PASSWORD"], env["AWS_SECRET_ACCESS_KEY"]]
    secrets.append(Path(env["RAY_AUTH_TOKEN_PATH"]).read_text())
    found = state(folder)
    logs = [*(folder / ".cellray" / "cluster" / "logs").iterdir()]
    logs += [
        path for path in Path(found["scratch"]).glob("*/session_*/logs/**/*") if path.is_file()
    ]
    assert len(logs) > 20
    texts = {str(path): path.read_text(errors="replace") for path in logs}
    for process in marked(found["mark"]):
        try:
            texts[str(process)] = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
    assert [name for name, text in texts.items() if any(one in text for one in secrets)] == []


def test_a_shell_finds_registry_and_bucket(folder, env):
    done = cellray(folder, "models", "list", env=env)
    assert done.returncode == 0, done.stderr
    assert "no registered models" in done.stdout


def test_down_ends_all_of_it_and_keeps_its_data(folder):
    found = state(folder)
    ours = {process.pid for process in marked(found["mark"])}
    ports = {one.laddr.port for one in listening() if one.pid in ours}
    assert len(ports) > 10
    assert answer(folder, "cluster", "down")["ended"] >= len(found["processes"])
    assert marked(found["mark"]) == []
    assert not ports & {one.laddr.port for one in listening() if one.pid in ours}
    assert not Path(found["scratch"]).exists()
    kept = folder / ".cellray" / "cluster"
    assert (kept / "mlflow" / "mlflow.db").exists()
    assert [*(kept / "s3" / "devices" / "d1").iterdir()]
    assert not (kept / "state.json").exists()
    assert answer(folder, "cluster", "down") == {"ended": 0}
    assert answer(folder, "cluster", "status", code=1) == {"complete": False}
