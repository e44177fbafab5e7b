"""What MLflow holds of a job, on a real store; and the password of a local cluster's server."""

import base64
import json
import os
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

import pytest
from tests.listening import listening

from cellray.cluster.address import Address, find_address
from cellray.cluster.outcome import Outcome, outcome, run_name
from cellray.core.errors import CellrayError
from cellray.track.store import client, experiment_id, tracking_uri

JOB = "pretrain-plates-20261129-031502-ab12cd34"


@dataclass
class Details:
    """What is looked at of Ray's JobDetails."""

    submission_id: str = JOB
    runtime_env: dict = field(default_factory=dict)


@pytest.fixture
def made(store):
    """Make a job's run and its trial's, a version of a model, and another job's run."""
    api = client()
    tags = {"ray_submission_id": JOB}
    parent = api.create_run(experiment_id("cellray"), tags=tags).info.run_id
    trial = api.create_run(experiment_id("cellray"), tags=tags | {"mlflow.parentRunId": parent})
    api.create_run(experiment_id("cellray"), tags={"ray_submission_id": JOB + "x"})
    api.create_registered_model("plates")
    api.create_model_version("plates", "file:///tmp/nowhere", run_id=trial.info.run_id)
    return parent


def test_runs_and_models_are_found_by_the_jobs_id(made):
    found = outcome(Details(), Address("http://a:1", "test", env={"MLFLOW_TRACKING_URI": ""}))
    assert found == Outcome()  # nothing names a store
    address = Address("http://a:1", "test", env={"MLFLOW_TRACKING_URI": tracking_uri()})
    assert outcome(Details(), address) == Outcome((made,), (), ("models:/plates/1",))
    assert outcome(Details("other"), address) == Outcome()
    told = {"env_vars": {"MLFLOW_TRACKING_URI": tracking_uri()}}
    named = outcome(Details(runtime_env=told), Address("http://a:1", "test"))
    assert named.models == ("models:/plates/1",)


@pytest.fixture
def server():
    """A server that keeps the Authorization of each request, and lets nobody in."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def refuse(self):
            seen.append(self.headers.get("Authorization"))
            self.send_response(401)
            self.end_headers()

        do_GET = do_POST = refuse  # noqa: N815 - as http.server names them

        def log_message(self, *_):
            pass

    with listening(Handler) as url:
        yield url, seen


def test_a_local_clusters_password_goes_to_its_own_server_alone(
    store, server, monkeypatch, tmp_path
):
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    url, seen = server
    folder = tmp_path / ".cellray" / "cluster"
    folder.mkdir(parents=True)
    (folder / "token").write_text("t" * 32)
    words = {"mlflow_password": "pass", "mlflow_secret": "", "s3_secret": "", "s3_salt": ""}
    (folder / "credentials.json").write_text(json.dumps(words))
    files = {name: str(folder / name) for name in ("token", "credentials.json")}
    state = {"dashboard": "http://127.0.0.1:8265", "mlflow": url, "token": files["token"]}
    state["credentials"] = files["credentials.json"]
    (folder / "state.json").write_text(json.dumps(state))

    address = find_address()
    before = dict(os.environ)
    assert outcome(Details(), address) == Outcome()
    ours = f"Basic {base64.b64encode(b'cellray:pass').decode()}"
    assert ours in seen
    assert dict(os.environ) == before
    assert "pass" not in repr(address)

    seen.clear()
    assert run_name("0" * 32, url, address, must=True) is None
    assert ours in seen

    seen.clear()
    elsewhere = Address(address.url, "test", env={"MLFLOW_TRACKING_URI": "x"}, login=address.login)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    outcome(Details(), elsewhere)
    assert {*seen} == {None}  # asked, and not told

    seen.clear()
    (folder / "credentials.json").unlink()
    outcome(Details(), find_address())
    assert {*seen} == {None}  # asked, and not told


def test_a_run_to_go_on_with_is_missed_only_where_the_store_says_so(store):
    absent, nobody = "0" * 32, Address("http://127.0.0.1:1", "test")
    with pytest.raises(CellrayError, match=f"no run '{absent}' at sqlite:///.*; see the runs with"):
        run_name(absent, tracking_uri(), nobody, must=True)
    assert run_name(absent, tracking_uri(), nobody, must=False) is None
    assert run_name(absent, "http://127.0.0.1:9", nobody, must=True) is None
