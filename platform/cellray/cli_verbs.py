"""The verbs of the command line, each a thin call of one function of the package.

Whatever is heavy is imported inside the functions, so that help and completion stay instant.
"""

import csv
import io
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cellray import answers, completion
from cellray.console import console

if TYPE_CHECKING:
    from cellray.core.recipe import Recipe

EPOCHS = 60
"""Passes of the demo over its 700 cells: about half a minute on two cores."""

ATLAS = "A folder or s3://bucket/path."

verbs = typer.Typer()

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else there.")
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Say what would be done, or refused; start and write nothing."),
]
AtlasUrl = Annotated[str, typer.Option("--atlas", metavar="URL", help=ATLAS)]
ModelUri = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="models:/NAME@alias, models:/NAME/3 or runs:/ID.",
        autocompletion=completion.model_uris,
    ),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option("--recipe", help="YAML file; without it, the masked autoencoder's defaults."),
]
ModelName = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="A registered model.", autocompletion=completion.model_names
    ),
]
Workers = Annotated[
    int | None, typer.Option(help="Ray Train workers; as --set train.num_workers=N.")
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one key of the recipe, such as train.epochs=10. Repeatable.",
        autocompletion=completion.recipe_changes,
    ),
]


def examples(*lines: str) -> str:
    """Lay out example commands for the end of a help page."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


@verbs.command(epilog=examples("cellray ui --port 5050"))
def ui(
    *,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000,
    json: Json = False,
) -> None:
    """Browse runs and models in MLflow's UI.

    Serves the configured store on this machine only, until Ctrl-C.
    """
    with console(as_json=json) as to:
        from cellray.ui import serving

        with serving(port) as (url, server):
            if server is None:
                to.answer({"url": url}, f"runs and models are at {url}: open it in a browser")
                return
            to.answer({"url": url}, f"runs and models are at {url}; Ctrl-C ends it")
            with suppress(KeyboardInterrupt):
                server.wait()


@verbs.command(epilog=examples("cellray demo", "cellray demo --h5ad counts.h5ad --label cell_type"))
def demo(
    *,
    h5ad: Annotated[
        str | None, typer.Option(help="Counts of your own; 700 PBMC of scanpy's by default.")
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="obs column with the cell types of --h5ad.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the cells.")] = EPOCHS,
    work: Annotated[str, typer.Option(help="Folder for what it makes.")] = ".cellray/demo",
    json: Json = False,
) -> None:
    """Take real counts to an evaluated model.

    All verbs in order, saying in a line what each does.

    It fails unless the model embeds cell types better than the same encoder untrained.
    """
    with console(as_json=json) as to:
        from cellray.demo import run

        done = run(to, h5ad=h5ad, label=label, epochs=epochs, work=Path(work))
        to.answer(done, answers.demo_text(done))
    if not done["passed"]:
        raise typer.Exit(1)


@verbs.command(
    epilog=examples(
        "cellray doctor", "cellray doctor --s3 s3://bucket/path", "cellray doctor --json"
    )
)
def doctor(
    *,
    s3: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="s3://bucket/path to put, read and delete a small object below."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Look what this machine has, and say how to mend what is wrong.

    Python, packages, torch and GPU, Ray, MLflow, object storage, disk, memory. RAY_ADDRESS,
    MLFLOW_TRACKING_URI and AWS_* are taken as all verbs take them. Ends with status 2 where a
    check fails; a warning is no failure.
    """
    with console(as_json=json) as to:
        from cellray.doctor import diagnose, passed

        found = diagnose(s3, to.progress)
        checks = [{"check": name, **vars(one)} for name, one in found.items()]
        to.answer({"passed": passed(found), "checks": checks}, answers.doctor_text(checks))
    if not passed(found):
        raise typer.Exit(2)


def recipe_of(file: Path | None, changes: list[str] | None, num_workers: int | None) -> "Recipe":
    """Read a recipe, or take the default, with the changes of a command line."""
    from cellray.core.recipe import Recipe

    chosen = list(changes or ())
    chosen += [f"train.num_workers={num_workers}"] if num_workers is not None else []
    return Recipe.load(file, chosen) if file else Recipe().with_(chosen)


def words(text: str | None) -> list[str] | None:
    """Take apart a list that is given as a,b,c; a word with a comma stands in quotes."""
    if text is None:
        return None
    row = next(csv.reader([text], skipinitialspace=True), [])
    return [word.strip() for word in row if word.strip()]


def quoted(parts: Iterable[object]) -> str:
    """Write what `words` takes apart."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(parts)
    return text.getvalue()
