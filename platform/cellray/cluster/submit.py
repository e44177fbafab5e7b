"""One way to submit: a cellray command becomes a job of a Ray cluster."""

import re
import secrets
import shlex
import time
from collections.abc import Mapping, Sequence
from typing import Any

import cellray
from cellray.cluster.jobs import Jobs, Request
from cellray.cluster.settings import STOP_SECONDS
from cellray.cluster.ship import Shipment
from cellray.cluster.users import this_user
from cellray.core.versions import WANTED, git_commit

NAME_LENGTH = 40


def make_request(
    verb: str,
    words: Sequence[str],
    shipment: Shipment,
    *,
    name: str,
    env: Mapping[str, str],
    resources: Mapping[str, Any] | None = None,
    pip: Sequence[str] = (),
) -> Request:
    """Make a job of ``cellray VERB WORDS``.

    Parameters
    ----------
    verb
        One word that says what it does, for its id.
    words
        All words after ``cellray``.
    shipment
        What goes along.
    name
        What it is about, for its id.
    env
        More variables, MLflow's address among them.
    resources
        From `cellray.cluster.settings.resources`.
    pip
        Packages that the cluster's nodes install for it.
    """
    made = job_id(verb, name)
    told = {
        # Ray's workers have it too, so that runs which begin there carry it.
        "RAY_JOB_SUBMISSION_ID": made,
        "RAY_JOB_STOP_WAIT_TIME_S": STOP_SECONDS,
        **(
            {"CELLRAY_GIT_COMMIT": git_commit() or ""}
            if shipment.code
            else {WANTED: cellray.__version__}  # these words were checked by this version
        ),
        **env,
    }
    runtime_env = {**shipment.runtime_env(), "env_vars": told}
    if pip:
        runtime_env["pip"] = list(pip)
    return Request(
        made,
        shlex.join(["python", "-m", "cellray", *words]),
        runtime_env,
        {"verb": verb, "name": name, "user": this_user(), "cellray": cellray.__version__},
        resources or {},
    )


def job_id(verb: str, name: str) -> str:
    """Make a job's id: what it does, what with, when, and letters that make it unique."""
    about = re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-")[:NAME_LENGTH].strip("-")
    when = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    return "-".join(filter(None, [verb, about, when, secrets.token_hex(4)]))


def watch_places(jobs: Jobs, job: str, tracking: str | None) -> dict[str, str]:
    """Say where a job can be watched: in the dashboard, by its log, and in MLflow."""
    if tracking is None:
        mlflow = "the cluster's own"
    else:
        mlflow = tracking if tracking.startswith("http") else "cellray ui"
    return {
        "dashboard": f"{jobs.url}/#/jobs/{job}",
        "logs": f"cellray jobs logs {job} --follow",
        "mlflow": mlflow,
    }
