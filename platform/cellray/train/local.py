"""Pre-training in this process, without Ray or MLflow: for notebooks and for trying an idea.

The loop, the plan and the batches are those of `cellray.pretrain`, so the result is the same.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cellray.atlas.store import Atlas
from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe
from cellray.feed.reader import read_batches
from cellray.learn.learner import Learner
from cellray.train.limits import Limits, check_memory
from cellray.train.needs import Needs, own_device
from cellray.train.setup import prepare
from cellray.train.timing import Record
from cellray.train.worker import make_loop


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
        Called with every record: step, losses, monitors, the probe's F1.

    Returns
    -------
    Learner
        As it is after the last step, in eval mode on the CPU.

    Raises
    ------
    CellrayError
        As `cellray.pretrain`, a loss that is no number among it.
    """
    setup = prepare(recipe, atlas)
    plan, data = setup.choice.plan, recipe.data
    alone = recipe.with_(["train.num_workers=1"])
    check_memory(alone, Needs.of(alone, setup.learner(recipe), atlas), Limits.of(recipe, "."))
    device = own_device(recipe)
    learner = change(setup.learner(recipe)).to(device)

    def take(records: Sequence[Record], summary: Mapping[str, Any]) -> None:
        for record in records:
            report(record)
        if failure := summary.get("failure"):
            raise CellrayError(
                f"{failure['what']} at step {failure['step']} (epoch {failure['epoch']})",
                "set optim.lr lower, or optim.clip",
            )

    loop = make_loop(
        recipe,
        plan,
        learner,
        atlas,
        setup.validation_cells,
        take,
        module=learner,
        device=device,
        labelled=setup.labelled,
    )
    loop.run(
        read_batches(atlas, plan, setup.choice.selection, obs=data.columns, matrices=data.matrices)
    )
    return learner.eval().cpu()
