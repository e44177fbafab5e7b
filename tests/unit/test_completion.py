"""What the shell completes, asked as shells ask; and typed into a real bash."""

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tests.listening import listening

from cellray.completion import names_in, recipe_changes
from cellray.core.recipe import Recipe, dotted_keys
from cellray.nets.table import ENCODERS
from cellray.objectives.table import OBJECTIVES
from cellray.tasks.table import TASKS
from cellray.track.store import tracking_uri
from cellray.views.table import VIEWS

CELLRAY = Path(sys.executable).with_name("cellray")


@pytest.fixture
def plates(store):
    """A registry with two versions of a model, the first one the champion."""
    api = MlflowClient(tracking_uri=tracking_uri())
    api.create_registered_model("plates")
    for _ in range(2):
        api.create_model_version("plates", source="nowhere")
    api.set_registered_model_alias("plates", "champion", "1")
    return store


def completed(*words, shell="complete_bash", folder, **env):
    """Ask for the completions of the last word, as bash asks."""
    asked = {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    asked |= {"_CELLRAY_COMPLETE": shell, "_TYPER_COMPLETE_ARGS": " ".join(words)}
    done = subprocess.run(
        [CELLRAY],
        cwd=folder,
        env={**os.environ, **asked, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stderr == ""
    return [line for line in done.stdout.splitlines() if line]


@contextmanager
def dashboard(seconds=0.0):
    """What a cluster's dashboard says of its jobs, sooner or later, and the token it asks for."""
    names = ("train-a", "train-b", None)
    jobs = [
        {"submission_id": name, "status": "RUNNING", "start_time": at}
        for at, name in enumerate(names)
    ]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            time.sleep(seconds)
            good = self.headers["Authorization"] == "Bearer t0ken"
            self.send_response(200 if good and self.path == "/api/jobs/" else 401)
            self.end_headers()
            with suppress(OSError):  # who has asked is gone
                self.wfile.write(json.dumps(jobs).encode())

        def log_message(self, *_):
            """Say nothing."""

    with listening(Handler) as url:
        yield url


def test_jobs_of_a_cluster_are_completed(tmp_path):
    jobs = ("cellray", "jobs")
    (tmp_path / "token").write_text("t0ken\n")
    let_in = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    with dashboard() as url:
        env = {"RAY_API_SERVER_ADDRESS": url, "RAY_AUTH_MODE": ""}
        assert completed(*jobs, "logs", "", folder=tmp_path, **env) == []
        env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t0ken"}
        everything = ["last", "train-b", "train-a"]
        assert completed(*jobs, "logs", "", folder=tmp_path, **env) == everything
        elsewhere = let_in | {"RAY_API_SERVER_ADDRESS": "127.0.0.1:1", "RAY_AUTH_TOKEN": ""}
        named = [*jobs, "stop", "--address", *re.split("(:)", url), "tr"]
        assert completed(*named, folder=tmp_path, **elsewhere) == ["train-b", "train-a"]
        assert completed(*jobs, "status", "", folder=tmp_path, **elsewhere) == []
    with dashboard(seconds=30) as url:
        began = time.monotonic()
        env |= {"RAY_API_SERVER_ADDRESS": url}
        assert completed(*jobs, "delete", "", folder=tmp_path, **env) == []
        assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["pretr"], ["pretrain"]),
        (["pretrain", "--strat"], ["--strategy"]),
        (["evaluate", "mo"], ["models:/plates@champion", "models:/plates/2", "models:/plates/1"]),
        # bash takes a word apart at : and @, and puts what comes back behind them
        (["evaluate", "models", ":", "/pl"], ["/plates@champion", "/plates/2", "/plates/1"]),
        (["embed", "models", ":", "/plates", "@", "ch"], ["champion"]),
        (["evaluate", "models:/plates/1", "--task", "int"], ["integration"]),
        (["models", "show", ""], ["plates"]),
        (["models", "promote", "plates", "--from", ""], ["champion", "2", "1"]),
        (["models", "promote", "plates", "--to", "cha"], ["champion", "challenger"]),
        (["pretrain", "--set", "train.epo"], ["train.epochs=", "train.epochs=30"]),
        (["pretrain", "--set", "train.strategy", "=", "f"], ["fsdp"]),
        (["pretrain", "--set", "objective.name", "=", "mo"], ["moco"]),
        (["inspect", "a", "--set", "train.compile", "="], ["true", "false"]),
    ],
    ids=lambda value: " ".join(value),
)  # fmt: skip
def test_words_are_completed(words, found, plates):
    assert completed("cellray", *words, folder=plates) == found


