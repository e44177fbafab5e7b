"""Watching the registry: what is submitted, judged, tagged, promoted, and not repeated."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from cellray.cli import main
from cellray.cluster.address import Address, ClusterError, NoClusterError
from cellray.core.errors import CellrayError
from cellray.evaluation import submit, watch
from cellray.evaluation.submit import Done, in_process, runner
from cellray.evaluation.suite import Suite
from cellray.track.catalogue import list_models, show_model
from cellray.track.promotion import promote
from cellray.track.store import StoreError, client

KNN = "model/knn/macro_f1"
SUITE = Suite.of({"tasks": {"annotation": {}}, "gates": {f"annotation/{KNN}": {"min": 0.5}}})


@pytest.fixture
def run(log, monkeypatch):
    """Evaluate by a function of the test's: scores by URI, or how it fails; give the calls."""

    class Run:
        scores, calls = {"models:/cells/1": 0.6, "models:/cells/2": 0.8}, []

        def __call__(self, words, suite):
            self.calls.append(words)
            found = self.scores[words[0]]
            if isinstance(found, Exception):
                raise found
            if isinstance(found, Done):
                return found
            log(words[0], "annotation", {KNN: found})
            return Done(0, ())

    fake = Run()
    fake.scores, fake.calls = dict(Run.scores), []
    monkeypatch.setattr(watch, "runner", lambda: fake)
    return fake


def look(atlas, suite=SUITE, **settings):
    settings = {"once": True, "given": {"label": "cell_type"}, "file": "suite.yaml"} | settings
    return list(watch.watch("cells", atlas=getattr(atlas, "url", atlas), suite=suite, **settings))


def champion():
    return list_models()[0]["aliases"]["champion"]


def tags(version):
    (found,) = [one for one in show_model("cells")["versions"] if one["version"] == version]
    return [value for name, value in found["tags"].items() if name.startswith(watch.TAG)]


def test_versions_are_evaluated_oldest_first_and_never_again(run, atlas):
    events = look(atlas)
    assert [(event.uri, event.what) for event in events] == [
        ("models:/cells/1", "evaluating"),
        ("models:/cells/1", "passed"),
        ("models:/cells/2", "evaluating"),
        ("models:/cells/2", "passed"),
    ]
    assert run.calls[0] == [
        "models:/cells/1", "--atlas", atlas.url, "--label", "cell_type"
    ]  # fmt: skip
    assert "1 of 1 gates passed" in events[1].line
    assert events[1].facts["gates"][0]["value"] == 0.6
    assert tags(1) == [f"passed by suite.yaml on {atlas.url}"]
    assert look(atlas) == []
    assert len(run.calls) == 2
    assert champion() == 1


def test_what_was_evaluated_before_is_judged_and_not_submitted(run, log, atlas):
    log("models:/cells/1", "annotation", {KNN: 0.4})
    log("models:/cells/2", "annotation", {KNN: 0.9}, seed=1)
    events = look(atlas)
    assert [call[0] for call in run.calls] == ["models:/cells/2"]
    assert events[0].what == "failed"
    assert events[0].line == (
        f"models:/cells/1: evaluated before; 0 of 1 gates passed; failed: annotation/{KNN} is "
        "0.4000, at least 0.5 wanted"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"suite": Suite.of({"tasks": {"annotation": {"seed": 3}}})},
        {"given": {"label": "donor"}},
        {"max_cells": 100},
    ],
    ids=["suite", "given", "max_cells"],
)
def test_other_questions_are_asked_anew(run, atlas, change):
    look(atlas)
    run.scores = dict.fromkeys(run.scores, Done(1, ()))
    assert {event.what for event in look(atlas, **change)} == {"evaluating", "error"}


def test_a_failure_is_tried_once_more_said_and_then_left(run, atlas):
    run.scores["models:/cells/1"] = Done(2, ("reading", "error: no class is left"))
    events = look(atlas)
    assert [event.what for event in events] == ["evaluating", "error", "evaluating", "passed"]
    assert events[1].line == (
        "models:/cells/1: the evaluation ended with status 2, and is not tried again\n"
        "  reading\n  error: no class is left"
    )
    assert [call[0] for call in run.calls].count("models:/cells/1") == 2
    assert tags(1) == [f"error by suite.yaml on {atlas.url}"]
    assert look(atlas) == []


def test_an_evaluation_that_leaves_nothing_in_the_store_is_an_error(run, atlas):
    run.scores["models:/cells/1"] = Done(0, ())
    assert "left no evaluation in MLflow" in look(atlas)[1].line


