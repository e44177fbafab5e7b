"""``cellray models``: the Model Registry from the command line."""

from typing import Annotated

import typer

from cellray import answers_models, completion
from cellray.cli_verbs import Json, ModelName, examples
from cellray.console import console

models = typer.Typer(help="List, show and promote registered models.")


@models.command("list", epilog=examples("cellray models list"))
def list_models(*, json: Json = False) -> None:
    """List registered models with their versions and aliases."""
    with console(as_json=json) as to:
        from cellray.track import catalogue

        found = catalogue.list_models()
        to.answer(found, answers_models.models_text(found))


@models.command("show", epilog=examples("cellray models show plates"))
def show_model(
    name: ModelName,
    *,
    json: Json = False,
) -> None:
    """Show a model's versions: aliases, tags, metrics."""
    with console(as_json=json) as to:
        from cellray.track import catalogue

        found = catalogue.show_model(name)
        to.answer(found, answers_models.model_text(found))


@models.command(
    "promote",
    epilog=examples(
        "cellray models promote plates --from 3",
        "cellray models promote plates --from challenger --if-better model/knn/macro_f1",
        "cellray models promote plates --from 3 --suite standard",
    ),
)
def promote_model(
    name: ModelName,
    source: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="ALIAS|VERSION",
            help="Which version to point at.",
            autocompletion=completion.versions_of,
        ),
    ],
    *,
    to: Annotated[
        str,
        typer.Option(
            metavar="ALIAS", help="The alias to set.", autocompletion=completion.aliases_of
        ),
    ] = "champion",
    if_better: Annotated[
        str | None,
        typer.Option(
            metavar="METRIC",
            help="Only if it is better by this metric, wherever both versions were evaluated.",
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Only if its evaluations pass the gates of this suite, wherever it was evaluated.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Point an alias, such as champion, at a version.

    With --if-better the two versions are compared as 'cellray evaluate' scored them: on the same
    atlas, with the same labels, splits and seeds. What is not better is refused with both numbers.
    With --suite the evaluations that MLflow holds of the version have to pass the suite's gates.
    """
    with console(as_json=json) as outside:
        if suite is None:
            from cellray.track.promotion import promote

            done = promote(name, source=source, to=to, if_better=if_better)
        else:
            from cellray.evaluation.gates import promote_gated
            from cellray.evaluation.suite import Suite

            asked = Suite.load(suite)
            done = promote_gated(
                name, source=source, suite=asked, file=suite, to=to, if_better=if_better
            )
        outside.answer(done, answers_models.promoted_text(done))
