"""What would stop a later step of a pipeline is found before its first one begins."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellray.atlas.columns import NAME, ROW, SOURCE
from cellray.atlas.intake import Intake, of_new
from cellray.atlas.manifest import Manifest
from cellray.atlas.staging import check_place
from cellray.atlas.storage import check_writable
from cellray.atlas.store import Atlas
from cellray.atlas.urls import is_remote
from cellray.core.errors import CellrayError, suggest
from cellray.core.genesets import read_gene_sets
from cellray.core.recipe import Recipe
from cellray.core.texts import read_text
from cellray.evaluation.export import check_folder
from cellray.learn.build import check_recipe
from cellray.pipeline.settings import STEPS, Ingest, Pipeline, Step
from cellray.pipeline.state import States
from cellray.score.ontology import Ontology
from cellray.tasks.task import Spec
from cellray.track.catalogue import find_version
from cellray.track.store import client, is_made, store_errors
from cellray.train.budget import Budget
from cellray.train.limits import dry_run
from cellray.train.setup import check_init
from cellray.train.storage import run_storage

REPORTS = ".cellray/reports"


@dataclass(frozen=True, eq=False)
class Checked:
    """A pipeline that can begin.

    Attributes
    ----------
    intake
        What its ingest has to do; None where that is done.
    budget
        What its pre-training takes; None where that is done, or its atlas is not there yet.
    """

    intake: Intake | None
    budget: Budget | None


def check(pipeline: Pipeline, kept: States, *, dry: bool) -> Checked:
    """Check all that can be checked before the first step.

    Parameters
    ----------
    pipeline
        What shall be done.
    kept
        What is done, or has begun.
    dry
        Whether nothing may be written; else object storage is tried out.

    Raises
    ------
    CellrayError
        A recipe or a suite that cannot be, a source that cannot be read, a place that is taken or
        cannot be written, an obs column that the atlas will not have, a model that is not there.
    """
    settings, recipe = pipeline.settings, pipeline.recipe
    todo = to_do(kept)
    check_recipe(recipe)
    check_init(recipe)
    if "pretrain" in todo:
        _check_start(recipe)
        where = run_storage(settings.pretrain.storage)
        if not is_remote(where):
            check_folder(Path(where))
        elif not dry:
            check_writable(where)
    specs = [spec for _, spec in pipeline.suite.specs(settings.evaluate.given()).values()]
    if "evaluate" in todo:
        check_folder(Path(settings.evaluate.out or REPORTS).expanduser().absolute())
        _check_files(specs)
    if "ingest" not in todo:
        atlas = Atlas.open((kept["ingest"].result or {})["atlas"])
        _check_names(recipe, specs, atlas.obs_columns, list(atlas.manifest.matrices))
        fits = dry_run(recipe, atlas.url, settings.pretrain.storage)
        return Checked(None, fits if "pretrain" in todo else None)
    intake = intake_of(settings.ingest)
    if not ("ingest" in kept and made_of(intake)):
        check_place(intake.url, overwrite=settings.ingest.overwrite)
    if recipe.data.split is not None:
        raise CellrayError(
            f"data.split={recipe.data.split}: an atlas that is ingested anew has no splits",
            "hold cells out with data.split_by or data.validation",
        )
    _check_names(recipe, specs, intake.contents.columns, list(intake.contents.matrices))
    return Checked(intake, None)


def to_do(kept: States) -> list[Step]:
    """List the steps that are not done."""
    return [step for step in STEPS if step not in kept or kept[step].result is None]


def intake_of(section: Ingest) -> Intake:
    """Read what the ingest is given."""
    words = section.model_dump(exclude={"sources", "out", "memory", "overwrite"})
    memory = int(section.memory * 2**30)
    return of_new(section.sources, section.out, **words, memory=memory)


def made_of(intake: Intake) -> Manifest | None:
    """Give the manifest of the atlas that is there, if these very sources were made into it."""
    try:
        manifest = Atlas.open(intake.url).manifest
    except CellrayError:  # none, or one that is being written
        return None
    wanted = intake.document()["sources"]
    made = [{name: one[name] for name in wanted[0]} for one in manifest.sources]
    same = made == wanted and manifest.seed == intake.contents.seed
    return manifest if same and list(manifest.matrices) == list(intake.contents.matrices) else None


@store_errors()
def _check_start(recipe: Recipe) -> None:
    """Raise unless the model is there that training begins with."""
    if recipe.init.model is None:
        return
    if not is_made():
        raise CellrayError(
            f"init.model is {recipe.init.model}, and no model is registered",
            "set MLFLOW_TRACKING_URI to the store that has it",
        )
    find_version(client(), recipe.init.model)


def _check_files(specs: Sequence[Spec]) -> None:
    """Read the files and atlases that the evaluation names."""
    for spec in specs:
        if spec.gene_sets is not None:
            read_gene_sets(spec.gene_sets)
        if spec.ontology is not None:
            Ontology.of(spec.ontology)
        if spec.orthologs is not None:
            read_text(spec.orthologs, "orthologs")
        if spec.reference is not None:
            Atlas.open(spec.reference)


def _check_names(
    recipe: Recipe, specs: Sequence[Spec], columns: Sequence[str], matrices: Sequence[str]
) -> None:
    """Raise unless an atlas has the obs columns and matrices that the later steps name."""
    data, probe = recipe.data, recipe.probe
    named: dict[str, Any] = {
        f"data.{key}": getattr(data, key)
        for key in ("split_by", "weights", "balance", "stratify", "batch_key")
    }
    named |= {f"data.obs.{number}": name for number, name in enumerate(data.obs)}
    named["probe.label"] = probe.label if probe.atlas is None else None
    for spec in specs:
        named |= {f"evaluate.{key}": getattr(spec, key) for key in ("label", "batch")}
        named["evaluate.split_by"] = spec.held_out
        _check_known(named, columns, "obs column")
    along = {f"data.matrices.{number}": path for number, path in enumerate(data.matrices)}
    for spec in specs:
        _check_known(along | {"evaluate.matrix": spec.matrix}, matrices, "matrix")


def _check_known(named: dict[str, Any], known: Sequence[str], what: str) -> None:
    for key, name in named.items():
        if name is not None and name not in {*known, SOURCE, ROW, NAME}:
            raise CellrayError(
                f"{key} is '{name}', and the atlas has no such {what}", suggest(name, known)
            )
