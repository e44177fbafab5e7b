"""What follows from a recipe and an atlas before anything is trained."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cellray.atlas.choose import Choice, check_read, choose, validation_cells
from cellray.atlas.genes import variable_genes
from cellray.atlas.naming import named_table
from cellray.atlas.plan import spans_of
from cellray.atlas.splits import TRAIN
from cellray.atlas.store import Atlas
from cellray.core.errors import CellrayError
from cellray.core.genes import SETS, Genes, GeneSets
from cellray.core.genesets import match_gene_sets, read_gene_sets
from cellray.core.recipe import Recipe
from cellray.learn.adapt import Overlap
from cellray.learn.batch import Batch
from cellray.learn.build import check_recipe
from cellray.learn.embed import gene_columns
from cellray.learn.learner import Learner, normalise
from cellray.train.probe import LabelledCells, choose_labelled

VALIDATION_CELLS = 10_000
SAMPLE_CELLS = 2_048

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setup:
    """What follows from a recipe and an atlas before anything is trained."""

    choice: Choice
    validation_cells: NDArray[np.int64]
    genes: tuple[str, ...]
    batches: tuple[str, ...] = ()
    sets: Mapping[str, GeneSets] = field(default_factory=dict)
    initial: Mapping[str, Tensor] | None = None
    overlap: Overlap | None = None
    labelled: LabelledCells | None = None

    def learner(self, recipe: Recipe) -> Learner:
        """Build the learner that training begins with."""
        learner = Learner.of(recipe, self.genes, batches=self.batches, sets=self.sets)
        if self.initial is not None:
            learner.load_state_dict(self.initial)
        return learner

    def describe(self) -> dict[str, Any]:
        """Give the plan, and what each epoch leaves out or repeats, for the run's record."""
        plan = self.choice.plan
        tails = {
            epoch: [asdict(span) for span in spans_of(np.sort(plan.tail_positions(epoch)))]
            for epoch in range(plan.epochs)
        }
        return {
            **asdict(plan),
            "steps": plan.steps,
            "training_cells": self.choice.n_train,
            "validation_cells": len(self.validation_cells),
            "tail_cells": plan.tail_cells,
            "tail_positions_by_epoch": tails,
        }

    def notes(self) -> dict[str, str]:
        """Say what matched: genes of gene sets, genes and weights of another model."""
        notes = {}
        if self.sets:
            found = [f"{path}: {sets}" for path, sets in self.sets.items()]
            notes["gene_sets_matched"] = "; ".join(found)
        if self.overlap is not None:
            notes["init_genes_matched"] = f"{self.overlap.genes} of {self.overlap.of}"
            notes["init_weights_fresh"] = " ".join(self.overlap.fresh)
        return notes

    def params(self) -> dict[str, str]:
        """Say what an epoch holds, what it leaves out or repeats, and the notes, for MLflow."""
        plan = self.choice.plan
        words = {"drop": "dropped", "pad": "repeated"}
        probed = {} if self.labelled is None else {"probe_digest": self.labelled.atlas[1]}
        return {
            **probed,
            "epoch_cells": str(plan.n_cells),
            f"epoch_cells_{words[plan.tail]}": str(plan.tail_cells),
            **self.notes(),
        }


def gene_set_files(recipe: Recipe) -> list[str]:
    """List the files of gene sets that the views of a recipe name."""
    named = (part.settings[SETS] for part in recipe.all_views if SETS in part.settings)
    return list(dict.fromkeys(named))


def prepare(recipe: Recipe, atlas: Atlas) -> Setup:
    """Split the cells, choose the genes and make the plan; refuse what cannot be trained."""
    check_recipe(recipe)
    sets_read = {path: read_gene_sets(path) for path in gene_set_files(recipe)}
    data = recipe.data
    check_read(data, atlas)
    choice = choose(recipe, atlas)
    genes = atlas.genes
    if data.genes is not None:
        train = np.flatnonzero(choice.sides == TRAIN)
        genes = variable_genes(atlas, train, data.genes, seed=recipe.seed)
    validation = validation_cells(choice, atlas, VALIDATION_CELLS)
    batches = () if data.batch_key is None else _categories(atlas, data.batch_key)
    sets = {path: _match(path, read, atlas, genes) for path, read in sets_read.items()}
    names = tuple(map(str, genes))
    check_recipe(recipe, Genes(names, sets))
    labelled = choose_labelled(recipe, atlas, choice.sides, names)
    setup = Setup(choice, validation, names, batches, sets, labelled=labelled)
    check_init(recipe)
    setup = _begin(recipe, atlas, setup, setup.learner(recipe))
    facts = ", ".join(f"{name}={value}" for name, value in setup.params().items())
    logger.info("%d steps; %s", choice.plan.steps, facts)
    return setup


def _begin(recipe: Recipe, atlas: Atlas, setup: Setup, learner: Learner) -> Setup:
    """Give the weights and buffers that all workers start from, if not those of the seed."""
    overlap = None
    if learner.encoder.needs_sample:
        train = np.flatnonzero(setup.choice.sides == TRAIN)
        batch = Batch.of(atlas.read_cells(train[:SAMPLE_CELLS]))  # the atlas is shuffled
        columns = torch.from_numpy(gene_columns(setup.genes, atlas.genes))
        counts_BG = batch.counts(columns, n_genes=len(setup.genes))
        learner.encoder.fit(normalise(counts_BG, batch.totals()))
        learner.objective.begin(learner.encoder)
    if recipe.init.model is not None:
        from cellray.track import models  # MLflow takes seconds, and workers get this module too

        overlap = learner.start_from(models.resolve(recipe.init.model).learner)
        logger.info(
            "started from %s: %d of %d genes, %d weights, %d begin anew",
            recipe.init.model,
            overlap.genes,
            overlap.of,
            len(overlap.tensors),
            len(overlap.fresh),
        )
    elif not learner.encoder.needs_sample:
        return setup
    return replace(setup, initial=learner.state_dict(), overlap=overlap)


def check_init(recipe: Recipe) -> None:
    """Refuse to keep random weights as they are."""
    init = recipe.init
    if init.model is None and (init.freeze != "none" or init.lora_rank):
        what = f"init.freeze={init.freeze}" if init.freeze != "none" else "init.lora_rank"
        raise CellrayError(
            f"{what} keeps weights that nothing has trained",
            "name the model that they come from with init.model, or leave it out",
        )


def _match(
    path: str, sets: Mapping[str, tuple[str, ...]], atlas: Atlas, genes: NDArray[np.str_]
) -> GeneSets:
    """Find the genes of gene sets by any kind of name that the atlas's var holds."""
    names = named_table("the atlas", atlas.var).names.values()
    columns = gene_columns(genes, atlas.genes)
    return match_gene_sets(path, sets, map(list, names), columns)


def _categories(atlas: Atlas, column: str) -> tuple[str, ...]:
    if not all(part.is_categorical(column) for part in atlas.parts):
        raise CellrayError(
            f"obs column '{column}' holds no categories, so it cannot be data.batch_key",
            "name a column of names: a donor, a study",
        )
    return tuple(map(str, atlas.categories(column)))
