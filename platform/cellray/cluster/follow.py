"""Following a job: its log as it is written, and its end."""

import asyncio
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp
from ray.job_submission import JobDetails

from cellray.cluster.address import ClusterError
from cellray.cluster.jobs import Jobs, ended
from cellray.core.secrets import first_line

LOOK_SECONDS = 0.5
LOST = 5
"""Lost connections in a row after which a log is no longer followed."""

RESUMPTION = re.compile(r"cellray (?:pretrain|sweep|pipeline) --resume [\w./:-]+")


def follow(jobs: Jobs, job: str, write: Callable[[str], object]) -> JobDetails:
    """Write what a job writes, from its beginning to its end, and tell how it ended.

    What interrupts it leaves the job alone.

    Raises
    ------
    ClusterError
        The cluster was lost, and did not come back.
    """
    log, lost = _Log(jobs, job, write), 0
    while True:
        try:
            asyncio.run(log.tail())
            found = jobs.info(job)
            if ended(found):
                log.rest()
                return found
        except (aiohttp.ClientError, RuntimeError, OSError, ClusterError) as error:
            lost += 1
            if lost >= LOST:
                raise ClusterError(
                    f"the cluster at {jobs.url} was lost: {first_line(error)}",
                    f"see 'cellray jobs status {job}' when it is back; the job may go on",
                ) from error
            time.sleep(lost)
        else:
            lost = 0
            time.sleep(LOOK_SECONDS)


@dataclass
class _Log:
    """A log, and how many of its characters were written; every connection begins it anew."""

    jobs: Jobs
    job: str
    write: Callable[[str], object]
    seen: int = 0

    async def tail(self) -> None:
        """Write what is new, as long as a connection lasts."""
        told = 0
        async for text in self.jobs.tail(self.job):
            told += len(text)
            self._put(text, told)

    def rest(self) -> None:
        """Write what came after the last connection had ended."""
        text = self.jobs.logs(self.job)
        self._put(text, len(text))

    def _put(self, text: str, told: int) -> None:
        fresh = text[len(text) - max(0, told - self.seen) :] if told > self.seen else ""
        if fresh:
            self.write(fresh)
        self.seen = max(self.seen, told)


def wait(jobs: Jobs, job: str, seconds: float = math.inf) -> JobDetails:
    """Wait for a job's end, and tell how it stands then."""
    until = time.monotonic() + seconds
    while not ended(found := jobs.info(job)) and time.monotonic() < until:
        time.sleep(LOOK_SECONDS)
    return found


def resumption(log: str) -> str | None:
    """Find the command that goes on with what a job has begun, in what it has written."""
    found = RESUMPTION.findall(log)
    return found[-1] if found else None
