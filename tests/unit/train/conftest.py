"""A small training set in memory, and loops over it in this process."""

import numpy as np
import pytest
import torch

from cellray.atlas.plan import make_plan
from cellray.core.recipe import Recipe
from cellray.core.types import Rows
from cellray.feed.batches import Share, to_arrow
from cellray.learn.learner import Learner
from cellray.learn.optim import make_optimizer, make_schedule
from cellray.train.loop import Loop
from cellray.train.worker import stream

GENES = 40
CELLS = 330


@pytest.fixture(scope="session")
def counts():
    """Counts of 330 cells over 40 genes, with three programmes, as the atlas would give them."""
    rng = np.random.default_rng(0)
    means = rng.gamma(1.0, 1.0, (3, GENES)).repeat(CELLS // 3, axis=0) * 4
    dense = rng.permutation(rng.poisson(means)).astype(np.uint8)
    indptr = np.concatenate([[0], np.cumsum((dense > 0).sum(1))])
    return Rows(
        data=dense[dense > 0],
        indices=np.nonzero(dense)[1].astype(np.uint16),
        indptr=indptr.astype(np.int64),
        n_genes=GENES,
        cells=np.arange(CELLS),
    )


@pytest.fixture
def make_loop(counts):
    """Make a loop of some recipe; its reports are kept in ``loop.reports``."""

    def make(*changes, validation=()):
        recipe = Recipe.of(
            {
                "encoder": {"name": "mlp", "widths": [16], "dim": 4},
                "objective": {"name": "masked", "widths": [16]},
                "data": {"batch_size": 32, "slab_batches": 2},
                "train": {"epochs": 3, "log_every": 2},
                "optim": {"lr": 0.01},
            }
        ).with_(list(changes))
        plan = make_plan(
            CELLS, batch_size=32, slab_batches=2, epochs=recipe.train.epochs, seed=recipe.seed
        )
        learner = Learner.of(recipe, [f"g{i}" for i in range(GENES)])
        optimizer = make_optimizer(learner, recipe.optim)
        reports = []
        loop = Loop(
            recipe=recipe,
            plan=plan,
            learner=learner,
            module=learner,
            optimizer=optimizer,
            schedule=make_schedule(optimizer, recipe.optim, plan.steps),
            columns=torch.arange(GENES),
            validation=list(validation),
            report=lambda records, summary: reports.append((list(records), dict(summary))),
            device=torch.device("cpu"),
        )
        loop.reports = reports
        return loop

    return make


@pytest.fixture
def feed(counts):
    """Give the batches of a plan from a step on, as a worker gets them."""

    def batches(plan, step=0):
        first = step // plan.slab_batches
        tables = (
            to_arrow(Share(slab, 0, counts.take(plan.share(slab))))
            for slab in range(first, plan.slabs)
        )
        return stream(tables, plan, step)

    return batches
