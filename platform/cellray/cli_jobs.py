"""``cellray jobs``: the jobs of a cluster, looked after from any shell."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cellray import answers_jobs
from cellray.cli_verbs import Json, examples
from cellray.completion_jobs import job_ids
from cellray.console import Console, console
from cellray.core.errors import CellrayError

if TYPE_CHECKING:
    from cellray.cluster.jobs import Jobs

DETACHED = 130

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
    typer.Argument(
        metavar="ID",
        help="A job's id, the beginning of one, or 'last' of yours.",
        autocompletion=job_ids,
    ),
]


@jobs.command(
    "list",
    epilog=examples("cellray jobs list", "cellray jobs list --status running --user ann --json"),
)
def list_jobs(
    *,
    status: Annotated[
        Literal["pending", "running", "succeeded", "failed", "stopped"] | None,
        typer.Option(help="Jobs that stand so, alone."),
    ] = None,
    user: Annotated[str | None, typer.Option(help="Jobs of one user, alone.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="How many at most; 0 lists all.")] = 50,
    address: At = None,
    json: Json = False,
) -> None:
    """List the cluster's jobs, the newest first."""
    with console(as_json=json) as to:
        known = [answers_jobs.job_document(job) for job in _cluster(address).list()]
        wanted = {"status": status, "user": user}
        found = [
            job for job in known if all(job[key] == word for key, word in wanted.items() if word)
        ]
        shown = found[: limit or None]
        if older := len(found) - len(shown):
            to.note(f"{older} older ones are left out; --limit 0 lists all")
        to.answer(shown, answers_jobs.jobs_text(shown))


@jobs.command(
    epilog=examples("cellray jobs status last", "cellray jobs status pretrain-pbmc-20261129")
)
def status(job: JobId, *, address: At = None, json: Json = False) -> None:
    """Say how a job stands, and what has come of it in MLflow."""
    with console(as_json=json) as to:
        from cellray.cluster.outcome import outcome

        cluster = _cluster(address)
        found = cluster.find(job)
        held = outcome(found, cluster.address)
        document = answers_jobs.job_document(found) | vars(held)
        to.answer(document, answers_jobs.job_text(document))


@jobs.command(epilog=examples("cellray jobs logs last --follow", "cellray jobs logs pretrain-pbmc"))
def logs(
    job: JobId,
    *,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on until the job's end; Ctrl-C detaches.")
    ] = False,
    tail: Annotated[
        int | None, typer.Option(min=0, help="So many of the last lines, and what follows them.")
    ] = None,
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
            follow_job(to, cluster, found, tail=tail)
        else:
            from cellray.cluster.follow import last_lines

            said = cluster.logs(found)
            said = said if tail is None else last_lines(said, tail)
            to.answer({"id": found, "log": said}, said.rstrip("\n"))


@jobs.command(epilog=examples("cellray jobs stop last", "cellray jobs stop pretrain-pbmc-20261129"))
def stop(job: JobId, *, address: At = None, json: Json = False) -> None:
    """End a job: a pre-training run writes a checkpoint first, from which it can go on.

    Ends with status 1 where the job still runs after a minute and a half.
    """
    with console(as_json=json) as to:
        from cellray.cluster.follow import end

        cluster = _cluster(address)
        found, resume = end(cluster, cluster.find(job), to.note)
        document = answers_jobs.job_document(found) | {"resume": resume}
        to.answer(document, answers_jobs.stopped_text(document))
    if document["status"] == "running":
        raise typer.Exit(1)


@jobs.command(epilog=examples("cellray jobs delete pretrain-pbmc-20261129-031502-ab12cd34"))
def delete(job: JobId, *, address: At = None, json: Json = False) -> None:
    """Take a job that has ended off the list; its runs and models stay."""
    with console(as_json=json) as to:
        from cellray.cluster.jobs import ended

        cluster = _cluster(address)
        found = cluster.find(job)
        name = str(found.submission_id)
        if not ended(found):
            raise CellrayError(
                f"job {name} has not ended: {found.status.value.lower()}",
                f"end it with 'cellray jobs stop {name}'",
            )
        cluster.delete(found)
        to.answer({"id": name, "deleted": True}, f"{name}: deleted")


def _cluster(address: str | None) -> "Jobs":
    from cellray.cluster.address import find_address
    from cellray.cluster.jobs import Jobs

    return Jobs(find_address(address))


def follow_job(to: Console, cluster: "Jobs", job: str, *, tail: int | None = None) -> None:
    """Show a job's log until its end, and end as it does."""
    from cellray.cluster.follow import follow
    from cellray.cluster.jobs import exit_status

    write = to.note_text if to.as_json else to.text
    try:
        document = answers_jobs.job_document(found := follow(cluster, job, write, tail=tail))
    except KeyboardInterrupt:
        to.note(answers_jobs.detached_text(job))
        raise typer.Exit(DETACHED) from None
    if to.as_json:
        to.answer(document, "")
    to.note(answers_jobs.ended_text(document))
    if code := exit_status(found):
        raise typer.Exit(code)