def test_a_version_that_passes_is_promoted(run, atlas):
    events = look(atlas, promoting=True)
    assert events[-1].line == "models:/cells/2 is @champion (was 1)"
    assert champion() == 2


@pytest.mark.parametrize("newest", [0.4, 0.3])
def test_a_version_that_fails_a_gate_is_not_promoted(run, atlas, newest):
    run.scores["models:/cells/2"] = newest
    assert look(atlas, promoting=True)[-1].what == "failed"
    assert champion() == 1


def test_an_older_version_does_not_replace_a_newer_champion(run, atlas):
    promote("cells", source="2")
    assert "promoted" not in {event.what for event in look(atlas, promoting=True)}
    assert champion() == 2


def test_a_gate_over_the_champion_is_that_of_today(run, atlas):
    gates = {f"annotation/{KNN}": {"over": "champion", "by": 0.3}}
    suite = Suite.of({"tasks": {"annotation": {}}, "gates": gates})
    assert [event.what for event in look(atlas, suite)][1::2] == ["passed", "failed"]


@pytest.mark.parametrize("kind", [StoreError, ClusterError])
def test_a_store_or_cluster_that_is_away_is_asked_again(run, atlas, monkeypatch, kind):
    error = kind("it does not answer", "wait")
    run.scores["models:/cells/1"] = error
    with pytest.raises(kind):
        look(atlas)
    assert tags(1) == []
    told = []

    def sleep(seconds):
        assert seconds == 7
        if len(told) > 2:
            raise KeyboardInterrupt
        run.scores["models:/cells/1"] = 0.6 if len(told) == 2 else error

    monkeypatch.setattr(watch.time, "sleep", sleep)
    settings = {"given": {"label": "cell_type"}, "file": "suite.yaml", "every": 7}
    events = watch.watch("cells", atlas=atlas.url, suite=SUITE, tell=told.append, **settings)
    with pytest.raises(KeyboardInterrupt):
        told.extend(event.uri for event in events if event.what == "passed")
    assert told[:2] == ["it does not answer; trying again in 7 s"] * 2
    assert told[2:] == ["models:/cells/1", "models:/cells/2"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"given": {}}, "needs a label"),
        ({"given": {"label": "cell_typ"}}, "did you mean 'cell_type'"),
        ({"suite": Suite.of({"tasks": {"annotation": {}}}), "promoting": True}, "needs gates"),
    ],
    ids=str,
)
def test_bad_input_is_refused_before_anything_is_submitted(run, atlas, settings, said):
    with pytest.raises(CellrayError, match=said):
        look(atlas, **settings)
    assert run.calls == []


def test_the_command_says_every_event_and_sums_up(run, atlas, capfd):
    words = ["watch", "cells", "--suite", "suite.yaml", "--atlas", atlas.url, "--once"]
    words += ["--label", "cell_type", "--json"]
    Path("suite.yaml").write_text(yaml.safe_dump(SUITE.model_dump(exclude_unset=True)))
    assert main(words) == 0
    out, err = capfd.readouterr()
    document = json.loads(out)
    assert [event["what"] for event in document["events"]] == ["evaluating", "passed"] * 2
    assert [event["line"] for event in document["events"]] == err.splitlines()
    assert main(words[:-1]) == 0
    assert capfd.readouterr().out == "cells: no new version\n"
    words.remove("--once")
    assert main(words) == 2
    assert "add --once" in capfd.readouterr().err
    assert main(["watch", "cels", *words[2:-1], "--once"]) == 2
    assert "did you mean 'cells'" in capfd.readouterr().err


def test_a_dry_run_names_the_versions_that_would_be_evaluated(registry, log, atlas, dry, capfd):
    Path("suite.yaml").write_text(yaml.safe_dump(SUITE.model_dump(exclude_unset=True)))
    words = ["watch", "cells", "--suite", "suite.yaml", "--atlas", atlas.url, "--promote"]
    log("models:/cells/1", "annotation", {KNN: 0.6})
    document = dry(registry, *words, "--label", "cell_type")
    assert document["evaluates"] == ["models:/cells/2"]
    assert document["evaluated_before"] == ["models:/cells/1"]
    assert (document["runs"], document["promotes"]) == ("processes on this machine", True)
    assert [tags(1), tags(2), champion()] == [[], [], 1]
    assert "did you mean" in dry(registry, *words, "--label", "cell_typ", status=2)["mend"]


