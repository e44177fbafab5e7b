import json
import subprocess

import pytest

import cellray
from cellray.core.versions import git_commit
from cellray.track import runs
from cellray.track.store import client


def start(**changes):
    settings = {"experiment": "cellray", "run_name": "a run", "params": {}, "tags": {}} | changes
    return runs.run(**settings)


def test_finished_run_keeps_what_it_was_given(store):
    with start(params={"optim.lr": "0.001"}, tags={"team": "lung"}) as run_id:
        assert client().get_run(run_id).info.status == "RUNNING"
    run = client().get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "a run"
    assert run.data.params == {"optim.lr": "0.001"}
    assert run.data.tags["team"] == "lung"
    assert run.data.tags["cellray_version"] == cellray.__version__


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")],
)
def test_exception_ends_the_run_and_goes_on(store, error, status):
    ids = []

    def train():
        with start() as run_id:
            ids.append(run_id)
            raise error("the cause")

    with pytest.raises(error, match="the cause"):
        train()
    assert client().get_run(ids[0]).info.status == status


def test_more_parameters_than_one_call_takes(store):
    params = {f"part.{i}": str(i) for i in range(250)}
    with start(params=params) as run_id:
        pass
    assert client().get_run(run_id).data.params == params


def test_long_parameter_is_cut_visibly(store):
    with start(params={"genes": "x" * 10_000, "note": "y" * 6_000}) as run_id:
        pass
    params = client().get_run(run_id).data.params
    assert params["genes"] == "x" * 5_999 + "…"
    assert params["note"] == "y" * 6_000


def test_document_comes_back(store):
    document = {"steps": 12, "tail": {"0": [[1, 2]]}, "note": "µ"}
    with start() as run_id:
        runs.log_document(run_id, "plan.json", document)
    path = client().download_artifacts(run_id, "plan.json", str(store))
    with open(path, encoding="utf-8") as file:  # noqa: PTH123 - MLflow gives text
        assert json.load(file) == document


def git(folder, *words):
    who = ["-c", "user.name=t", "-c", "user.email=t@t"]
    done = subprocess.run(
        ["git", "-C", folder, *who, *words], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A folder that cellray seems to be imported from, in no working tree yet."""
    folder = tmp_path / "platform" / "cellray"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    monkeypatch.setattr(cellray, "__file__", str(folder / "__init__.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.delenv("CELLRAY_GIT_COMMIT", raising=False)
    return folder


def test_commit_of_the_working_tree(package, monkeypatch):
    git(package, "init", "-q")
    git(package, "add", "__init__.py")
    git(package, "commit", "-qm", "first")
    monkeypatch.setenv("CELLRAY_GIT_COMMIT", "another")
    head = git(package, "rev-parse", "HEAD")
    assert git_commit() == head
    (package / "__init__.py").write_text("changed = 1")
    assert git_commit() == f"{head}-dirty"


def test_commit_without_a_working_tree(package, monkeypatch):
    assert git_commit() is None
    monkeypatch.setenv("CELLRAY_GIT_COMMIT", "abc")
    assert git_commit() == "abc"
    assert runs.run_tags()["git_commit"] == "abc"


def test_commit_is_not_that_of_a_project_around_the_environment(package):
    git(package.parent, "init", "-q")
    git(package.parent, "commit", "-qm", "theirs", "--allow-empty")
    assert git_commit() is None


def test_submission_id_of_a_ray_job(monkeypatch):
    monkeypatch.delenv("RAY_JOB_SUBMISSION_ID", raising=False)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert "ray_submission_id" not in runs.run_tags()
    config = {"runtime_env": {}, "metadata": {"job_submission_id": "raysubmit_1"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(config))
    assert runs.run_tags()["ray_submission_id"] == "raysubmit_1"
    monkeypatch.setenv("RAY_JOB_SUBMISSION_ID", "raysubmit_2")
    assert runs.run_tags()["ray_submission_id"] == "raysubmit_2"


def test_a_run_that_goes_on_names_the_job_it_goes_on_in(store, monkeypatch):
    monkeypatch.setenv("RAY_JOB_SUBMISSION_ID", "first")
    with start() as run_id:
        pass
    monkeypatch.setenv("RAY_JOB_SUBMISSION_ID", "second")
    with runs.reopened(run_id, tags={"more": "x"}):
        pass
    tags = client().get_run(run_id).data.tags
    assert (tags["ray_submission_id"], tags["more"]) == ("second", "x")
