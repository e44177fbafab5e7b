import os
import re
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from mlflow.exceptions import MlflowException

from cellray.core.errors import CellrayError
from cellray.track.store import client, experiment_id, store_errors
from cellray.track.uri import run_page, tracking_uri


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def web_server():
    """Start a web server that answers everything with one status; give a starter."""
    servers = []

    def start(status):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.end_headers()

            do_POST = do_GET  # noqa: N815 - http.server's name

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_default_is_an_absolute_file_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert tracking_uri() == f"sqlite:///{tmp_path}/.cellray/mlflow.db"


@pytest.mark.parametrize("uri", ["http://127.0.0.1:5000", "postgresql://u:p@db/mlflow"])
def test_environment_names_the_store(uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert tracking_uri() == uri


def test_relative_sqlite_path_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs/m.db")
    assert tracking_uri() == f"sqlite:///{tmp_path}/runs/m.db"


def test_experiment_is_made_once(store):
    first = experiment_id("pbmc atlas")
    assert experiment_id("pbmc atlas") == first
    assert experiment_id("another") != first
    assert client().get_experiment(first).name == "pbmc atlas"


def test_artifacts_go_beside_the_database(store):
    location = client().get_experiment(experiment_id("cellray")).artifact_location
    assert location == (store / ".cellray" / "artifacts").as_uri()


def test_artifacts_go_beside_a_database_that_the_environment_names(made_store, store, monkeypatch):
    elsewhere = store / "a b"  # a space must survive the way into a URI and back
    (store / ".cellray").rename(elsewhere)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{elsewhere}/mlflow.db")
    api = client()
    run = api.create_run(experiment_id("cellray"))
    api.log_text(run.info.run_id, "text", "note.txt")
    assert [f.name for f in (elsewhere / "artifacts").rglob("*.txt")] == ["note.txt"]
    assert not (store / "mlruns").exists()


def test_deleted_experiment_is_refused(store):
    client().delete_experiment(experiment_id("old"))
    with pytest.raises(CellrayError, match="experiment 'old' is deleted"):
        experiment_id("old")


def test_client_keeps_mlflow_from_reporting_home(store, monkeypatch):
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    client()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    client()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "false"


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_server_that_is_not_there_is_named_within_seconds(scheme, free_port, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{scheme}://ann:hush@127.0.0.1:{free_port}/db")
    start = time.monotonic()
    with pytest.raises(CellrayError, match=f"no MLflow answers at .*127.0.0.1:{free_port}") as e:
        client()
    assert time.monotonic() - start < 10
    assert "hush" not in str(e.value)


def test_server_that_hangs_is_named_within_seconds(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        start = time.monotonic()
        with pytest.raises(CellrayError, match=f"no MLflow answers at {uri}"):
            client()
        assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("status", "words"), [(404, "does not answer"), (401, "refuses these credentials")]
)
@pytest.mark.parametrize("user", ["", "ann:hush@"])
def test_server_that_is_not_ours_is_named(status, words, user, web_server, monkeypatch):
    uri = web_server(status)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.replace("//", f"//{user}"))
    shown = uri.replace("//", "//***@") if user else uri
    with pytest.raises(CellrayError, match=re.escape(f"MLflow at {shown} {words}")) as error:
        client()
    assert "hush" not in str(error.value)
    assert "ann" not in str(error.value)


def test_port_that_is_no_number_is_named(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:mlflow")
    with pytest.raises(CellrayError, match=r"no MLflow answers at http://127\.0\.0\.1:mlflow"):
        client()


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql//bob:s3cret@db",
        "gopher://bob:s3cret@db/x",
        "http://bob:s3cret/x@127.0.0.1:1",
        "postgresql://bob:s3cret/x@127.0.0.1:1/db",
    ],
)
def test_a_uri_that_cannot_be_used_is_named_without_its_password(uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(CellrayError, match=r"//\*\*\*@") as error:
        client()
    assert "s3cret" not in str(error.value)
    assert "bob" not in str(error.value)


@pytest.mark.parametrize("padding", [0, 140])  # the second has the line cut within the password
def test_what_mlflow_says_is_shown_without_the_password(padding, store):
    uri = f"http://bob:{'s3cret' * 10}@host"
    with pytest.raises(CellrayError, match="does not answer") as error, store_errors():
        raise MlflowException(f"API request to {'x' * padding} {uri}/api failed")
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize("uri", ["file:///tmp/mlruns", "./mlruns", "gopher://x"])
def test_store_of_another_kind_is_refused(uri, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(CellrayError, match="cannot be used"):
        client()
    assert not list(tmp_path.iterdir())


def test_store_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/file/mlflow.db")
    with pytest.raises(CellrayError, match="cannot make the tracking store"):
        client()


def test_file_that_is_no_database_is_refused(tmp_path, monkeypatch):
    (tmp_path / "mlflow.db").write_text("these are notes, and no tables " * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(CellrayError, match=r"mlflow\.db"):
        client()


def test_database_that_fails_is_named(store):
    client()
    with sqlite3.connect(store / ".cellray" / "mlflow.db") as database:
        database.execute("DROP TABLE experiments")
    with pytest.raises(CellrayError, match=r"the database .*mlflow\.db fails"):
        experiment_id("cellray")


MAKE = """
from cellray.track.store import experiment_id
print(experiment_id("cellray"))
"""


def test_processes_that_start_at_once_share_one_quiet_store(tmp_path):
    (tmp_path / ".cellray").mkdir()
    (tmp_path / ".cellray" / "mlflow.draft").write_text("what a killed process left")
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", MAKE],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    ended = [process.communicate(timeout=120) for process in started]
    assert [err for _, err in ended] == [""] * 2
    assert len({out for out, _ in ended}) == 1
    assert {path.name for path in (tmp_path / ".cellray").iterdir()} == {"mlflow.db", "mlflow.lock"}


def test_a_run_has_a_page_where_the_store_is_a_server():
    page = run_page("https://ann:pw@mlflow:5000/x/", "3", "4f1c")
    assert page == "https://mlflow:5000/x/#/experiments/3/runs/4f1c"
    assert run_page("sqlite:///mlflow.db", "3", "4f1c") is None
