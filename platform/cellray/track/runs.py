"""MLflow runs: starting, logging to and ending them, by id and from any process."""

import getpass
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

import cellray
from cellray.core.errors import CellrayError
from cellray.core.logs import submission_id
from cellray.core.versions import git_commit
from cellray.track.store import client, experiment_id, store_errors
from cellray.track.uri import run_page, tracking_uri

PARAMS_PER_CALL = 100  # MLflow's limits
METRICS_PER_CALL = 1000
PARAM_LENGTH = 6000
NAME_LENGTH = 250
JOB = "ray_submission_id"
"""Tag of a run: the Ray job that it began in, or goes on in."""


@store_errors()
def start_run(
    *, experiment: str, run_name: str, params: Mapping[str, str], tags: Mapping[str, str]
) -> str:
    """Start a run and give its id.

    Parameters
    ----------
    experiment
        Name of the experiment, made when it is not there.
    run_name
        The run's name.
    params
        Parameters as text; text longer than MLflow stores is cut and ends in an ellipsis.
    tags
        Tags beside those of `run_tags`.

    Raises
    ------
    CellrayError
        The tracking store does not answer or refuses.
    """
    api = client()
    run = api.create_run(experiment_id(experiment), tags={**run_tags(), **tags}, run_name=run_name)
    run_id: str = run.info.run_id
    entries = [Param(key[:NAME_LENGTH], _cut(value)) for key, value in params.items()]
    for start in range(0, len(entries), PARAMS_PER_CALL):
        api.log_batch(run_id, params=entries[start : start + PARAMS_PER_CALL])
    return run_id


@store_errors()
def log_document(run_id: str, name: str, document: Mapping[str, Any]) -> None:
    """Store a mapping as a JSON artifact of the run."""
    client().log_text(run_id, json.dumps(document, indent=2), name)


@store_errors()
def read_document(run_id: str, name: str) -> dict[str, Any] | None:
    """Read what `log_document` has stored; None if there is none of that name."""
    if not any(found.path == name for found in client().list_artifacts(run_id)):
        return None
    with tempfile.TemporaryDirectory(prefix="cellray-") as folder:
        text = Path(client().download_artifacts(run_id, name, folder)).read_text()
    found_there: dict[str, Any] = json.loads(text)
    return found_there


@store_errors()
def log_files(run_id: str, files: Mapping[str, bytes]) -> None:
    """Store files as artifacts of the run, by name."""
    with tempfile.TemporaryDirectory(prefix="cellray-") as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        client().log_artifacts(run_id, folder)


def artifact_page(run_id: str, name: str) -> str | None:
    """Give the page of an artifact in MLflow; None where the store is no server, or is away."""
    uri = tracking_uri()
    with suppress(CellrayError, MlflowException):
        page = run_page(uri, client(uri).get_run(run_id).info.experiment_id, run_id)
        return None if page is None else f"{page}/artifacts/{quote(name)}"
    return None


@store_errors()
def log_metrics(run_id: str, metrics: Mapping[str, float], *, step: int) -> None:
    """Log metrics of one step."""
    now = time.time_ns() // 1_000_000
    client().log_batch(run_id, metrics=[Metric(k, v, now, step) for k, v in metrics.items()])


@store_errors()
def tag_run(run_id: str, name: str, value: str) -> None:
    """Set a tag of the run."""
    client().set_tag(run_id, name, value)


@store_errors()
def finish_run(run_id: str, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
    """End a run."""
    client().set_terminated(run_id, status=status)


@contextmanager
def run(
    *, experiment: str, run_name: str, params: Mapping[str, str], tags: Mapping[str, str]
) -> Iterator[str]:
    """Start a run, give its id, and end it as the block ends.

    An exception ends it as FAILED; an interrupt or an exit as KILLED.
    """
    run_id = start_run(experiment=experiment, run_name=run_name, params=params, tags=tags)
    with _ending(run_id):
        yield run_id


@contextmanager
def reopened(run_id: str, *, tags: Mapping[str, str]) -> Iterator[None]:
    """Let a run that ended go on, with more tags and the Ray job it goes on in; end it as `run`."""
    with store_errors():
        client().update_run(run_id, status="RUNNING")
    job = submission_id()
    for name, value in ({**tags, JOB: job} if job else tags).items():
        tag_run(run_id, name, value)
    with _ending(run_id):
        yield


@contextmanager
def _ending(run_id: str) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        try:
            finish_run(run_id, "FAILED" if isinstance(error, Exception) else "KILLED")
        except (CellrayError, MlflowException) as second:
            # What ended the run matters more than that the store is gone as well.
            error.add_note(f"the MLflow run {run_id} could not be ended: {second}")
        raise
    finish_run(run_id, "FINISHED")


def run_tags() -> dict[str, str]:
    """Give the tags of every run: user, code version, and the Ray job that started it."""
    commit = git_commit()
    tags = {
        "cellray_version": cellray.__version__,
        "mlflow.source.name": "cellray",
        "mlflow.user": _user(),
        "git_commit": commit,
        "mlflow.source.git.commit": commit,
        JOB: submission_id(),
    }
    return {name: value for name, value in tags.items() if value}


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):  # a container's nameless user
        return None


def _cut(text: str) -> str:
    return text if len(text) <= PARAM_LENGTH else text[: PARAM_LENGTH - 1] + "…"
