"""``cellray submit``: a verb run as a job of a cluster."""

from typing import Annotated

import typer

from cellray import answers_jobs
from cellray.cli_jobs import At, follow_job
from cellray.cli_verbs import Json, examples
from cellray.completion import matching
from cellray.console import console
from cellray.submitting import VERBS, Asked, send

submitting = typer.Typer()


@submitting.command(
    context_settings={"ignore_unknown_options": True},
    epilog=examples(
        "cellray submit pretrain --recipe configs/pretrain/masked.yaml --atlas s3://b/pbmc "
        "--name pbmc --storage s3://b/runs --follow",
        "cellray submit evaluate models:/pbmc@champion --atlas s3://b/pbmc --label cell_type",
        "cellray submit sweep --recipe configs/sweep/masked.yaml --atlas s3://b/pbmc --name pbmc "
        "--storage s3://b/runs --resources CPU=1,memory=4GiB",
        "cellray submit promote pbmc --from challenger --address http://head:8265 --dry-run",
    ),
)
def submit(
    context: typer.Context,
    verb: Annotated[
        str,
        typer.Argument(
            metavar="VERB",
            help=f"What to run: {', '.join(VERBS)}.",
            autocompletion=lambda incomplete: matching(incomplete, [(one, "") for one in VERBS]),
        ),
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[WORDS]...", help="The verb's own arguments and options."),
    ] = None,
    *,
    address: At = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Show the log until the end; Ctrl-C detaches.")
    ] = False,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Variable of the job; no secrets. Repeatable."),
    ] = None,
    resources: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="What the job's own process takes: CPU=1,GPU=1,memory=4GiB, a resource, or a "
            "node's label. Repeatable.",
        ),
    ] = None,
    job_name: Annotated[
        str | None, typer.Option(help="Readable part of the job's id, in place of the model's.")
    ] = None,
    pip: Annotated[
        list[str] | None,
        typer.Option(metavar="PACKAGE", help="Package that the nodes install. Repeatable."),
    ] = None,
    no_code: Annotated[
        bool, typer.Option("--no-code", help="Use the cellray that the cluster's image holds.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be sent; submit nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Run a verb as a job of a Ray cluster.

    The code and the files that the words name (recipe, suite, gene sets) go along; data stays
    where it is. Words of the verb that are also options here, such as --json, are taken here.
    """
    with console(as_json=json) as to:
        asked = Asked(
            address, env or (), resources or (), job_name, pip or (), not no_code, dry_run
        )
        root = context.find_root().command
        cluster, document = send(root, verb, words or (), asked, to.note)
        text = answers_jobs.submitted_text(document)
        if not follow or dry_run:
            to.answer(document, text)
            return
        to.note(text)
        follow_job(to, cluster, document["id"])
