"""The probe on two processes, replicated and sharded, gives what one gives, and changes nothing."""

import numpy as np
import pytest
import torch
from tests.contracts.groups import spawn

from cellray.atlas.simulate import Simulation, simulate_anndata
from cellray.atlas.splits import SplitSpec, draw_split
from cellray.atlas.write import ingest
from cellray.core.recipe import Recipe
from cellray.core.sections import Train
from cellray.learn.batch import Batch
from cellray.learn.learner import Learner
from cellray.learn.optim import make_optimizer
from cellray.nets.target import whole
from cellray.train.parallel import parallelise
from cellray.train.probe import KnnProbe, choose_labelled

CPU = torch.device("cpu")
WORLD, STEPS = 2, 3
RECIPE = Recipe.of(
    {
        # Dropout stays on: a draw that the probe made would be seen in the next loss.
        "encoder": {"name": "mlp", "widths": [16], "dim": 8, "dropout": 0.2},
        "objective": {"name": "masked", "widths": [16]},
        "data": {"batch_size": 24, "validation": 0.3},
        "optim": {"name": "sgd", "lr": 0.1},
        "probe": {"label": "cell_type"},
    }
)


def run(labelled, rows, strategy, rank, world, *, probed):
    """Losses of some steps, the scores between them, and the weights."""
    torch.manual_seed(rank)
    genes = [f"gene_{i}" for i in range(40)]
    learner = Learner.of(RECIPE, genes)
    module = learner if world == 1 else parallelise(learner, Train(strategy=strategy), CPU)
    probe = KnnProbe.of(labelled, learner, device=CPU, rank=rank, world=world)
    optimizer = make_optimizer(learner, RECIPE.optim)
    losses, scores = [], []
    for step in range(STEPS):
        if probed:
            scores.append(probe.macro_f1(learner))
        share = rows.slice(step * 24 + rank * 24 // world, step * 24 + (rank + 1) * 24 // world)
        batch = Batch.of(share)
        optimizer.zero_grad()
        counts = batch.counts(probe.columns, n_genes=len(genes))
        loss = module(counts, batch.totals(), batch.cells_B, 0)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    weights = torch.cat([whole(p).detach().ravel() for p in learner.parameters()])
    return {
        "losses": torch.stack(losses),
        "scores": scores,
        "weights": weights,
        "cells": torch.from_numpy(probe.rows.cells),
    }


def in_rank(rank, labelled, rows):
    return {
        (strategy, probed): run(labelled, rows, strategy, rank, WORLD, probed=probed)
        for strategy in ("ddp", "fsdp")
        for probed in (False, True)
    }


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """An odd number of labelled cells, and cells to train on."""
    folder = tmp_path_factory.mktemp("ranks")
    simulated = Simulation(n_cells=151, n_genes=40, n_types=4, seed=1)
    simulate_anndata(simulated).write_h5ad(folder / "a.h5ad")
    atlas = ingest([folder / "a.h5ad"], folder / "atlas")
    sides = draw_split(atlas, SplitSpec(validation=0.3))
    labelled = choose_labelled(RECIPE, atlas, sides, tuple(atlas.genes.tolist()))
    assert len(labelled.cells) == 151
    return labelled, atlas.read_cells(np.arange(24 * STEPS))


@pytest.fixture(scope="module")
def ranks(parts):
    return spawn(WORLD, in_rank, *parts)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_give_the_score_of_one(parts, ranks, strategy):
    wanted = run(*parts, "ddp", 0, 1, probed=True)["scores"][0]
    assert 0.05 < wanted < 0.95
    first, second = (found[strategy, True] for found in ranks)
    assert first["scores"] == second["scores"]
    assert first["scores"][0] == wanted  # before any step: the weights are the same
    assert len(set(first["scores"])) > 1  # and the steps are seen
    assert len(first["cells"]) == len(second["cells"]) == 76
    shared = torch.cat([first["cells"], second["cells"]])[:151]
    assert shared.tolist() == parts[0].cells.tolist()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_the_probe_changes_no_loss_and_no_weight(ranks, strategy):
    for found in ranks:
        plain, probed = found[strategy, False], found[strategy, True]
        assert torch.equal(plain["losses"], probed["losses"])
        assert torch.equal(plain["weights"], probed["weights"])
