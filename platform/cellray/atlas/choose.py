"""From a recipe to the cells of an atlas: what is held out, what an epoch holds, in which order."""

from dataclasses import dataclass
from math import lcm
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellray.atlas.plan import Plan, make_plan
from cellray.atlas.selection import Codes, Selection, count_codes
from cellray.atlas.splits import (
    TRAIN,
    VALIDATION,
    Sides,
    SplitSpec,
    draw_split,
    group_codes,
    stored_split,
)
from cellray.atlas.store import Atlas
from cellray.atlas.weights import MOST_CODES, select
from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe
from cellray.core.sections import Data


@dataclass(frozen=True, eq=False)
class Choice:
    """The cells of a run.

    Attributes
    ----------
    plan, selection
        Which cells every step trains on.
    sides
        Index into `cellray.atlas.splits.SIDES` of each cell, shape (n_cells,), uint8.
    """

    plan: Plan
    selection: Selection
    sides: Sides

    @property
    def n_train(self) -> int:
        """Training cells, each counted once, whatever they weigh."""
        return int((self.sides == TRAIN).sum())


def choose(recipe: Recipe, atlas: Atlas) -> Choice:
    """Split an atlas's cells, weigh them and plan the run, as a recipe says.

    Raises
    ------
    CellrayError
        No such split or column, weights that are none, or sizes that do not fit each other.
    """
    data = recipe.data
    if data.split is not None:
        sides = stored_split(atlas, data.split)
    else:
        spec = SplitSpec(by=data.split_by, validation=data.validation, seed=recipe.seed)
        sides = draw_split(atlas, spec)
    selection = _select(atlas, data, sides, recipe.seed)
    plan = make_plan(
        selection.n,
        batch_size=data.batch_size,
        epochs=recipe.train.epochs,
        seed=recipe.seed,
        world=lcm(*recipe.train.worlds),
        slab_batches=data.slab_batches,
        mix=data.mix,
        tail=data.tail,
        parts=selection.part_sizes(atlas.part_cells),
        stratified=data.stratify is not None,
    )
    return Choice(plan, selection, sides)


def check_read(data: Data, atlas: Atlas) -> None:
    """Raise unless an atlas has what every batch is to bring, and may be read.

    Raises
    ------
    CellrayError
        No such column or matrix, a column of strings, or shards that are damaged or not to be
        read where the parts begin.
    """
    for column in data.columns:
        atlas.require_column(column)
    for path in data.matrices:
        atlas.require_matrix(path)
    first = atlas.probe(obs=data.columns, matrices=data.matrices)
    for name, values in first.obs.items():
        if values.dtype.kind not in "biuf":
            raise CellrayError(
                f"obs column '{name}' holds {values.dtype}, which is no number and cannot be "
                "trained on",
                "leave it out, or store it as a categorical column, whose codes arrive",
            )


def validation_cells(choice: Choice, atlas: Atlas, most: int) -> NDArray[np.int64]:
    """List validation cells, as many as `some_cells` keeps, ascending, int64."""
    return some_cells(np.flatnonzero(choice.sides == VALIDATION), atlas, most)


def some_cells(cells: NDArray[np.int64], atlas: Atlas, most: int) -> NDArray[np.int64]:
    """Keep `most` of ascending cells at most, of every part in proportion, at random."""
    if len(cells) <= most:
        return cells
    # The first ones of each part are a random sample that reads as one run.
    parts = np.split(cells, np.searchsorted(cells, np.cumsum(atlas.part_cells)[:-1]))
    ends = np.rint(np.cumsum([len(part) for part in parts]) * (most / len(cells))).astype(int)
    sizes = np.diff(ends, prepend=0)
    return np.concatenate([part[:size] for part, size in zip(parts, sizes, strict=True)])


def _select(atlas: Atlas, data: Data, sides: Sides, seed: int) -> Selection:
    kept = sides == TRAIN
    strata = None
    if data.stratify is not None:
        strata, _ = group_codes(atlas.obs([data.stratify])[data.stratify])
    codes: Codes | None = None
    weights = None
    if data.balance is not None:
        codes, names = group_codes(atlas.obs([data.balance])[data.balance])
        weights = 1 / np.maximum(count_codes(codes[kept], len(names) + 1), 1)
    elif data.weights is not None:
        codes, weights = weight_codes(atlas.obs([data.weights])[data.weights])
    elif kept.all() and data.epoch_cells is None:
        return Selection.everything(atlas.n_cells, strata=strata)
    return select(
        atlas.n_cells,
        kept=kept,
        codes=codes,
        weights=weights,
        size=data.epoch_cells,
        replacement=data.replacement,
        strata=strata,
        seed=seed,
    )


def weight_codes(column: "pd.Series[Any]") -> tuple[Codes, NDArray[np.float64]]:
    """Give the distinct weights of a column numbers.

    Of more than 65,534 distinct weights, positive ones are rounded on a logarithmic scale: by 1e-4
    of themselves at most where the largest is up to 490,000 times the least.

    Parameters
    ----------
    column
        Numbers, truth values among them, of all cells, named for messages.

    Returns
    -------
    codes, weights
        Number of each cell's weight, shape (n_cells,), and the weights, float64.

    Raises
    ------
    CellrayError
        No numbers, or missing, infinite or negative ones, or nothing but zeros.
    """
    name = column.name
    if not pd.api.types.is_numeric_dtype(column):
        raise CellrayError(
            f"obs column '{name}' holds no numbers to weigh cells by",
            f"name a numeric column, or balance its classes with data.balance={name}",
        )
    values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    for bad, word in ((~np.isfinite(values), "missing or infinite"), (values < 0, "negative")):
        if bad.any():
            raise CellrayError(
                f"obs column '{name}' has {bad.sum():,} {word} weights",
                "give every cell a weight of 0 or more",
            )
    if not values.any():
        raise CellrayError(f"all weights in obs column '{name}' are 0", "name another column")
    # A table of the distinct ones takes less memory than sorting them all.
    codes, weights = pd.factorize(values, sort=True)
    if len(weights) >= MOST_CODES:
        least = weights[weights > 0][0]
        step = max(2e-4, np.log(weights[-1] / least) / (MOST_CODES - 4))
        marks = np.zeros(len(weights), np.int64)
        marks[weights > 0] = 1 + np.rint(np.log(weights[weights > 0] / least) / step)
        codes = marks[codes]
        weights = least * np.exp((np.arange(marks[-1] + 1) - 1) * step)
        weights[0] = 0.0
    return codes.astype(np.min_scalar_type(len(weights))), weights
