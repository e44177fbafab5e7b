"""``cellray jobs``: the jobs of a cluster, looked after from any shell."""

from typing import TYPE_CHECKING, Annotated

import typer

from cellray import answers_jobs
from cellray.cli_verbs import Json, examples
from cellray.console import Console, console
from cellray.core.errors import CellrayError

if TYPE_CHECKING:
    from cellray.cluster.jobs import Jobs

DETACHED = 130
STOP_SECONDS = 90.0
"""How long ``jobs stop`` waits for a job's end: longer than a job may take for its checkpoint."""
QUEUED_SECONDS = 5.0
"""The same of a job that waits in the queue: Ray ends it when its turn comes."""

jobs = typer.Typer(help="List, follow and stop the jobs of a cluster.")

At = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        help="Ray's dashboard; else RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or the local cluster.",
    ),
]
JobId = Annotated[
    str,
    typer.Argument(metavar="ID", help="A job's id, the beginning of one, or 'last'."),
]


@jobs.command("list", epilog=examples("cellray jobs list", "cellray jobs list --json"))
def list_jobs(*, address: At = None, json: Json = False) -> None:
    """List the cluster's jobs, the newest first."""
    with console(as_json=json) as to:
        found = [answers_jobs.job_document(job) for job in _cluster(address).list()]
        to.answer(found, answers_jobs.jobs_text(found))


@jobs.command(
    epilog=examples("cellray jobs status last", "cellray jobs status pretrain-pbmc-20261129")
)
def status(job: JobId, *, address: At = None, json: Json = False) -> None:
    """Say how a job stands."""
    with console(as_json=json) as to:
        document = answers_jobs.job_document(_cluster(address).find(job))
        to.answer(document, answers_jobs.job_text(document))


@jobs.command(epilog=examples("cellray jobs logs last --follow", "cellray jobs logs pretrain-pbmc"))
def logs(
    job: JobId,
    *,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on until the job's end; Ctrl-C detaches.")
    ] = False,
    address: At = None,
    json: Json = False,
) -> None:
    """Print what a job has written.

    With --follow the exit status is the job's: 0, its own, or 143 where it was stopped.
    """
    with console(as_json=json) as to:
        cluster = _cluster(address)
        found = str(cluster.find(job).submission_id)
        if follow:
            follow_job(to, cluster, found)
        else:
            said = cluster.logs(found)
            to.answer({"id": found, "log": said}, said.rstrip("\n"))


@jobs.command(epilog=examples("cellray jobs stop last", "cellray jobs stop pretrain-pbmc-20261129"))
def stop(job: JobId, *, address: At = None, json: Json = False) -> None:
    """End a job: a pre-training run writes a checkpoint first, from which it can go on."""
    with console(as_json=json) as to:
        from cellray.cluster.follow import resumption, wait
        from cellray.cluster.jobs import ended

        cluster = _cluster(address)
        found = cluster.find(job)
        name = str(found.submission_id)
        if ended(found):
            raise CellrayError(
                f"job {name} has ended before: {found.status.value.lower()}",
                f"see 'cellray jobs logs {name}'",
            )
        cluster.stop(name)
        queued = found.status.value == "PENDING"
        to.note(f"stopping {name}")
        document = answers_jobs.job_document(
            wait(cluster, name, QUEUED_SECONDS if queued else STOP_SECONDS)
        )
        document["resume"] = resumption(cluster.logs(name))
        to.answer(document, answers_jobs.stopped_text(document))


def _cluster(address: str | None) -> "Jobs":
    from cellray.cluster.address import find_address
    from cellray.cluster.jobs import Jobs

    return Jobs(find_address(address))


def follow_job(to: Console, cluster: "Jobs", job: str) -> None:
    """Show a job's log until its end, and end as it does."""
    from cellray.cluster.follow import follow
    from cellray.cluster.jobs import exit_status

    write = to.note_text if to.as_json else to.text
    try:
        document = answers_jobs.job_document(found := follow(cluster, job, write))
    except KeyboardInterrupt:
        to.note(answers_jobs.detached_text(job))
        raise typer.Exit(DETACHED) from None
    if to.as_json:
        to.answer(document, "")
    to.note(answers_jobs.ended_text(document))
    if code := exit_status(found):
        raise typer.Exit(code)
