"""What ``submit`` and ``jobs`` answer, laid out for people."""

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from cellray.answers import indent, size, table
from cellray.display import duration

SHOWN = 4
"""Shipped files that are named."""

RAYS = re.compile(r"(\x1b\[\d+m)*\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+\s+[A-Z]+ \w+\.py:\d+ -- ")
"""How a line begins that Ray has written into a job's log."""
ERROR = re.compile(r"error: |([\w.]+\.)?\w+(Error|Exception)(: |$)")
"""The same, of one with which cellray refuses or a traceback ends."""


def submitted_text(found: Mapping[str, Any]) -> str:
    """Lay out what was submitted, and where to watch it."""
    files = list(found["files"])
    named = ", ".join(files[:SHOWN]) + (f" and {len(files) - SHOWN} more" if files[SHOWN:] else "")
    code = (
        f"{found['code_files']} files of code ({size(found['code_bytes'])}) from {found['code']}"
        if found["code"]
        else "no code: the cluster's own cellray runs"
    )
    done = "submitted" if found["submitted"] else "would submit"
    lines = [
        f"command    {found['entrypoint']}",
        f"shipped    {code}",
        *([f"           {named} ({size(found['bytes'])})"] if files else []),
        f"log        {found['logs']}",
        f"dashboard  {found['dashboard']}",
        f"mlflow     {found['mlflow']}",
    ]
    return f"{done} {found['id']} to {found['address']}\n" + indent("\n".join(lines))


def job_document(job: Any) -> dict[str, Any]:  # noqa: ANN401 - Ray's JobDetails
    """Give what is known of a job, for programs.

    Ray knows when a job was submitted, and not when it began: its seconds hold those in the queue.
    """
    from cellray.cluster.jobs import driver_status
    from cellray.cluster.users import owner

    return {
        "id": job.submission_id,
        "status": job.status.value.lower(),
        "name": (job.metadata or {}).get("name"),
        "verb": (job.metadata or {}).get("verb"),
        "user": owner(job),
        "entrypoint": job.entrypoint,
        "submitted": _when(job.start_time),
        "ended": _when(job.end_time),
        "seconds": _seconds(job.start_time, job.end_time),
        "exit_code": driver_status(job),
        "message": job.message,
    }


def jobs_text(found: Sequence[Mapping[str, Any]]) -> str:
    """Lay out a list of jobs."""
    if not found:
        return "no jobs"
    header = ("job", "status", "user", "submitted", "wait and run")
    rows = [
        (job["id"], job["status"], job["user"] or "", job["submitted"], duration(job["seconds"]))
        for job in found
    ]
    return table(header, rows)


def job_text(job: Mapping[str, Any]) -> str:
    """Lay out how a job stands."""
    since = f"{job['submitted']}, {duration(job['seconds'])}"
    lines = [f"command    {job['entrypoint']}"]
    if job["status"] == "pending":
        lines.append(f"waits since {since}")
    elif job["ended"] is None:
        lines.append(f"submitted  {since} ago")
    else:
        lines += [f"submitted  {job['submitted']}"]
        lines += [f"ended      {job['ended']}, {duration(job['seconds'])} later"]
    lines += [
        f"log        cellray jobs logs {job['id']}",
        *(f"mlflow     {link}" for link in job["links"]),
        *(f"model      {model}" for model in job["models"]),
    ]
    if job["status"] == "failed":
        lines += [f"why        {line}" for line in [*why(job), *_hint(job)]]
    elif job["status"] == "pending":
        lines.append(f"why        {(job['message'] or '').strip()}")
    return f"{job['id']}: {_state(job)}\n" + indent("\n".join(lines))


def ended_text(job: Mapping[str, Any]) -> str:
    """Say how a followed job has ended."""
    return "\n".join([_end(job), *_hint(job)])


def stopped_text(job: Mapping[str, Any]) -> str:
    """Say what has become of a job that was asked to end."""
    if job["status"] == "pending":
        return f"{job['id']}: queued; it ends when its turn comes, before it begins"
    if job["status"] == "running":
        return f"{job['id']}: still ending; see 'cellray jobs status {job['id']}'"
    again = "submit the same file again" if job["verb"] == "pipeline" else None
    if job["status"] != "stopped" or not (on := job["resume"] or again):
        return _end(job)
    return f"{_end(job)}\nto go on: {on}"


def detached_text(job: str) -> str:
    """Say that a job goes on without its watcher."""
    return (
        f"detached: {job} goes on; 'cellray jobs logs {job} --follow' follows it again, "
        f"'cellray jobs stop {job}' ends it"
    )


def why(job: Mapping[str, Any]) -> list[str]:
    """Give the last error among what a failed job has said, or else its last lines."""
    said = [line for line in (job["message"] or "").splitlines() if line.strip()]
    own = [line for line in said if not RAYS.match(line)]
    if own and own == said[:1]:  # Ray's word for its end alone: it has written nothing itself
        return [own[0].partition(", last available logs")[0]]
    return [line for line in own if ERROR.match(line)][-1:] or own[-3:]


def _end(job: Mapping[str, Any]) -> str:
    return f"{job['id']}: {_state(job)}, {duration(job['seconds'])} after it was submitted"


def _state(job: Mapping[str, Any]) -> str:
    code = job["exit_code"]
    return (
        f"{job['status']} with status {code}"
        if job["status"] == "failed" and code
        else (str(job["status"]))
    )


def _hint(job: Mapping[str, Any]) -> list[str]:
    """Say how to mend a lack of memory, and a module that is absent, as Python itself says."""
    from cellray.cluster.jobs import KILLED

    if job["exit_code"] == KILLED:
        return [
            "it was killed, often for lack of memory: give it a node's with --resources "
            "memory=8GiB, or more"
        ]
    absent = re.search(r"No module named '?(\w+)", job["message"] or "")
    if not absent:
        return []
    if absent[1] == "cellray":
        return ["the cluster's image holds no cellray; leave out --no-code"]
    return [f"add the package of {absent[1]} with --pip, or put it into the cluster's image"]


def _when(milliseconds: int | None) -> str | None:
    if not milliseconds:
        return None
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(milliseconds / 1000))


def _seconds(start: int | None, end: int | None) -> float:
    return ((end or time.time() * 1000) - start) / 1000 if start else 0.0
