"""What every Ray Train worker runs: it makes the loop's parts and lets it go."""

import math
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
from numpy.typing import NDArray
from torch import nn

from cellray.atlas.plan import Plan
from cellray.atlas.store import Atlas
from cellray.core.recipe import Recipe
from cellray.core.types import Rows
from cellray.feed.batches import from_arrow
from cellray.learn.embed import gene_columns
from cellray.learn.learner import Learner
from cellray.learn.optim import make_optimizer, make_schedule
from cellray.train.checkpoint import load_checkpoint, save_checkpoint
from cellray.train.loop import Loop, Record, Report
from cellray.train.parallel import parallelise

PREFETCHED_SHARES = 2  # on their way to this node while the current one trains


def train_worker(config: Mapping[str, Any]) -> None:
    """Train one rank.

    Parameters
    ----------
    config
        ``recipe`` and ``plan``; ``genes``, ``batches`` and gene ``sets`` of the model, and the
        ``initial`` weights or None; the ``atlas``'s URL and the ``validation`` cells (int64,
        sorted).
    """
    recipe: Recipe = config["recipe"]
    plan: Plan = config["plan"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    atlas = Atlas.open(config["atlas"])

    learner = Learner.of(recipe, config["genes"], batches=config["batches"], sets=config["sets"])
    if config["initial"] is not None:
        learner.load_state_dict(config["initial"])
    learner = learner.to(device)
    loop: Loop = make_loop(
        recipe,
        plan,
        learner,
        atlas,
        config["validation"],
        lambda records, summary: _report(loop, records, summary),
        module=parallelise(learner, recipe.train.strategy, device),
        device=device,
        rank=rank,
        world=world,
    )
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            loop.state = load_checkpoint(Path(folder), learner, loop.optimizer, loop.schedule)
    shard = ray.train.get_dataset_shard("train")
    tables = shard.iter_batches(
        batch_size=1, batch_format="pyarrow", prefetch_batches=PREFETCHED_SHARES
    )
    loop.run(stream(tables, plan, loop.state.step, rank=rank))


def make_loop(
    recipe: Recipe,
    plan: Plan,
    learner: Learner,
    atlas: Atlas,
    validation: NDArray[np.int64],
    report: Report,
    *,
    module: nn.Module,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
) -> Loop:
    """Put a loop together: optimiser, schedule, columns and held-out cells.

    Parameters
    ----------
    recipe, plan, learner, report, module, device, rank
        As the loop keeps them; the learner is on its device, sharded if it shall be.
    atlas, validation
        Where the held-out cells lie, and which they are.
    world
        Ranks that share them.
    """
    optimizer = make_optimizer(learner, recipe.optim)
    return Loop(
        recipe=recipe,
        plan=plan,
        learner=learner,
        module=module,
        optimizer=optimizer,
        schedule=make_schedule(
            optimizer, recipe.optim, plan.steps, steps_per_epoch=plan.steps_per_epoch
        ),
        columns=torch.from_numpy(gene_columns(learner.genes, atlas.genes)).to(device),
        validation=validation_share(
            atlas,
            validation,
            plan.batch_size,
            rank,
            world,
            obs=recipe.data.columns,
            matrices=recipe.data.matrices,
        ),
        report=report,
        device=device,
        rank=rank,
    )


def stream(tables: Iterable[Any], plan: Plan, step: int, *, rank: int = 0) -> Iterator[Rows]:
    """Unpack a rank's shares into its batches, from a step on.

    Raises
    ------
    RuntimeError
        A share came out of the plan's order: the exactness of resuming rests on it, so it is
        checked and not assumed.
    """
    expected, skip = divmod(step, plan.slab_batches)
    for table in tables:
        share = from_arrow(table)
        if (share.slab, share.rank) != (expected, rank):
            msg = (
                f"rank {share.rank}'s share of slab {share.slab} came to rank {rank}, where the "
                f"plan has slab {expected}"
            )
            raise RuntimeError(msg)
        yield from share.batches(plan.slab_batches, skip=skip)
        expected, skip = expected + 1, 0


def validation_share(
    atlas: Atlas,
    cells: NDArray[np.int64],
    batch_size: int,
    rank: int,
    world: int,
    *,
    obs: Sequence[str] = (),
    matrices: Sequence[str] = (),
) -> list[Rows]:
    """Read one rank's share of the held-out cells, in batches that are equal on all ranks."""
    size = min(batch_size, len(cells) // world * world)
    if not size:
        return []
    count = len(cells) // size
    each = size // world
    mine = cells[: count * size].reshape(count, world, each)[:, rank].reshape(-1)
    rows = atlas.read_cells(mine, obs=obs, matrices=matrices)
    return [rows.slice(i * each, (i + 1) * each) for i in range(count)]


def _report(loop: Loop, records: Sequence[Record], summary: Mapping[str, Any]) -> None:
    # Ray ranks a checkpoint without the score above all others; inside an epoch there is none.
    unjudged = {"validation_loss": math.inf}
    metrics = unjudged | {"records": list(records), "step": loop.state.step, **summary}
    folder = Path(tempfile.mkdtemp(prefix="cellray-checkpoint-"))
    try:
        save_checkpoint(folder, loop.learner, loop.optimizer, loop.state, rank=loop.rank)
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
