"""Jobs of a Ray cluster, from outside: submitted, listed, followed, stopped."""

import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import ray
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from cellray.cluster.address import Address, ClusterError
from cellray.cluster.refusals import CHECK, UNREACHED, last_line, refused_token
from cellray.cluster.users import owner, this_user
from cellray.core.errors import CellrayError, suggest
from cellray.core.secrets import first_line

REQUEST_SECONDS = 60.0
KNOCK_SECONDS = 10.0
SETTLING_SECONDS = 3.0
"""After a job's end Ray looks for it once more, and lists as failed what it does not find."""
LAST = "last"
"""Stands for the job that its user has submitted last."""
KILLED = 137
"""What a shell calls the end by SIGKILL."""
NO_AGENT = "No available agent to submit job"
"""What Ray answers as long as no node of the cluster takes jobs."""
STARTING = 60.0
"""Seconds after which one should."""
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
OVERRIDING = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
"""What Ray's client follows rather than the address that it is given."""

CHATTERING = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What is asked of a cluster.

    Attributes
    ----------
    id
        Of the job.
    entrypoint
        The command.
    runtime_env
        As of `ray.runtime_env.RuntimeEnv`.
    metadata
        Beside the job, for all to see.
    resources
        More arguments of Ray's ``submit_job``: what the command itself takes of the cluster.
    """

    id: str
    entrypoint: str
    runtime_env: Mapping[str, Any]
    metadata: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, Any] = field(default_factory=dict)


class Jobs:
    """The jobs of one cluster.

    Parameters
    ----------
    address
        Where it takes jobs.

    Raises
    ------
    ClusterError
        Nothing answers there, or it is no Ray, or it wants another token or another version.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        with self._reached(knocking=True), _address_alone():
            self._client = _Client(address.url, headers=dict(address.headers))
        self.url = self._client.get_address()
        self.version = self._client.version
        mine, theirs = ray.__version__.split(".")[:2], self.version.split(".")[:2]
        if mine != theirs:
            raise ClusterError(
                f"the cluster at {self.url} runs Ray {self.version}, and this is {ray.__version__}",
                f"use a cluster of Ray {'.'.join(mine)}, such as the image of cluster/Dockerfile",
            )

    def is_here(self) -> bool:
        """Say whether all its nodes are this machine; a tunnel's address would not say so."""
        give_up = time.monotonic() + STARTING
        with suppress(requests.RequestException, ValueError, KeyError, TypeError):
            while True:
                answer = self._client.ask("/nodes?view=hostNameList").json()
                found = set(answer["data"]["hostNameList"])
                # A head that has just started does not list itself yet.
                if found or time.monotonic() > give_up:
                    return found == {socket.gethostname()}
                time.sleep(0.5)
        return False

    def submit(self, request: Request) -> str:
        """Submit a job and give its id.

        A cluster whose nodes have just started is asked for a minute: Ray itself waits ten seconds
        for one that takes jobs.

        Raises
        ------
        ClusterError
            The cluster does not take it.
        """
        give_up, told = time.monotonic() + STARTING, False
        while True:
            try:
                with self._reached():
                    return self._client.submit_job(
                        entrypoint=request.entrypoint,
                        submission_id=request.id,
                        runtime_env=dict(request.runtime_env),
                        metadata=dict(request.metadata),
                        **request.resources,
                    )
            except ClusterError as error:
                if NO_AGENT not in error.what or time.monotonic() > give_up:
                    raise
            if not told:
                logger.warning("no node of %s takes jobs yet; trying for a minute", self.url)
                told = True
            time.sleep(1)

    def list(self) -> list[JobDetails]:
        """List the jobs that were submitted, the newest first."""
        with self._reached():
            found = [job for job in self._client.list_jobs() if job.submission_id]
        return sorted(found, key=lambda job: job.start_time or 0, reverse=True)

    def find(self, name: str) -> JobDetails:
        """Find a job by its id, by the beginning of one, or as the ``last`` of this user.

        Raises
        ------
        CellrayError
            There is none, or several begin so, or the last ones are of others.
        """
        known = self.list()
        ids = [str(job.submission_id) for job in known]
        if name == LAST and known:
            return self._last(known)
        found = [job for job in known if job.submission_id == name] or [
            job for job in known if str(job.submission_id).startswith(name)
        ]
        if len(found) == 1:
            return found[0]
        if found:
            shown = ", ".join(str(job.submission_id) for job in found[:4])
            raise CellrayError(
                f"{len(found)} jobs begin with '{name}': {shown}", "give more of the id"
            )
        raise CellrayError(f"no job '{name}' at {self.url}", suggest(name, ids))

    def _last(self, known: Sequence[JobDetails]) -> JobDetails:
        me = this_user()
        for job in known:
            if owner(job) == me:
                return job
        raise CellrayError(
            f"no job at {self.url} was submitted by {me}; the newest is "
            f"{known[0].submission_id}, by {owner(known[0]) or 'someone unnamed'}",
            "give the id of the job that is meant",
        )

    def info(self, job: str) -> JobDetails:
        """Tell how a job stands."""
        with self._reached():
            return self._client.get_job_info(job)

    def logs(self, job: str) -> str:
        """Give all that a job has written.

        Raises
        ------
        ClusterError
            The node of the job's own process is gone, and the log with it.
        """
        try:
            with self._reached():
                return self._client.get_job_logs(job)
        except ClusterError as error:
            if UNREACHED in str(error.__cause__):
                raise ClusterError(
                    f"the log of job {job} lies on the node of its own process, which is gone",
                    f"see 'cellray jobs status {job}': how it ended, and its runs in MLflow",
                ) from error
            raise

    def stop(self, job: str) -> bool:
        """Ask a job to end; say whether it was there to be ended."""
        with self._reached():
            return self._client.stop_job(job)

    def delete(self, job: JobDetails) -> None:
        """Forget a job that has ended; its log's file stays on its node."""
        since = time.time() - (job.end_time or 0) / 1000
        time.sleep(min(max(0.0, SETTLING_SECONDS - since), SETTLING_SECONDS))
        with self._reached():
            self._client.delete_job(str(job.submission_id))

    def tail(self, job: str) -> Any:  # noqa: ANN401 - Ray's asynchronous iterator
        """Follow what a job writes, from its beginning."""
        return self._client.tail_job_logs(job)

    @contextmanager
    def _reached(self, *, knocking: bool = False) -> Iterator[None]:
        """Turn what Ray's client raises into a line.

        Parameters
        ----------
        knocking
            Whether it is not known yet that a Ray answers there.

        Raises
        ------
        ClusterError
            In place of it.
        """
        url = self.address.url
        try:
            yield
        except AuthenticationError as error:
            raise refused_token(self.address, str(error)) from error
        except requests.Timeout as error:
            raise ClusterError(
                f"the cluster at {url} does not answer in time",
                "check the address, the network, and that the head node is not overloaded",
            ) from error
        except (requests.ConnectionError, ConnectionError) as error:
            raise ClusterError(
                f"no Ray takes jobs at {url}: nothing listens there", CHECK
            ) from error
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            if knocking:
                line = first_line(error)
                raise ClusterError(f"no Ray takes jobs at {url}: {line}", CHECK) from error
            raise ClusterError(
                f"the cluster at {url} refuses this: {last_line(error)}",
                "change what is refused, or see dashboard.log on the head node",
            ) from error


