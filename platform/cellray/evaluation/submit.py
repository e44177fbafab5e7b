"""Running ``cellray evaluate`` elsewhere: as a job of a Ray cluster, or as a process here."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import yaml

from cellray.atlas.urls import normalise
from cellray.cluster.address import Address, ClusterError, find_address
from cellray.cluster.settings import MLFLOW, refuse_password, tracking
from cellray.core.errors import CellrayError
from cellray.core.secrets import scrub
from cellray.evaluation.facts import FILES
from cellray.evaluation.suite import Suite
from cellray.track.uri import tracking_uri

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

    from cellray.cluster.jobs import Jobs

TAIL = 8
"""Lines of what a failed evaluation has said that are shown."""

END_SECONDS = 20.0
ASK_SECONDS = 10.0
SUITE = "suite.yaml"


@dataclass(frozen=True)
class Done:
    """How an evaluation has ended: its exit status, and the last lines of what it said."""

    status: int
    tail: tuple[str, ...]


Runner = Callable[[Sequence[str], Suite], Done]


def runner() -> Runner:
    """Choose where evaluations run: here, or with ``RAY_ADDRESS`` where ``cellray submit`` goes.

    Raises
    ------
    ClusterError
        The cluster does not answer.
    NoClusterError
        ``RAY_ADDRESS`` is where drivers join, and nothing says where jobs go.
    CellrayError
        A job's evaluations would not come to the MLflow in which they are looked for, or its
        address holds a password, which a job would show to all who see it.
    """
    if os.environ.get("RAY_ADDRESS", "local") in {"", "local"}:
        return in_process
    from cellray.cluster.jobs import Jobs

    refuse_password(tracking_uri())
    where = find_address()
    return partial(in_cluster, env=_told(where, here=Jobs(where).is_here()))


def _told(where: Address, *, here: bool) -> dict[str, str]:
    """Give a job's variables: its evaluations go to the MLflow that this process looks into.

    Raises
    ------
    CellrayError
        The cluster's nodes do not reach that one.
    """
    mine, mend = tracking_uri(), f"set {MLFLOW} to a server that this machine and the nodes reach"
    try:
        theirs = tracking({}, where.env, here=here)
    except CellrayError as error:
        raise CellrayError(error.what, mend) from error
    if theirs != mine:
        other = theirs or "the MLflow that the cluster's nodes name"
        raise CellrayError(f"jobs would log to {other}, and the model is looked up in {mine}", mend)
    return {**where.env, MLFLOW: theirs}


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


def in_cluster(words: Sequence[str], suite: Suite, env: Mapping[str, str]) -> Done:
    """Evaluate as a job of a Ray cluster, and wait for its end.

    The job is that of ``cellray submit evaluate``; it ships this cellray, the suite, and the small
    files that the suite names. It is stopped when this process is, and goes on when the cluster is
    lost.

    Parameters
    ----------
    words, suite
        As of `in_process`.
    env
        More variables of the job.

    Raises
    ------
    ClusterError
        A cluster that does not answer.
    """
    from cellray.cluster.jobs import Jobs, exit_status
    from cellray.cluster.ship import Shipment
    from cellray.cluster.submit import make_request

    cluster = Jobs(find_address())
    with tempfile.TemporaryDirectory(prefix="cellray-") as folder:
        shipment, file = Shipment(Path(folder)), Path(folder) / SUITE
        file.write_text(_text(_placed(suite)))
        named = shipment.add(file)
        shipment.add_code()
        request = make_request(
            "evaluate",
            ["evaluate", *words, "--suite", named],
            shipment,
            name=words[0].removeprefix("models:/"),
            env=env,
        )
        job = cluster.submit(request)
    try:
        status = exit_status(_end_of(cluster, job))
    except (KeyboardInterrupt, SystemExit):
        with suppress(ClusterError):
            cluster.stop(job)
        raise
    said = ""
    with suppress(ClusterError):
        said = cluster.logs(job) if status else ""
    return Done(status, _tail(said))


def _end_of(cluster: "Jobs", job: str) -> "JobDetails":
    """Wait for a job's end, and bear that the cluster is lost for a moment.

    Raises
    ------
    ClusterError
        It does not come back.
    """
    from cellray.cluster.follow import LOST, wait
    from cellray.cluster.jobs import ended

    lost = 0
    while True:
        try:
            found = wait(cluster, job, ASK_SECONDS)
        except ClusterError as error:
            lost += 1
            if lost >= LOST:
                raise ClusterError(
                    f"the cluster was lost: {error.what}", f"job {job} may go on; {error.mend}"
                ) from error
            time.sleep(lost)
            continue
        if ended(found):
            return found
        lost = 0


def _placed(suite: Suite) -> Suite:
    """Name by full paths what a suite names and what is not shipped: a job has another folder."""
    tasks = {}
    for name, entry in suite.tasks.items():
        kept = {
            key: normalise(value)
            for key in ("reference", *FILES)
            if (value := getattr(entry, key)) is not None
            and (key == "reference" or ".." in Path(value).parts)
        }
        tasks[name] = entry.model_copy(update=kept)
    return suite.model_copy(update={"tasks": tasks})


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
