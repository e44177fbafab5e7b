"""Running ``cellray evaluate`` elsewhere: as a job of a Ray cluster, or as a process here."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

from cellray.cluster.address import Address, ClusterError
from cellray.cluster.settings import refuse_password
from cellray.core.secrets import scrub
from cellray.evaluation.suite import Suite
from cellray.track.store import tracking_uri

TAIL = 8
"""Lines of what a failed evaluation has said that are shown."""

END_SECONDS = 20.0
SUITE = "suite.yaml"


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
    refuse_password(tracking_uri())
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

    The job is that of ``cellray submit evaluate``; it ships this cellray and the suite, and is told
    where MLflow is. Files that the suite names have to be where the cluster's nodes find them.

    Parameters
    ----------
    words, suite
        As of `in_process`.

    Raises
    ------
    ClusterError
        A cluster that does not answer.
    """
    from cellray.cluster.follow import wait
    from cellray.cluster.jobs import Jobs, exit_status
    from cellray.cluster.ship import Shipment
    from cellray.cluster.submit import make_request

    cluster = Jobs(Address(os.environ["RAY_ADDRESS"], "RAY_ADDRESS"))
    with tempfile.TemporaryDirectory(prefix="cellray-") as folder:
        shipment = Shipment(Path(folder))
        shipment.write(SUITE, _text(suite))
        shipment.add_code()
        request = make_request(
            "evaluate",
            ["evaluate", *words, "--suite", SUITE],
            shipment,
            name=words[0].removeprefix("models:/"),
            env={"MLFLOW_TRACKING_URI": tracking_uri()},
        )
        job = cluster.submit(request)
    try:
        status = exit_status(wait(cluster, job))
        return Done(status, _tail(cluster.logs(job)) if status else ())
    except BaseException:
        with suppress(ClusterError):
            cluster.stop(job)
        raise


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
