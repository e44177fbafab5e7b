"""Which cells are trained on and which are held out."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellray.core.errors import CellrayError, suggest
from cellray.core.seeds import generator

Cells = NDArray[np.int64]


def split_cells(
    obs: pd.DataFrame | None, n_cells: int, *, validation: float, split_by: str | None, seed: int
) -> tuple[Cells, Cells]:
    """Split cells into training and validation.

    Parameters
    ----------
    obs
        Table of all cells that holds `split_by`; None when `split_by` is None.
    n_cells
        Number of cells.
    validation
        Fraction of the cells to hold out, in [0, 1); 0 holds out none.
    split_by
        A column (a donor, a study): its values go to one side or the other as a whole, in random
        order until the fraction is reached. Cells without a value are one group of their own.
        None holds out one run of cells, from a random place on: the atlas is shuffled.
    seed
        The same arguments and seed give the same split.

    Returns
    -------
    train, validation
        Positions of cells, sorted, int64; disjoint, and together all cells. Neither is empty
        unless `validation` is 0.

    Raises
    ------
    CellrayError
        A fraction outside [0, 1), no such column, a column with one value only, or a single cell
        to share.
    """
    if not 0 <= validation < 1:
        raise CellrayError(f"validation is {validation}", "give a fraction from 0 up to below 1")
    everything = np.arange(n_cells, dtype=np.int64)
    if validation == 0:
        return everything, everything[:0]
    rng = generator(seed, "split")
    if split_by is None:
        if n_cells < 2:
            raise CellrayError(f"{n_cells} cells cannot be split", "set validation to 0")
        size = min(max(round(n_cells * validation), 1), n_cells - 1)
        held = np.zeros(n_cells, bool)
        # The store is shuffled: a run of it is a random sample, and leaves runs to read around it.
        held[(rng.integers(n_cells) + np.arange(size)) % n_cells] = True
    else:
        held = _hold_groups(_group_codes(obs, n_cells, split_by), validation, split_by, rng)
    return everything[~held], everything[held]


def _group_codes(obs: pd.DataFrame | None, n_cells: int, split_by: str) -> Cells:
    """Give groups numbers in the order of their sorted names, missing values last."""
    columns = [] if obs is None else [str(name) for name in obs.columns]
    if obs is None or split_by not in obs:
        raise CellrayError(f"no obs column '{split_by}' to split by", suggest(split_by, columns))
    if len(obs) != n_cells:
        msg = f"obs has {len(obs)} rows for {n_cells} cells"
        raise ValueError(msg)
    codes, _ = pd.factorize(obs[split_by].astype("object"), sort=True, use_na_sentinel=True)
    return np.where(codes < 0, codes.max(initial=-1) + 1, codes).astype(np.int64)


def _hold_groups(
    codes: Cells, validation: float, split_by: str, rng: np.random.Generator
) -> NDArray[np.bool_]:
    sizes = np.bincount(codes)
    if len(sizes) < 2:
        raise CellrayError(
            f"obs column '{split_by}' has one value only, so no group can be held out",
            "split by another column, or set split_by to null",
        )
    order = rng.permutation(len(sizes))
    reached = np.cumsum(sizes[order]) >= validation * len(codes)
    taken = min(int(reached.argmax()) + 1, len(sizes) - 1)
    return np.isin(codes, order[:taken])
