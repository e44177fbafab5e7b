"""Pre-training in this process, without Ray or MLflow: for notebooks and for trying an idea.

The loop, the plan and the batches are those of `cellray.pretrain`, so the result is the same.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from cellray.atlas.store import Atlas
from cellray.core.recipe import Recipe
from cellray.feed.reader import read_batches
from cellray.learn.embed import gene_columns
from cellray.learn.learner import Learner
from cellray.learn.optim import make_optimizer, make_schedule
from cellray.train.loop import Loop, Record
from cellray.train.setup import prepare
from cellray.train.worker import validation_share


def fit(
    recipe: Recipe,
    atlas: Atlas,
    *,
    change: Callable[[Learner], Learner] = lambda learner: learner,
    report: Callable[[Record], None] = lambda record: None,
) -> Learner:
    """Pre-train an encoder on one process's CPU or GPU.

    Parameters
    ----------
    recipe
        What to train, and how; its workers and strategy are not asked.
    atlas
        The cells.
    change
        Called with the learner before it is trained, for what no recipe says.
    report
        Called with every record: step, losses, monitors.

    Returns
    -------
    Learner
        As it is after the last step, in eval mode on the CPU.

    Raises
    ------
    CellrayError
        As `cellray.pretrain`.
    """
    setup = prepare(recipe, atlas)
    plan, data = setup.choice.plan, recipe.data
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    learner = change(setup.learner(recipe)).to(device)
    optimizer = make_optimizer(learner, recipe.optim)

    def take(records: Sequence[Record], summary: Mapping[str, Any]) -> None:
        del summary
        for record in records:
            report(record)

    loop = Loop(
        recipe=recipe,
        plan=plan,
        learner=learner,
        module=learner,
        optimizer=optimizer,
        schedule=make_schedule(
            optimizer, recipe.optim, plan.steps, steps_per_epoch=plan.steps_per_epoch
        ),
        columns=torch.from_numpy(gene_columns(learner.genes, atlas.genes)).to(device),
        validation=validation_share(
            atlas, setup.validation_cells, plan.batch_size, 0, 1, obs=data.columns
        ),
        report=take,
        device=device,
    )
    loop.run(
        read_batches(atlas, plan, setup.choice.selection, obs=data.columns, matrices=data.matrices)
    )
    return learner.eval().cpu()
