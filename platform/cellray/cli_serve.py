"""``cellray serve``: a registered model behind HTTP."""

import threading
from contextlib import suppress
from typing import Annotated

import typer

from cellray import answers, answers_plans
from cellray.cli_verbs import DryRun, Json, ModelUri, examples
from cellray.console import console

serve_verbs = typer.Typer()


@serve_verbs.command(
    epilog=examples(
        "cellray serve models:/plates@champion",
        "curl -s http://127.0.0.1:8000/model",
        "curl -s --data-binary @plate1.h5ad -H 'Content-Type: application/x-hdf5' "
        "http://127.0.0.1:8000/embed",
        "CELLRAY_SERVE_TOKEN=$(openssl rand -hex 32) cellray serve models:/plates/3 --host 0.0.0.0",
    )
)
def serve(
    model: ModelUri,
    *,
    host: Annotated[
        str, typer.Option(help="Where it listens; any but a loopback address needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port.")] = 8000,
    replicas: Annotated[int, typer.Option(min=1, help="Copies of the model, a CPU each.")] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of a replica, such as 0.5.")] = 0.0,
    follow_alias: Annotated[
        bool, typer.Option("--follow-alias", help="Load another version when the alias moves.")
    ] = False,
    min_genes: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the model's genes a request must have.")
    ] = 0.5,
    max_mib: Annotated[int, typer.Option(min=1, help="Largest body, in MiB.")] = 64,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Embed counts that are sent over HTTP, until Ctrl-C.

    POST /embed takes JSON or an .h5ad and gives JSON or Arrow; GET /model describes the model;
    GET /healthz says that it is loaded. CELLRAY_SERVE_TOKEN names the token that clients must
    send. See docs/serving.md.
    """
    with console(as_json=json) as to:
        from cellray.serving import run
        from cellray.serving.app import Settings

        settings = Settings(
            model=model,
            host=host,
            replicas=replicas,
            gpus=gpus,
            follow=follow_alias,
            min_genes=min_genes,
            max_mib=max_mib,
        )
        if dry_run:
            planned = run.dry_run(settings, port)
            to.answer(planned, answers_plans.dry_text(planned))
            return
        with run.serving(settings, port) as found:
            to.answer(found, answers.served_text(found))
            with suppress(KeyboardInterrupt):
                threading.Event().wait()
