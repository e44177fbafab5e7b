"""What every Ray Train worker runs: it makes the loop's parts and lets it go."""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
from numpy.typing import NDArray
from pyarrow.fs import FileSystem
from ray.train import Checkpoint, CheckpointUploadMode
from torch import nn

from cellray.atlas.plan import Plan
from cellray.atlas.store import Atlas, open_cached
from cellray.core import logs
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
from cellray.train.probe import KnnProbe, LabelledCells
from cellray.train.saver import Saver, Store
from cellray.train.stopping import Agreement, Listener

logger = logging.getLogger(__name__)

PREFETCHED_SHARES = 2  # on their way to this node while the current one trains


def train_worker(config: Mapping[str, Any]) -> None:
    """Train one rank.

    Parameters
    ----------
    config
        ``recipe`` and ``plan``; ``genes``, ``batches`` and gene ``sets`` of the model, and the
        ``initial`` weights or None; the ``atlas``'s URL and digest; the ``validation`` cells
        (int64, sorted) and the ``labelled`` ones of the probe; ``storage``, the file system and
        folder of the checkpoints; ``resume``, the path of the one to begin from or None; ``flops``
        of a cell; ``run``, the run's id, and ``log``, what its log lines say; ``ticker``, the way
        to the driver, and ``stop``, that to who may want an end; ``system_metrics``, the tracking
        server and the driver's node, or None.
    """
    recipe: Recipe = config["recipe"]
    plan: Plan = config["plan"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    logs.set_up(**config["log"], rank=rank)
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
        tell=config["ticker"].tell,
        hand_in=partial(_hand_in, system),
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
        labelled=config["labelled"],
    )
    loop.clock = clock if world > 1 else None
    loop.stop = Agreement(Listener(config["stop"]), rank=rank, device=device)
    latest = ray.train.get_checkpoint()
    begin = config["resume"] if latest is None else latest.path
    attach(loop, saver, system, config["flops"], begin)
    logger.info("worker %d of %d trains from step %d on %s", rank, world, loop.state.step, device)
    shard = ray.train.get_dataset_shard("train")
    tables = shard.iter_batches(
        batch_size=1, batch_format="pyarrow", prefetch_batches=PREFETCHED_SHARES
    )
    with _node_metrics(config["run"], config["system_metrics"]):
        loop.run(stream(tables, plan, loop.state.step, rank=rank))
    saver.wait()


def _hand_in(system: FileSystem, told: Mapping[str, Any], held: Path, store: Store) -> None:
    """Report to the controller; Ray stores the checkpoint in a thread."""
    ray.train.report(
        dict(told),
        checkpoint=Checkpoint.from_directory(held),
        checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        checkpoint_upload_fn=lambda _, name: Checkpoint(store(name), system),
        delete_local_checkpoint_after_upload=False,
    )


def attach(loop: Loop, saver: Saver, system: FileSystem, flops: float, begin: str | None) -> None:
    """Give a loop its saver and its cost, and let it go on from a checkpoint.

    Parameters
    ----------
    loop, saver
        Of one another from now on.
    system, begin
        Where the checkpoint lies; None begins the run.
    flops
        Floating-point operations of a cell's training step.
    """
    precision = amp_dtype(loop.recipe.train.precision, loop.device)
    loop.flops = (flops, gemm_rate(loop.device, precision))
    saver.loop, loop.observe = loop, saver.observe
    if begin is not None:
        with fetched(system, begin) as found:
            parts = loop.learner, loop.optimizer, loop.schedule
            loop.restore(load_checkpoint(found, *parts, path=begin))


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
    labelled: LabelledCells | None = None,
) -> Loop:
    """Put a loop together: optimiser, schedule, columns, held-out and labelled cells.

    Parameters
    ----------
    recipe, plan, learner, report, module, device, rank
        As the loop keeps them; the learner is on its device, sharded if it shall be.
    atlas, validation
        Where the held-out cells lie, and which they are.
    world
        Ranks that share them.
    labelled
        What the probe predicts, if there is one.
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
        probe=None
        if labelled is None
        else KnnProbe.of(labelled, learner, device=device, rank=rank, world=world),
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
