"""Running ``cellray evaluate`` elsewhere: as a job of a Ray cluster, or as a process here."""

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

import cellray
from cellray.core.errors import CellrayError
from cellray.evaluation.suite import Suite
from cellray.track.runs import git_commit
from cellray.track.store import scrub, tracking_uri

TAIL = 8
"""Lines of what a failed evaluation has said that are shown."""

LOOK_SECONDS = 2.0
END_SECONDS = 20.0
SUITE = "suite.yaml"


class ClusterError(CellrayError):
    """The cluster is away; it may be back later."""


@dataclass(frozen=True)
class Done:
    """How an evaluation has ended: its exit status, and the last lines of what it said."""

    status: int
    tail: tuple[str, ...]


Runner = Callable[[Sequence[str], Suite], Done]


def runner() -> Runner:
    """Choose where evaluations run: in the cluster that ``RAY_ADDRESS`` names, or here.

    Raises
    ------
    CellrayError
        A password in ``MLFLOW_TRACKING_URI``, which a job would show to all who see it.
    """
    if os.environ.get("RAY_ADDRESS", "local") in {"", "local"}:
        return in_process
    uri = tracking_uri()
    if scrub(uri) != uri:
        raise CellrayError(
            "MLFLOW_TRACKING_URI holds a password, which everyone who sees the cluster's jobs sees",
            "leave it out of the address, and set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD on the cluster",
        )
    return in_cluster


def in_process(words: Sequence[str], suite: Suite) -> Done:
    """Evaluate in a process of its own, and end it when this one is interrupted.

    Parameters
    ----------
    words
        Arguments of ``cellray evaluate`` beside the suite.
    suite
        The tasks and gates.
    """
    with tempfile.TemporaryDirectory(prefix="cellray-") as folder:
        file = Path(folder) / SUITE
        file.write_text(_text(suite))
        command = [sys.executable, "-m", "cellray", "evaluate", *words, "--suite", str(file)]
        # In a session of its own, so that Ctrl-C comes once: from here.
        with subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                _, said = process.communicate()
            finally:
                _end(process)
    return Done(process.returncode, _tail(said))


def in_cluster(words: Sequence[str], suite: Suite) -> Done:
    """Evaluate as a job of the Ray cluster that ``RAY_ADDRESS`` names, and wait for its end.

    The job is that of ``jobs/evaluate.py``; it ships this cellray and the suite, and is told where
    MLflow is. Files that the suite names have to be where the cluster's nodes find them.

    Parameters
    ----------
    words, suite
        As of `in_process`.

    Raises
    ------
    ClusterError
        A cluster that does not answer.
    """
    from ray.job_submission import JobSubmissionClient

    address = os.environ["RAY_ADDRESS"]
    with tempfile.TemporaryDirectory(prefix="cellray-") as folder, _reached(address):
        (Path(folder) / SUITE).write_text(_text(suite))
        jobs = JobSubmissionClient(address)
        job = jobs.submit_job(
            entrypoint=shlex.join(
                ["python", "-m", "cellray", "evaluate", *words, "--suite", SUITE]
            ),
            runtime_env=_environment(folder),
        )
    try:
        with _reached(address):
            while not (status := jobs.get_job_status(job)).is_terminal():
                time.sleep(LOOK_SECONDS)
            if status == "SUCCEEDED":
                return Done(0, ())
            found = jobs.get_job_info(job)
            return Done(found.driver_exit_code or 1, _tail(jobs.get_job_logs(job)))
    except BaseException:
        with suppress(OSError, RuntimeError):
            jobs.stop_job(job)
        raise


@contextmanager
def _reached(address: str) -> Iterator[None]:
    """Turn what Ray's client raises of a cluster that is away into a line."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"no Ray takes jobs at {address}: {str(error).splitlines()[0]}",
            "check RAY_ADDRESS and RAY_AUTH_TOKEN, or unset RAY_ADDRESS to evaluate here",
        ) from error


def _environment(folder: str) -> dict[str, Any]:
    """Give a job's runtime environment."""
    told = {"MLFLOW_TRACKING_URI": tracking_uri(), "CELLRAY_GIT_COMMIT": git_commit() or ""}
    return {
        "working_dir": folder,
        "py_modules": [str(Path(cellray.__file__).parent)],
        "env_vars": told,
    }


def _text(suite: Suite) -> str:
    return yaml.safe_dump(suite.model_dump(mode="json", exclude_unset=True))


def _tail(said: str) -> tuple[str, ...]:
    """Give the last lines that say something."""
    lines = [scrub(line.rstrip()) for line in said.splitlines() if line.strip()]
    return tuple(lines[-TAIL:])


def _end(process: "subprocess.Popen[str]") -> None:
    """End a process that is still there as Ctrl-C would, and what it started."""
    if process.poll() is not None:
        return
    try:
        family = [
            psutil.Process(process.pid),
            *psutil.Process(process.pid).children(recursive=True),
        ]
    except psutil.NoSuchProcess:
        return
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(END_SECONDS)
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
