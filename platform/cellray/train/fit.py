"""One go at a run through Ray Train."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from ray.data import ExecutionOptions
from ray.train import UserCallback
from ray.train.torch import TorchConfig
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

from cellray.atlas.store import Atlas
from cellray.core import logs
from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe
from cellray.core.secrets import scrub
from cellray.core.sections import MODES
from cellray.core.types import Progress
from cellray.track import runs
from cellray.track.outbox import Outbox
from cellray.track.uri import tracking_uri
from cellray.train.checkpoint import Stored
from cellray.train.launch import Launch
from cellray.train.ledger import Ledger
from cellray.train.report import GroupSize, RunCallback
from cellray.train.setup import Setup
from cellray.train.stopping import StoppingTrainer
from cellray.train.storage import file_system
from cellray.train.ticker import Ticker, following
from cellray.train.worker import train_worker

POLL_SECONDS = "0.2"  # Ray's 2 s would hold every epoch of a small atlas back


@dataclass(frozen=True)
class Attempt:
    """One go at a run.

    Attributes
    ----------
    launch, run_id
        What is trained.
    folder
        Where the run's checkpoints are kept, as its file system names it.
    begin
        The checkpoint that it goes on from; None begins the run.
    logged
        The last step that the MLflow run holds.
    flops
        Floating-point operations of a cell's training step.
    """

    launch: Launch
    run_id: str
    folder: str
    begin: Stored | None
    logged: int
    flops: float

    @property
    def step(self) -> int:
        """The step that it begins after."""
        return 0 if self.begin is None else self.begin.step


def fit_attempt(
    attempt: Attempt,
    atlas: Atlas,
    setup: Setup,
    outbox: Outbox,
    progress: Progress | None,
    callbacks: Sequence[UserCallback | WorkerGroupCallback] = (),
    stop: Ticker | None = None,
) -> None:
    """Run Ray Train to its end, or to where it is asked to stop.

    Raises
    ------
    CellrayError
        The loss was no number.
    """
    recipe, train = attempt.launch.recipe, attempt.launch.recipe.train
    use_gpu = wants_gpu(recipe, ray.cluster_resources())  # type: ignore[no-untyped-call]
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", POLL_SECONDS)
    # A process more, for news of nodes that will go; no worker asks for it, checkpoints do without.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    system, _ = file_system(attempt.launch.storage)
    with following(attempt.step, setup.choice.plan.steps, progress) as (ticker, failure):
        ledger = Ledger(
            setup,
            outbox=outbox.parts,
            logged=attempt.logged,
            tell=ticker.tell,
            step=attempt.step,
        )
        callback = RunCallback(recipe, atlas, setup, ledger, step=attempt.step)
        judged = train.best != "validation_loss" or len(setup.validation_cells)
        # Ray would take a name that was there before for a run to go on with, its own way.
        name = f"from-{attempt.step}-{os.urandom(4).hex()}"
        trainer = StoppingTrainer(
            train_worker,
            train_loop_config={
                "recipe": recipe,
                "plan": setup.choice.plan,
                "genes": setup.genes,
                "batches": setup.batches,
                "sets": setup.sets,
                "initial": setup.initial,
                "atlas": (atlas.url, atlas.digest),
                "validation": setup.validation_cells,
                "labelled": setup.labelled,
                "storage": (system, f"{attempt.folder}/{name}"),
                "resume": None if attempt.begin is None else attempt.begin.path,
                "flops": attempt.flops,
                "run": attempt.run_id,
                "log": logs.context(),
                "system_metrics": _remote_tracking(),
                "ticker": ticker,
                "stop": stop or ticker,
            },
            torch_config=TorchConfig(
                # What is offloaded is reduced where it lies.
                backend="cpu:gloo,cuda:nccl" if use_gpu and train.cpu_offload else None,
                timeout_s=train.timeout_s,
            ),
            scaling_config=ray.train.ScalingConfig(
                num_workers=train.num_workers,  # type: ignore[arg-type] # elastic: two numbers
                use_gpu=use_gpu,
                resources_per_worker={
                    "CPU": train.cpus_per_worker,
                    **({"GPU": 1} if use_gpu else {}),
                    **train.resources_per_worker,
                },
                placement_strategy=train.placement,
                label_selector=dict(train.labels) or None,  # type: ignore[call-arg]
            ),
            run_config=ray.train.RunConfig(
                name=name,
                storage_path=attempt.folder,
                storage_filesystem=system,
                callbacks=[callback, GroupSize(callback), *callbacks],  # type: ignore[list-item]
                failure_config=ray.train.FailureConfig(max_failures=train.max_failures),
                checkpoint_config=ray.train.CheckpointConfig(
                    num_to_keep=train.keep,
                    checkpoint_score_attribute=train.best if judged else None,
                    checkpoint_score_order=MODES[train.best],
                ),
            ),
            ticker=ticker,
            datasets={"train": callback.dataset},
            dataset_config=ray.train.DataConfig(
                execution_options=ExecutionOptions(
                    preserve_order=True, label_selector=dict(train.read_labels) or None
                )
            ),
        )
        try:
            trainer.fit()
        except SystemExit as error:  # how Ray ends a run at Ctrl-C, with status 0
            raise KeyboardInterrupt from error
        if trainer.stopped:
            raise KeyboardInterrupt
    if failure:
        raise failed(attempt.run_id, failure)


def _remote_tracking() -> tuple[str, str] | None:
    """Give the tracking server, for nodes other than this one, and this node's id."""
    uri = tracking_uri()
    here = ray.get_runtime_context().get_node_id()
    plain = uri.startswith("http") and uri == scrub(uri)  # no credentials leave the driver
    return (uri, here) if plain else None


def failed(run_id: str, failure: Mapping[str, Any]) -> CellrayError:
    """Store what has failed with the run, and say it."""
    with suppress(CellrayError):  # MLflow may be away; the line below says most of it
        runs.log_document(run_id, "failure.json", failure)
    cells = failure["cells"]
    on = logs.resume_command("pretrain", run_id)
    shown = ", ".join(map(str, cells[:5])) + (", …" if len(cells) > len(cells[:5]) else "")
    return CellrayError(
        f"{failure['what']} at step {failure['step']} (epoch {failure['epoch']}, {len(cells)} "
        f"cells: {shown}); failure.json of run {run_id} lists them, and its last checkpoint holds "
        "the weights before that step",
        f"go on with '{on} --set optim.lr=RATE' at a lower rate, or look at these cells",
    )


def wants_gpu(recipe: Recipe, resources: Mapping[str, float]) -> bool:
    """Decide whether workers get a GPU each.

    Raises
    ------
    CellrayError
        ``auto``, and GPUs for some of the workers only: they would wait for ever.
    """
    if recipe.train.accelerator != "auto":
        return recipe.train.accelerator == "gpu"
    gpus, workers = int(resources.get("GPU", 0)), recipe.train.worlds[0]
    if 0 < gpus < workers:
        raise CellrayError(
            f"{workers} workers would share {gpus} GPUs",
            f"set train.num_workers to {gpus}, or train.accelerator to cpu, or to gpu where the "
            "cluster scales up",
        )
    return gpus > 0