def test_other_shells_get_words_and_what_they_mean(plates):
    lines = completed("cellray", "models", "show", "p", shell="complete_fish", folder=plates,
                      _TYPER_COMPLETE_FISH_ACTION="get-args")  # fmt: skip
    assert lines == ["plates\t@champion"]


def test_without_a_store_nothing_is_offered_and_nothing_made(tmp_path):
    env = {"MLFLOW_TRACKING_URI": ""}
    assert completed("cellray", "models", "show", "", folder=tmp_path, **env) == []
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_away_offers_nothing(tmp_path):
    env = {"MLFLOW_TRACKING_URI": "http://anna:secret@127.0.0.1:1"}
    assert completed("cellray", "models", "show", "", folder=tmp_path, **env) == []


def test_names_read_off_the_source_are_those_of_the_tables():
    for package, name, table in (
        ("objectives", "OBJECTIVES", OBJECTIVES),
        ("nets", "ENCODERS", ENCODERS),
        ("views", "VIEWS", VIEWS),
        ("tasks", "TASKS", TASKS),
    ):
        assert names_in(package, name) == list(table)


def test_every_key_of_a_recipe_is_offered_and_its_values_can_be_set():
    keys = {word.rstrip("=") for word, _ in recipe_changes("")}
    assert set(dotted_keys(Recipe)) <= keys
    for key in keys - {"views.0.name", "encoder.name", "objective.name"}:
        for change, _ in recipe_changes(f"{key}="):
            if change in {"train.strategy=fsdp", "train.compression=bfloat16"}:
                continue
            needed = {"train.best=knn_macro_f1": ["probe.label=a"]}.get(change, [])
            needed += ["data.weights=a"] if change == "data.replacement=true" else []
            needed += ["train.strategy=fsdp"] if change == "train.cpu_offload=true" else []
            Recipe().with_([*needed, change])


def test_completing_loads_nothing_heavy_and_is_quick(plates):
    code = (
        "import sys, time; from cellray import completion as c; began = time.process_time(); "
        "c.model_uris(''); c.recipe_changes('train.'); c.task_names(''); "
        "heavy = {'torch', 'ray', 'mlflow', 'numpy'} & {*sys.modules}; "
        "print(time.process_time() - began, *heavy)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=plates, capture_output=True, text=True, check=True
    )
    seconds, *heavy = done.stdout.split()
    assert heavy == []
    assert float(seconds) < 5


def test_a_tab_in_a_real_bash_completes_a_model(plates):
    ours, theirs = pty.openpty()
    # Typer would look for a shell among this process's parents, and there need not be one.
    named = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    show = [CELLRAY, "--show-completion", "bash"]
    script = subprocess.run(show, env=named, capture_output=True, text=True, check=True).stdout
    (plates / "rc").write_text(f"{script}\nPS1='$ '\nset +o histexpand\n")
    env = {**os.environ, "PATH": f"{CELLRAY.parent}:{os.environ['PATH']}", "TERM": "dumb"}
    bash = subprocess.Popen(
        ["bash", "--noprofile", "--rcfile", "rc", "-i"],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=plates, env=env, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    try:
        assert typed(ours, "", "$ ").endswith("$ ")
        # The space behind it is the shell's: it took the word for whole.
        assert typed(ours, "cellray evaluate models:/plates@c\t", "champion ").endswith("champion ")
        shown = typed(ours, "\x15cellray pretrain --set train.strategy=f\t", "fsdp ")
        assert shown.endswith("fsdp ")
    finally:
        bash.kill()
        bash.wait()
        os.close(ours)


def typed(terminal, keys, until, seconds=60.0):
    """Type, and give what the terminal shows until it ends as it should, or for so long."""
    os.write(terminal, keys.encode())
    shown, end = "", time.monotonic() + seconds
    while not shown.endswith(until) and time.monotonic() < end:
        if select.select([terminal], [], [], 0.1)[0]:
            shown += os.read(terminal, 4096).decode()
    return shown
