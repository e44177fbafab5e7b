"""Building the application: settings, tokens, and which version is served."""

import hashlib
import socket

import cloudpickle
import pytest

from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe
from cellray.learn.learner import Learner
from cellray.serving.app import Embedding, Settings, build, token_digest
from cellray.serving.model import Served
from cellray.track import models, runs
from cellray.track.promotion import promote

TOKEN = "serve-2f9a51c0d7e8b364"


def register():
    learner = Learner.of(Recipe(), [f"GENE{i}" for i in range(40)])
    run = runs.start_run(experiment="cellray", run_name="training", params={}, tags={})
    return models.register(learner, run_id=run, name="cells", facts={}, metrics={})


@pytest.fixture
def registered(store):
    register()
    promote("cells", source="1")
    return store


def arguments(application):
    """Give what Serve passes to replicas."""
    return application._bound_deployment.init_args


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.7", "localhost", "::1"])
def test_loopback_needs_no_token(host, monkeypatch):
    monkeypatch.delenv("CELLRAY_SERVE_TOKEN", raising=False)
    assert token_digest(host) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "serve.example.org"])
def test_other_hosts_do(host, monkeypatch):
    monkeypatch.delenv("CELLRAY_SERVE_TOKEN", raising=False)
    with pytest.raises(CellrayError, match="set CELLRAY_SERVE_TOKEN"):
        token_digest(host)
    monkeypatch.setenv("CELLRAY_SERVE_TOKEN", TOKEN[:15])
    with pytest.raises(CellrayError, match="shorter than 16 characters") as caught:
        token_digest(host)
    assert TOKEN[:15] not in str(caught.value)
    monkeypatch.setenv("CELLRAY_SERVE_TOKEN", TOKEN)
    assert token_digest(host) == hashlib.sha256(TOKEN.encode()).hexdigest()


def test_replicas_get_a_version_and_no_secret(registered, monkeypatch):
    monkeypatch.setenv("CELLRAY_SERVE_TOKEN", TOKEN)
    application = build({"model": "models:/cells@champion"})
    model, settings, digest, *_ = arguments(application)
    assert model == "models:/cells/1"  # wherever the alias points when a replica starts later
    assert settings == Settings(model="models:/cells@champion")
    assert digest == hashlib.sha256(TOKEN.encode()).hexdigest()
    assert TOKEN.encode() not in cloudpickle.dumps(application)
    followed = build({"model": "models:/cells@champion", "follow": True})
    assert arguments(followed)[0] == "models:/cells@champion"


def test_without_a_host_a_token_is_asked_for(registered, monkeypatch):
    monkeypatch.delenv("CELLRAY_SERVE_TOKEN", raising=False)
    with pytest.raises(CellrayError, match="open to other machines"):
        build({"model": "models:/cells/1"})
    assert arguments(build({"model": "models:/cells/1", "host": "127.0.0.1"}))[2] is None


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"modle": "models:/cells/1"}, "model: Field required"),
        ({"model": "models:/cells/1", "replica": 2}, "replica: Extra inputs"),
        ({"model": "models:/cells/1", "replicas": 0}, "replicas: Input should be greater"),
        ({"model": "models:/cells@chalenger", "host": "127.0.0.1"}, "no alias 'chalenger'"),
    ],
)
def test_arguments_that_cannot_be_used_are_named(registered, args, said):
    with pytest.raises(CellrayError, match=said):
        build(args)


def test_a_look_that_meets_a_bug_is_not_the_last(registered, monkeypatch, caplog):
    promote("cells", source="1", to="next")
    replica = Embedding.__new__(Embedding)  # its own constructor asks Serve for a name
    replica._model = "models:/cells@next"
    replica._settings = Settings(model=replica._model, follow=True)
    replica._served = served = Served.of(replica._model)
    with monkeypatch.context() as patch:
        patch.setattr(Served, "drift", lambda self: 1 / 0)
        replica._look_once()
    assert "ZeroDivisionError" in caplog.text
    promote("cells", source=str(register()), to="next")
    replica._look_once()
    assert (served.resolved.version, replica._served.resolved.version) == (1, 2)


def test_a_dry_run_says_what_would_be_served_and_where(registered, dry, monkeypatch):
    monkeypatch.delenv("CELLRAY_SERVE_TOKEN", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = ["serve", "models:/cells@champion", "--replicas", "2", "--port", port]
        assert "is taken" in dry(registered, *words, status=2)["error"]
    planned = dry(registered, *words)
    assert (planned["model"], planned["replicas"]) == ("models:/cells/1", 2)
    assert planned["url"] == f"http://127.0.0.1:{port}"
    assert "CELLRAY_SERVE_TOKEN" in dry(registered, *words, "--host", "0.0.0.0", status=2)["mend"]
    assert "no version" in dry(registered, "serve", "models:/cells/9", status=2)["error"]
