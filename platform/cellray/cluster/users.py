"""Whose a job is."""

import getpass
import os

from ray.job_submission import JobDetails


def owner(job: JobDetails) -> str | None:
    """Give who has submitted a job, where it says so."""
    return (job.metadata or {}).get("user")


def this_user() -> str:
    """Give the user's name, or a number where there is none."""
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):  # a container's nameless user
        return str(os.getuid())
