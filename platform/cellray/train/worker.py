"""What every Ray Train worker runs: it makes the loop's parts and lets it go."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
from numpy.typing import NDArray
from torch import nn

from cellray.atlas.plan import Plan
from cellray.atlas.store import Atlas, open_cached
from cellray.core.recipe import Recipe
from cellray.core.types import Rows
from cellray.feed.batches import from_arrow
from cellray.learn.cost import gemm_rate
from cellray.learn.embed import gene_columns
from cellray.learn.learner import Learner
from cellray.learn.optim import make_optimizer, make_schedule
from cellray.train.checkpoint import fetched, load_checkpoint
from cellray.train.comms import CommClock
from cellray.train.loop import Loop, Report
from cellray.train.parallel import amp_dtype, parallelise
from cellray.train.saver import Saver

PREFETCHED_SHARES = 2  # on their way to this node while the current one trains


def train_worker(config: Mapping[str, Any]) -> None:
    """Train one rank.

    Parameters
    ----------
    config
        ``recipe`` and ``plan``; ``genes``, ``batches`` and gene ``sets`` of the model, and the
        ``initial`` weights or None; the ``atlas``'s URL and digest; the ``validation`` cells
        (int64, sorted); ``storage``, the file system and folder of the checkpoints; ``resume``,
        the path of the one to begin from or None; ``flops`` of a cell; ``run``, the run's id;
        ``ticker``, the way to the driver; ``system_metrics``, the tracking server and the driver's
        node, or None.
    """
    recipe: Recipe = config["recipe"]
    plan: Plan = config["plan"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    atlas = open_cached(*config["atlas"])
    system, folder = config["storage"]

    learner = Learner.of(recipe, config["genes"], batches=config["batches"], sets=config["sets"])
    if config["initial"] is not None:
        learner.load_state_dict(config["initial"])
    learner = learner.to(device)
    clock = CommClock()
    saver = Saver(
        system,
        folder,
        run=config["run"],
        rank=rank,
        ticker=config["ticker"],
        timeout_s=recipe.train.timeout_s,
    )
    loop = make_loop(
        recipe,
        plan,
        learner,
        atlas,
        config["validation"],
        saver,
        module=parallelise(learner, recipe.train, device, clock=clock),
        device=device,
        rank=rank,
        world=world,
    )
    loop.clock = clock if world > 1 else None
    loop.flops = (config["flops"], gemm_rate(device, amp_dtype(recipe.train.precision, device)))
    saver.loop, loop.observe = loop, saver.observe
    latest = ray.train.get_checkpoint()
    begin = config["resume"] if latest is None else latest.path
    if begin is not None:
        with fetched(system, begin) as found:
            loop.restore(load_checkpoint(found, learner, loop.optimizer, loop.schedule))
    shard = ray.train.get_dataset_shard("train")
    tables = shard.iter_batches(
        batch_size=1, batch_format="pyarrow", prefetch_batches=PREFETCHED_SHARES
    )
    with _node_metrics(config["run"], config["system_metrics"]):
        loop.run(stream(tables, plan, loop.state.step, rank=rank))
    saver.wait()


def _node_metrics(run_id: str, tracking: tuple[str, str] | None) -> AbstractContextManager[None]:
    """Log this node's system metrics from one of its workers; the driver logs its own node's."""
    context = ray.train.get_context()
    if tracking is None or context.get_local_rank():
        return nullcontext()
    uri, driver = tracking
    if ray.get_runtime_context().get_node_id() == driver:
        return nullcontext()
    from cellray.track.system import system_metrics  # with MLflow, a second of every worker's start

    os.environ["MLFLOW_TRACKING_URI"] = uri
    return system_metrics(run_id, f"node-{context.get_node_rank()}")


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
            plan,
            rank,
            world,
            passes=recipe.train.accumulate,
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
    plan: Plan,
    rank: int,
    world: int,
    *,
    passes: int = 1,
    obs: Sequence[str] = (),
    matrices: Sequence[str] = (),
) -> list[Rows]:
    """Read one rank's share of the held-out cells, in batches that are equal on all ranks.

    They are as large as a training pass, and the same for any number of ranks of the plan.
    """
    size = min(plan.batch_size // passes, len(cells)) // plan.mix * plan.mix
    if size < 2 * world:
        return []
    count = len(cells) // size
    each = size // world
    mine = cells[: count * size].reshape(count, world, each)[:, rank].reshape(-1)
    rows = atlas.read_cells(mine, obs=obs, matrices=matrices)
    return [rows.slice(i * each, (i + 1) * each) for i in range(count)]