class _Client(JobSubmissionClient):
    """Ray's client, with patience that ends."""

    version = "unknown"

    def ask(self, path: str) -> requests.Response:
        """Ask for a page of the dashboard."""
        return self._do_request("GET", path, timeout=KNOCK_SECONDS)

    def _check_connection_and_version(self, *_: object, **__: object) -> None:
        """Find out the version, once.

        Raises
        ------
        ValueError
            What answers is no dashboard of Ray's.
        """
        if self._server_ray_version is None:
            response = self.ask("/api/version")
            try:
                self.version = str(response.json()["ray_version"])
            except (ValueError, KeyError, TypeError) as error:
                msg = "what answers there is no Ray dashboard"
                raise ValueError(msg) from error
            self._server_ray_version = self.version

    def _do_request(self, *args: Any, **kwargs: Any) -> requests.Response:  # noqa: ANN401 - Ray's
        return super()._do_request(*args, **{"timeout": REQUEST_SECONDS, **kwargs})


@contextmanager
def _address_alone() -> Iterator[None]:
    """Hide the variables that Ray's client follows rather than the address, and its chatter."""
    for name in CHATTERING:
        logging.getLogger(name).setLevel(logging.WARNING)
    kept = {name: os.environ.pop(name) for name in OVERRIDING if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def ended(job: JobDetails) -> bool:
    """Say whether a job has come to its end."""
    return str(job.status.value) in ENDED


def exit_status(job: JobDetails) -> int:
    """Give the exit status that a job's end comes to: its own, 143 where it was stopped."""
    status = str(job.status.value)
    if status == "SUCCEEDED":
        return 0
    return 143 if status == "STOPPED" else driver_status(job) or 1


def driver_status(job: JobDetails) -> int | None:
    """Give the exit status of a job's command as a shell does: 128 and more after a signal."""
    code = job.driver_exit_code
    return code if code is None or code >= 0 else 128 - code
