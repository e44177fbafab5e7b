"""Which cells a task scores, and how they are split into those that it learns from and the others.

Shape suffixes: N cells.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.model_selection import GroupShuffleSplit, StratifiedShuffleSplit

from cellray.core.errors import CellrayError
from cellray.tasks.task import Spec, sample_cells

TEST_SHARE = 0.3
MOST_CELLS = 20_000
"""Of tasks whose cost grows faster than the cells, or that train."""
DRAWS = 50
"""Draws a wanted split, in the search for splits that hold out different groups."""

Cells = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Positions of the training and of the test cells, sorted."""

    train: Cells
    test: Cells


def usable_cells(obs: pd.DataFrame, spec: Spec) -> tuple[Cells, list[str]]:
    """Leave out cells that cannot be scored.

    Returns
    -------
    cells : ndarray
        Positions of the cells with a label that at least two cells have and, when split by a
        column, with a value of it; sorted, int64.
    notes : list of str
        What was left out, and how much.

    Raises
    ------
    CellrayError
        Fewer than two labels remain.
    """
    has, notes = cells_with(obs, (spec.label, spec.split_by))
    labelled = np.zeros(len(obs), bool)
    labelled[has] = True
    names = obs[spec.label].astype(str)
    sizes = names[labelled].value_counts()
    single = sorted(sizes.index[sizes < 2])
    if single:
        shown = ", ".join(f"'{name}'" for name in single[:5])
        more = f" and {len(single) - 5} more" if len(single) > 5 else ""
        notes.append(
            f"{len(single):,} values of '{spec.label}' with a single cell were left out: "
            f"{shown}{more}."
        )
    labelled &= ~names.isin(single).to_numpy(dtype=bool)
    classes = int(np.count_nonzero(sizes >= 2))
    if classes < 2:
        found = "no value that two cells share" if classes == 0 else "one value only"
        raise CellrayError(
            f"obs column '{spec.label}' has {found}, so there is nothing to predict",
            "choose another --label",
        )
    return np.flatnonzero(labelled).astype(np.int64), notes


def usable_sample(obs: pd.DataFrame, spec: Spec, purpose: str) -> tuple[Cells, list[str]]:
    """Draw at most `MOST_CELLS`, and leave out of these what cannot be scored.

    In this order: a label may be left with one cell by the sample.

    Parameters
    ----------
    obs, spec
        As of `usable_cells`.
    purpose
        What draws other cells than another purpose.

    Returns
    -------
    cells, notes
        As of `usable_cells`.

    Raises
    ------
    CellrayError
        As `usable_cells`.
    """
    sampled = sample_cells(len(obs), MOST_CELLS, spec.seed, purpose)
    kept, notes = usable_cells(obs.iloc[sampled], spec)
    if len(sampled) < len(obs):
        notes = [f"{len(sampled):,} of the cells were sampled at random.", *notes]
    return sampled[kept], notes


def cells_with(obs: pd.DataFrame, columns: Iterable[str | None]) -> tuple[Cells, list[str]]:
    """Leave out cells that have no value in one of the columns.

    Returns
    -------
    cells : ndarray
        Positions of the others, sorted, int64.
    notes : list of str
        How many were left out.
    """
    kept, notes = np.ones(len(obs), bool), []
    for column in columns:
        if column is not None:
            has = obs[column].notna().to_numpy(dtype=bool)
            if missing := int(np.count_nonzero(kept & ~has)):
                notes.append(f"{missing:,} cells have no '{column}' and were left out.")
            kept &= has
    return np.flatnonzero(kept).astype(np.int64), notes


def make_splits(labels: NDArray[np.str_], groups: NDArray[Any] | None, spec: Spec) -> list[Split]:
    """Split cells 70/30 several times.

    Without groups the splits are scikit-learn's ``StratifiedShuffleSplit`` with the seed as its
    ``random_state``. With groups, whole groups are held out, a different set of them each time:
    a few groups allow fewer splits than are asked for.

    Parameters
    ----------
    labels
        Shape (N,).
    groups
        Shape (N,), or None.
    spec
        Number of splits and seed.

    Raises
    ------
    CellrayError
        One group only, or too few cells for every class to be on both sides.
    """
    if groups is None:
        classes = len(np.unique(labels))
        if round(len(labels) * TEST_SHARE) < classes:
            raise CellrayError(
                f"{len(labels)} cells are too few for a stratified split of {classes} values of "
                f"'{spec.label}'",
                "evaluate on an atlas with more cells, or choose a coarser --label",
            )
        splitter = StratifiedShuffleSplit(spec.splits, test_size=TEST_SHARE, random_state=spec.seed)
        return [_split(train, test) for train, test in splitter.split(labels, labels)]
    if len(np.unique(groups)) < 2:
        raise CellrayError(
            f"obs column '{spec.split_by}' has one value only, so none can be held out",
            "choose another --split-by, or hold out single cells by --split-by cells",
        )
    found: dict[bytes, Split] = {}
    draws = GroupShuffleSplit(
        spec.splits * DRAWS, test_size=TEST_SHARE, random_state=spec.seed
    ).split(labels, groups=np.unique(groups, return_inverse=True)[1])
    for train, test in draws:
        split = _split(train, test)
        found.setdefault(split.test.tobytes(), split)
        if len(found) == spec.splits:
            break
    return list(found.values())


def _split(train: Cells, test: Cells) -> Split:
    return Split(np.sort(train).astype(np.int64), np.sort(test).astype(np.int64))
