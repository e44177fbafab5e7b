"""What a plan will cost and how well it mixes: the facts behind ``cellray inspect --plan``.

Costs and entropies are taken from a sample of the slabs that the run will read, by the reader's own
accounting; nothing of the counts is read but row pointers.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellray.atlas.choose import Choice
from cellray.atlas.plan import Plan, share_cells
from cellray.atlas.read import Cost
from cellray.atlas.selection import ONCE, Selection
from cellray.atlas.splits import group_codes
from cellray.atlas.storage import intact, storage_errors
from cellray.atlas.store import Atlas
from cellray.core.seeds import generator

SAMPLED_SLABS = 16
SHARES_HELD = 3
"""Shares of a slab in a worker's memory: one in training, two on their way."""
CELL_BYTES = 16
"""A row pointer and a cell's number."""


def forecast(
    atlas: Atlas,
    choice: Choice,
    *,
    world: int = 1,
    label: str | None = None,
    matrices: Sequence[str] = (),
) -> dict[str, Any]:
    """Say what an epoch of a run reads, and how mixed its batches are.

    Parameters
    ----------
    atlas
        What is read.
    choice
        Its cells and their order.
    world
        Workers that share every slab.
    label
        An obs column whose entropy in a batch is computed.
    matrices
        What is read beside the counts, by path.

    Returns
    -------
    dict
        ``plan`` with its numbers and what follows from them; ``tail`` and ``tail_cells``;
        ``sampled_slabs``; ``gets`` and ``bytes`` with ``slab`` (mean) and ``epoch``: requests with
        warm indices, and compressed bytes at the mean rate of each array, both without obs
        columns; ``amplification``: elements decoded for each one wanted; ``entropy`` (with a
        label) with the mean over batches, that of batches drawn at random from the epoch
        (`random_entropy`), and of the epoch as a whole, in bits; ``memory`` in bytes: ``slab``,
        ``share``, ``selection``, and ``worker`` for the three shares that it holds beside the
        selection, without the model and its activations.
    """
    plan, selection = choice.plan, choice.selection
    count = min(SAMPLED_SLABS, plan.slabs_per_epoch)
    rng = generator(plan.seed, "forecast")
    slabs = np.sort(rng.choice(plan.slabs_per_epoch, count, replace=False)).tolist()
    pairs = list(product(slabs, range(world)))
    with storage_errors(atlas.url), intact(atlas.url):
        shares = (share_cells(plan, selection, slab, rank, world) for slab, rank in pairs)
        cost = sum((atlas.cost(cells, matrices) for cells in shares), start=Cost())
    share = cost.bytes // len(pairs) + CELL_BYTES * (plan.slab // world)
    document: dict[str, Any] = {
        "plan": {
            "cells": plan.n_cells,
            "training_cells": choice.n_train,
            "epochs": plan.epochs,
            "batch_size": plan.batch_size,
            "slab_batches": plan.slab_batches,
            "slab": plan.slab,
            "mix": plan.mix,
            "block": plan.block,
            "slabs_per_epoch": plan.slabs_per_epoch,
            "steps_per_epoch": plan.steps_per_epoch,
            "steps": plan.steps,
            "workers": world,
            "seed": plan.seed,
        },
        "tail": plan.tail,
        "tail_cells": plan.tail_cells,
        "sampled_slabs": count,
        "gets": _per_slab(cost.requests / count, plan),
        "bytes": _per_slab(cost.stored / count, plan),
        "amplification": cost.decoded / cost.wanted,
        "memory": {
            "slab": share * world,
            "share": share,
            "selection": selection.nbytes,
            "worker": SHARES_HELD * share + selection.nbytes,
        },
    }
    if label is not None:
        codes, names = group_codes(atlas.obs([label])[label])
        document["label"] = label
        document["entropy"] = _entropies(plan, selection, codes, len(names) + 1, slabs)
    return document


def entropy(counts: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Give the entropy of counts of classes, in bits: shape (..., n_classes) to (...)."""
    shares = counts / counts.sum(axis=-1, keepdims=True)
    logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    bits: NDArray[np.float64] = np.abs((shares * logs).sum(axis=-1))  # -0 of one class alone
    return bits


def random_entropy(counts: NDArray[np.integer[Any]], size: int) -> float:
    """Give the mean entropy of random samples without replacement, in bits.

    A sample holds ``k`` cells of a class with the hypergeometric probability, and each class adds
    ``-(k / size) log2(k / size)`` to the sample's entropy: the expectation is the sum over classes
    and ``k``, without approximation.

    Parameters
    ----------
    counts
        Cells of each class, shape (n_classes,).
    size
        Cells of a sample.
    """
    from scipy.stats import hypergeom  # slow to import

    drawn = np.arange(1, size + 1)
    terms = -(drawn / size) * np.log2(drawn / size)
    total = int(counts.sum())
    sizes, classes = np.unique(counts[counts > 0], return_counts=True)
    means = [hypergeom.pmf(drawn, total, int(n), size) @ terms for n in sizes]
    return float(np.dot(means, classes))


def _entropies(
    plan: Plan,
    selection: Selection,
    codes: NDArray[np.integer[Any]],
    n_classes: int,
    slabs: list[int],
) -> dict[str, float]:
    found = []
    for slab in slabs:
        batches = codes[share_cells(plan, selection, slab)].reshape(plan.slab_batches, -1)
        found += [entropy(np.bincount(batch, minlength=n_classes)) for batch in batches]
    if selection.codes is None:
        counts = np.bincount(codes, minlength=n_classes)
    else:
        pairs = codes.astype(np.int64) * len(selection.units) + selection.codes
        table = np.bincount(pairs, minlength=n_classes * len(selection.units))
        units = table.reshape(n_classes, -1) @ selection.units
        counts = np.rint(units / ONCE).astype(np.int64)
    return {
        "batch": float(np.mean(found)),
        "random": random_entropy(counts, plan.batch_size),
        "epoch": float(entropy(counts)),
    }


def _per_slab(amount: float, plan: Plan) -> dict[str, float]:
    return {"slab": amount, "epoch": amount * plan.slabs_per_epoch}
