"""Following a job: its log as it is written, and its end."""

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass

import aiohttp
from ray.job_submission import JobDetails

from cellray.cluster.address import ClusterError
from cellray.cluster.jobs import Jobs, ended
from cellray.core.errors import CellrayError

LOOK_SECONDS = 0.5
STOP_SECONDS = 90.0
"""How long `end` waits for a job's end: longer than a job may take for its checkpoint."""
QUEUED_SECONDS = 5.0
"""The same of a job that waits in the queue: Ray ends it when its turn comes."""
ASK_SECONDS = 2.0
"""How often a log is asked for that cannot be followed."""
QUIET_SECONDS = 30.0
"""Without a word for so long it is looked whether the job has ended: a node that loses its power
closes no connection."""
LOST = 5
"""Questions in a row without an answer after which a log is no longer followed."""

RESUMED = ("pretrain", "sweep")
"""Verbs that go on from an id; other verbs are submitted again."""


def follow(
    jobs: Jobs, job: str, write: Callable[[str], object], *, tail: int | None = None
) -> JobDetails:
    """Write what a job writes, from its beginning to its end, and tell how it ended.

    What interrupts it leaves the job alone. What `write` raises is raised.

    Parameters
    ----------
    jobs
        The cluster.
    job
        An id.
    write
        Called with what is new, as it was written.
    tail
        Of what was written before, the number of last lines; None for all.

    Raises
    ------
    ClusterError
        The cluster was lost, and did not come back.
    """
    log, lost = _Log(jobs, job, write), 0
    if tail is not None:
        log.skip(tail)
    while True:
        followed = log.follow()
        try:
            found = jobs.info(job)
        except ClusterError as error:
            lost += 1
            if lost >= LOST:
                raise ClusterError(
                    f"the cluster at {jobs.url} was lost: {error.what}",
                    f"see 'cellray jobs status {job}' when it is back; the job may go on",
                ) from error
            time.sleep(lost)
            continue
        lost = 0
        if ended(found) or not followed:
            log.rest()
        if ended(found):
            return found
        time.sleep(LOOK_SECONDS if followed else ASK_SECONDS)


@dataclass
class _Log:
    """A log, and how many of its characters were written; every connection begins it anew."""

    jobs: Jobs
    job: str
    write: Callable[[str], object]
    seen: int = 0
    unwritten: Exception | None = None

    def skip(self, lines: int) -> None:
        """Write no more than the last lines of what is there."""
        text = self.jobs.logs(self.job)
        self.seen = len(text) - len(last_lines(text, lines))
        self._put(text, len(text))

    def follow(self) -> bool:
        """Write what is new, as long as a connection lasts; say whether it has ended in order."""
        if _in_loop():
            return False
        try:
            asyncio.run(self._tail())
        except (aiohttp.ClientError, RuntimeError, OSError, ClusterError) as error:
            if error is self.unwritten:
                raise
            return False
        return True

    async def _tail(self) -> None:
        told, texts = 0, self.jobs.tail(self.job)
        while (text := await self._next(texts)) is not None:
            told += len(text)
            self._put(text, told)

    async def _next(self, texts: AsyncIterator[str]) -> str | None:
        coming = asyncio.ensure_future(anext(texts, None))
        while not (await asyncio.wait([coming], timeout=QUIET_SECONDS))[0]:
            if ended(await asyncio.to_thread(self.jobs.info, self.job)):
                coming.cancel()
                return None
        return coming.result()

    def rest(self) -> None:
        """Write what no connection has brought; nothing where the node that has it is gone."""
        try:
            text = self.jobs.logs(self.job)
        except ClusterError:
            return
        self._put(text, len(text))

    def _put(self, text: str, told: int) -> None:
        fresh = text[len(text) - max(0, told - self.seen) :] if told > self.seen else ""
        if fresh:
            try:
                self.write(fresh)
            except Exception as error:
                self.unwritten = error
                raise
        self.seen = max(self.seen, told)


def _in_loop() -> bool:
    """Say whether this thread runs asyncio's loop, as a notebook's does: then none else may."""
    with suppress(RuntimeError):
        asyncio.get_running_loop()
        return True
    return False


def wait(jobs: Jobs, job: str, seconds: float = math.inf) -> JobDetails:
    """Wait for a job's end, and tell how it stands then."""
    until = time.monotonic() + seconds
    while not ended(found := jobs.info(job)) and time.monotonic() < until:
        time.sleep(LOOK_SECONDS)
    return found


def end(
    jobs: Jobs, job: JobDetails, say: Callable[[str], object] = lambda line: None
) -> tuple[JobDetails, str | None]:
    """Ask a job to end, and wait for that.

    Parameters
    ----------
    jobs, job
        The cluster, and how the job stands.
    say
        Called with a line before it is waited for.

    Returns
    -------
    JobDetails
        How it stands then.
    str or None
        The command that goes on with it.

    Raises
    ------
    CellrayError
        It has ended before, or nothing of it is there.
    """
    name, status = str(job.submission_id), str(job.status.value)
    if ended(job):
        raise CellrayError(
            f"job {name} has ended before: {status.lower()}", f"see 'cellray jobs logs {name}'"
        )
    heard = jobs.stop(name)
    if heard:
        say(f"stopping {name}")
    found = wait(jobs, name, STOP_SECONDS if heard and status == "RUNNING" else QUEUED_SECONDS)
    if not (heard or ended(found)):
        raise CellrayError(
            f"job {name} is {found.status.value.lower()}, and nothing of it is there to be stopped",
            "stop it again in a minute, when Ray has begun it or knows that it was lost",
        )
    log = ""
    with suppress(ClusterError):  # its node may be gone
        log = jobs.logs(name)
    return found, resumption(log, (job.metadata or {}).get("verb"))


def resumption(log: str, verb: str | None) -> str | None:
    """Make the command that goes on, on the cluster, with what a job has begun.

    Parameters
    ----------
    log
        What the job has written.
    verb
        Of the job; None where it does not say.
    """
    verbs = [one for one in RESUMED if verb in {one, None}]
    found = (
        re.findall(rf"cellray (?:submit )?({'|'.join(verbs)}) --resume ([\w./:-]+)", log)
        if verbs
        else []
    )
    if not found:
        return None
    known, run_id = found[-1]
    return f"cellray submit {known} --resume {run_id}"


def last_lines(log: str, count: int) -> str:
    """Give the last lines of a log, as they were written."""
    return "".join(log.splitlines(keepends=True)[-count:]) if count else ""
