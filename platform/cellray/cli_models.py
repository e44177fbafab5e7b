"""``cellray models``: the Model Registry from the command line."""

from typing import Annotated

import typer

from cellray import answers
from cellray.cli_verbs import Json, examples
from cellray.console import console

models = typer.Typer(help="List, show and promote registered models.")


@models.command("list", epilog=examples("cellray models list"))
def list_models(*, json: Json = False) -> None:
    """List registered models with their versions and aliases."""
    with console(as_json=json) as to:
        from cellray.track import catalogue

        found = catalogue.list_models()
        to.answer(found, answers.models_text(found))


@models.command("show", epilog=examples("cellray models show plates"))
def show_model(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A registered model.")],
    *,
    json: Json = False,
) -> None:
    """Show a model's versions: aliases, tags, metrics."""
    with console(as_json=json) as to:
        from cellray.track import catalogue

        found = catalogue.show_model(name)
        to.answer(found, answers.model_text(found))


@models.command(
    "promote",
    epilog=examples(
        "cellray models promote plates --version 3",
        "cellray models promote plates --from-alias candidate --to champion",
    ),
)
def promote_model(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A registered model.")],
    *,
    version: Annotated[int | None, typer.Option(help="The version to point at.")] = None,
    from_alias: Annotated[
        str | None, typer.Option(help="The alias whose version to point at.")
    ] = None,
    to: Annotated[str, typer.Option(help="The alias to set.")] = "champion",
    json: Json = False,
) -> None:
    """Point an alias, such as champion, at a version."""
    with console(as_json=json) as outside:
        from cellray.track import catalogue

        done = catalogue.promote(name, version=version, from_alias=from_alias, to=to)
        was = "new" if done["old"] is None else f"was {done['old']}"
        outside.answer(done, f"models:/{name}@{to} is version {done['new']} ({was})")