def test_ctrl_c_ends_it_with_a_line(run, atlas, monkeypatch, capfd):
    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(watch.time, "sleep", interrupt)
    words = ["watch", "cells", "--suite", "standard", "--atlas", atlas.url, "--label", "cell_type"]
    run.scores = dict.fromkeys(run.scores, Done(1, ()))
    assert main(words) == 130
    assert capfd.readouterr().err.splitlines()[-1] == "interrupted"


def test_an_atlas_is_named_by_its_full_path(run, atlas):
    """The job has another working folder."""
    shutil.copytree(atlas.url, "cells.zarr")
    (first, _, _, _) = look("cells.zarr")
    assert run.calls[0][2] == str(Path.cwd() / "cells.zarr")
    assert run.calls[0][2] in first.line


def test_what_a_suite_names_beside_the_job_is_named_by_its_full_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entry = {
        "task": "mapping",
        "reference": "ref.zarr",
        "ontology": "../cl.obo",
        "orthologs": "o.tsv",
    }
    placed = submit._placed(Suite.of({"tasks": {"mapping": entry}})).tasks["mapping"]
    assert placed.reference == str(tmp_path / "ref.zarr")
    assert Path(placed.ontology).resolve() == tmp_path.parent / "cl.obo"
    assert placed.orthologs == "o.tsv"  # which is shipped


@pytest.mark.parametrize("address", ["", "local"])
def test_without_a_cluster_it_runs_here(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert runner() is in_process


def test_a_cluster_that_does_not_answer_is_named(registry, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")  # where drivers join, and not where jobs go
    with pytest.raises(NoClusterError):
        runner()
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")  # as 'cluster env' sets it
    with pytest.raises(ClusterError, match=r"no Ray takes jobs at http://127\.0\.0\.1:1"):
        runner()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:secret@mlflow:5000")
    with pytest.raises(CellrayError, match="holds a password") as error:
        runner()
    assert "secret" not in str(error.value)


SERVER = "http://mlflow:5000"


@pytest.mark.parametrize(
    ("mine", "clusters", "here", "said"),
    [
        (None, None, True, None),
        (SERVER, None, False, None),
        (SERVER, "http://127.0.0.1:5000", True, None),
        (None, None, False, "jobs would log to the MLflow that the cluster's nodes name"),
        ("sqlite:////tmp/m.db", None, False, "on this machine and not on the cluster's"),
        (None, SERVER, True, f"jobs would log to {SERVER}, and the model is looked up in sqlite:"),
    ],
)
def test_jobs_log_to_the_mlflow_in_which_the_model_is_looked_up(
    mine, clusters, here, said, registry, monkeypatch
):
    if mine:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", mine)
    where = Address("http://head:8265", "test", env={submit.MLFLOW: clusters} if clusters else {})
    if said is None:
        assert submit._told(where, here=here)[submit.MLFLOW] == submit.tracking_uri()
        return
    with pytest.raises(CellrayError, match=said) as error:
        submit._told(where, here=here)
    assert error.value.mend.startswith("set MLFLOW_TRACKING_URI")


def test_a_suite_is_written_as_it_was_read():
    assert Suite.of(yaml.safe_load(submit._text(SUITE))) == SUITE


def test_a_process_that_is_refused_says_why(registry, atlas):
    done = in_process(["models:/cells/9", "--atlas", atlas.url, "--label", "cell_type"], SUITE)
    assert done.status == 2
    assert "model 'cells' has no version '9'" in done.tail[-1]


def test_a_process_ends_with_the_watch(registry, monkeypatch):
    started = []
    popen = subprocess.Popen

    def sleeper(command, **settings):
        started.append(popen([sys.executable, "-c", "import time; time.sleep(60)"], **settings))
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        return started[0]

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(submit.subprocess, "Popen", sleeper)
    before = signal.signal(signal.SIGALRM, interrupt)
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            in_process(["models:/cells/1"], SUITE)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert started[0].returncode == -signal.SIGTERM
    assert time.monotonic() - began < 30


def test_only_the_last_lines_are_kept_and_no_password():
    said = "\n".join([*map(str, range(20)), "", "at http://ann:secret@host/x  ", ""])
    tail = submit._tail(said)
    assert len(tail) == submit.TAIL
    assert tail[-1] == "at http://***@host/x"
    assert tail[-2] == "19"


def test_a_registry_without_tags_of_ours_is_left_alone(run, atlas):
    look(atlas)
    assert "cellray.watch" not in "".join(client().get_model_version("mouse", "1").tags)
