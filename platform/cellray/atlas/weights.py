"""Weights of cells: how often each comes in an epoch, as a `Selection` holds it."""

import numpy as np
from numpy.typing import NDArray

from cellray.atlas.selection import (
    CHUNK,
    MOST_GROUPS,
    ONCE,
    Codes,
    Selection,
    chunks_of,
    count_codes,
    groups_of,
)
from cellray.core.errors import CellrayError

MOST_CODES = 1 << 16


def select(
    n_cells: int,
    *,
    kept: NDArray[np.bool_] | None = None,
    codes: Codes | None = None,
    weights: NDArray[np.float64] | None = None,
    size: int | None = None,
    replacement: bool = False,
    strata: Codes | None = None,
    seed: int = 0,
) -> Selection:
    """Select cells, all alike or by weight.

    Parameters
    ----------
    n_cells
        Cells of the atlas.
    kept
        Which cells may come, shape (n_cells,); None is all.
    codes
        Class of each cell, shape (n_cells,), from 0 on; None is one class.
    weights
        Weight of a cell of each class, shape (n_classes,): how often it comes is in proportion;
        None weighs all alike.
    size
        Cells of an epoch. None is, with replacement, as many as may come; without it, as many as
        keep the proportions when the heaviest cell comes every time.
    replacement
        Whether a cell may come more than once an epoch. Without it, a cell whose share would be
        more than one comes every time, and the others share the rest in proportion.
    strata
        As of `Selection`.
    seed
        Seed of the draws.

    Raises
    ------
    CellrayError
        No cell may come, or not enough of them without replacement, or too many classes.
    """
    if codes is None:
        codes, weights = np.zeros(n_cells, np.uint8), np.ones(1)
    weights = np.ones(int(codes.max(initial=0)) + 1) if weights is None else weights
    n_classes = len(weights)
    if n_classes >= MOST_CODES:
        raise CellrayError(
            f"{n_classes:,} classes are too many to weigh",
            f"choose a column with fewer than {MOST_CODES:,} values",
        )
    dtype = np.dtype(np.uint8 if n_classes < MOST_GROUPS else np.uint16)
    stored: Codes = np.zeros(n_cells, dtype)
    where = True if kept is None else kept
    np.add(codes, 1, out=stored, where=where, dtype=dtype, casting="unsafe")
    counts = count_codes(stored, n_classes + 1)
    weights = np.concatenate([[0.0], weights])
    weights[counts == 0] = 0.0
    expected = expected_numbers(counts, weights, size=size, replacement=replacement)
    n = round(float(counts @ expected))
    units = _to_units(expected)
    starts = _axis(stored, units, counts, n)
    return Selection(n_cells, n, seed, stored, units, starts, strata)


def expected_numbers(
    counts: NDArray[np.int64],
    weights: NDArray[np.float64],
    *,
    size: int | None,
    replacement: bool,
) -> NDArray[np.float64]:
    """Give how often a cell of each class comes in an epoch on average.

    Parameters
    ----------
    counts, weights
        Cells of each class and their weight, shape (n_classes,).
    size, replacement
        As of `select`.

    Returns
    -------
    ndarray
        Shape (n_classes,), float64; at most 1 without replacement; ``counts @ result`` is whole.

    Raises
    ------
    CellrayError
        As `select`.
    """
    able = int(counts[weights > 0].sum())
    if not able:
        raise CellrayError("no cell is left to train on", "check the split and the weights")
    total = float(counts @ weights)
    if size is None:
        size = able if replacement else int(total / weights.max() * (1 + 1e-12))
    if replacement:
        return weights * (size / total)
    if size > able:
        raise CellrayError(
            f"an epoch of {size:,} cells cannot be drawn from {able:,} without replacement",
            "set data.epoch_cells lower, or data.replacement to true",
        )
    # The heaviest classes come whole as long as their share would be more than one each.
    order = np.argsort(-weights, kind="stable")
    heavy, many = weights[order], counts[order]
    above = np.cumsum(many) - many
    below = total - (np.cumsum(many * heavy) - many * heavy)
    whole = (heavy > 0) & (heavy * (size - above) >= below * (1 - 1e-12))
    taken = int(np.argmin(whole)) if not whole.all() else len(whole)
    expected = np.ones_like(weights)
    rest = order[taken:]
    if len(rest):
        left = float(counts[rest] @ weights[rest])
        expected[rest] = weights[rest] * ((size - int(many[:taken].sum())) / left if left else 0.0)
    return expected


def _to_units(expected: NDArray[np.float64]) -> NDArray[np.int64]:
    """Round to units; what is no whole number of times stays none."""
    whole = np.rint(expected)
    exact = np.abs(expected - whole) <= 1e-13 * np.maximum(whole, 1)
    low = np.floor(expected).astype(np.int64) * ONCE
    rounded = np.clip(np.rint(expected * ONCE).astype(np.int64), low + 1, low + ONCE - 1)
    return np.where(exact, whole.astype(np.int64) * ONCE, rounded)


def _axis(
    codes: Codes, units: NDArray[np.int64], counts: NDArray[np.int64], n: int
) -> NDArray[np.int64]:
    """Lay groups and chunks on the axis, which ends at ``n * ONCE``: `Selection.starts`."""
    n_chunks = chunks_of(len(codes))
    groups = int(groups_of(np.array([len(units) - 1]), len(units))[0]) + 1
    lengths = np.zeros((groups, n_chunks), np.int64)
    rounded = np.zeros((groups, n_chunks), np.int64)
    for chunk in range(n_chunks):
        here = np.bincount(codes[chunk * CHUNK : (chunk + 1) * CHUNK], minlength=len(units))
        if groups == 1:
            lengths[0, chunk] = here @ units
            rounded[0, chunk] = here[units % ONCE != 0].sum()
        else:
            lengths[:, chunk] = here * units
            rounded[:, chunk] = here * (units % ONCE != 0)
    short = n * ONCE - int(counts @ units)
    shared = short * np.cumsum(rounded.reshape(-1)) // max(int(rounded.sum()), 1)
    return np.concatenate([[0], np.cumsum(lengths.reshape(-1)) + shared])
