"""``cellray cluster``: a cluster on this machine from the command line."""

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from cellray import answers_cluster, answers_plans
from cellray.cli_verbs import DryRun, Json, examples
from cellray.console import console
from cellray.core.errors import CellrayError

FOLDER = Path(".cellray/cluster")
S3_ENV = Path(".cellray/s3-env")

cluster = typer.Typer(
    help="A cluster of several processes on this machine, for trying the whole thing."
)

Folder = Annotated[
    Path, typer.Option("--dir", help="Folder with its state, passwords, logs and data.")
]


def _port(what: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        min=0, max=65535, help=f"Port of {what}; 0 takes any free one."
    )
    return option


@cluster.command(
    epilog=examples(
        "cellray cluster up --local",
        "cellray cluster up --local --workers 2 --cpus 4",
        'eval "$(cellray cluster env)"',
    )
)
def up(
    *,
    local: Annotated[
        bool, typer.Option("--local", help="On this machine: the only place it starts one.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Worker nodes.")] = 1,
    cpus: Annotated[
        int | None,
        typer.Option(min=1, help="CPUs that each worker offers; this machine's, shared."),
    ] = None,
    folder: Folder = FOLDER,
    s3: Annotated[bool, typer.Option("--s3/--no-s3", help="Whether to start an S3 server.")] = True,
    s3_env: Annotated[
        Path, typer.Option(help="Virtual environment of the S3 server; made if it is not there.")
    ] = S3_ENV,
    object_store: Annotated[
        int, typer.Option(min=80, metavar="MIB", help="Ray's object store on each node.")
    ] = 768,
    ray_port: Annotated[int, _port("Ray's head, where drivers join")] = 6379,
    dashboard_port: Annotated[int, _port("the dashboard, where jobs go")] = 8265,
    mlflow_port: Annotated[int, _port("the MLflow server")] = 5000,
    s3_port: Annotated[int, _port("the S3 server")] = 9000,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Start Ray, an MLflow and an S3 server on this machine.

    They listen on loopback, ask who one is, and go on when this shell is gone. Passwords are made
    at the first start. What the servers store is there again after 'cellray cluster down'.
    """
    if not local:
        raise CellrayError(
            "cellray starts clusters on this machine only",
            "give --local; for AWS use 'ray up cluster/ray.yaml', for Kubernetes cluster/kuberay",
        )
    with console(as_json=json) as to:
        from cellray.cluster import local as here
        from cellray.cluster.state import Wanted

        wanted = Wanted(
            workers=workers,
            cpus=cpus or max(2, (os.cpu_count() or 2) // workers),
            store=object_store << 20,
            s3_env=s3_env if s3 else None,
            ray_port=ray_port,
            dashboard_port=dashboard_port,
            mlflow_port=mlflow_port,
            s3_port=s3_port,
        )
        if dry_run:
            planned = here.dry_run(folder, wanted)
            to.answer(planned, answers_plans.dry_text(planned))
            return
        here.up(folder, wanted, to.say, to.progress)
        words = "" if folder == FOLDER else f" --dir {shlex.quote(str(folder))}"
        document = here.status(folder)
        assert document is not None
        to.answer(document, answers_cluster.up_text(document, words))


@cluster.command(epilog=examples("cellray cluster status", "cellray cluster status --json"))
def status(*, folder: Folder = FOLDER, json: Json = False) -> None:
    """Say what runs, and where.

    Exits with status 1 unless all of it runs.
    """
    with console(as_json=json) as to:
        from cellray.cluster import local as here

        document = here.status(folder)
        if document is None:
            to.answer({"complete": False}, _nothing(folder))
        else:
            to.answer(document, answers_cluster.status_text(document))
    if document is None or not document["complete"]:
        raise typer.Exit(1)


@cluster.command(epilog=examples('eval "$(cellray cluster env)"'))
def env(*, folder: Folder = FOLDER, json: Json = False) -> None:
    """Print what sets a shell up for the cluster, passwords among it."""
    with console(as_json=json) as to:
        from cellray.cluster import local as here

        variables = here.environment(folder)
        to.answer(variables, answers_cluster.env_text(variables))


@cluster.command(epilog=examples("cellray cluster down"))
def down(*, folder: Folder = FOLDER, json: Json = False) -> None:
    """End what 'cellray cluster up' started, and nothing else.

    Jobs that run end with it. Data, passwords and logs stay in the folder.
    """
    with console(as_json=json) as to:
        from cellray.cluster import local as here

        ended = here.down(folder)
        text = f"ended {ended} processes"
        to.answer({"ended": ended}, text if ended else _nothing(folder))


def _nothing(folder: Path) -> str:
    from cellray.cluster.local import elsewhere

    return f"no cluster runs in {folder}; {elsewhere()}"
