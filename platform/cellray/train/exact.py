"""Proof that an epoch trained on the planned cells: their number, and a sum of hashes.

A sum does not depend on the order in which cells came, nor on how many workers shared them, and
it goes on where a checkpoint left it. Two different multisets of cells have the same 63 bits by
chance only.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellray.atlas.plan import Plan, share_cells
from cellray.atlas.selection import Selection

MASK = np.uint64((1 << 63) - 1)  # sums travel as int64


def hash_cells(cells: NDArray[np.int64]) -> int:
    """Sum the hashes of cells, in [0, 2**63), by the finaliser of SplitMix64."""
    x = cells.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return int((x ^ (x >> np.uint64(31))).sum(dtype=np.uint64) & MASK)


def planned(plan: Plan, selection: Selection, epoch: int) -> tuple[int, int]:
    """Give the number of cells that an epoch trains on, by the plan alone, and their hash."""
    total = 0
    for slab in range(epoch * plan.slabs_per_epoch, (epoch + 1) * plan.slabs_per_epoch):
        total += hash_cells(share_cells(plan, selection, slab))
    return plan.slabs_per_epoch * plan.slab, total & int(MASK)


def check_cells(plan: Plan, selection: Selection, epoch: Mapping[str, Any]) -> None:
    """Raise unless an epoch was trained on the planned cells and no others.

    Parameters
    ----------
    plan, selection
        Which cells are planned.
    epoch
        Number of the ``epoch`` from 1 on, how many ``cells`` it was trained on, and their
        ``cells_hash``.

    Raises
    ------
    RuntimeError
        Other cells.
    """
    number = int(epoch["epoch"])
    if (epoch["cells"], epoch["cells_hash"]) != planned(plan, selection, number - 1):
        msg = f"epoch {number} was trained on {epoch['cells']} cells that are not the planned ones"
        raise RuntimeError(msg)
