"""The training loop. It knows neither Ray nor MLflow: batches come in, reports go out."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from cellray.atlas.plan import Plan
from cellray.core.errors import CellrayError
from cellray.core.ranks import gather_with_grad, world_size
from cellray.core.recipe import Recipe
from cellray.core.seeds import seed_of
from cellray.core.types import Rows
from cellray.learn.batch import Batch
from cellray.learn.learner import Learner
from cellray.score import collapse
from cellray.train.checkpoint import State
from cellray.train.comms import CommClock
from cellray.train.exact import MASK, hash_cells
from cellray.train.memory import explained, held_memory
from cellray.train.parallel import accumulating, autocast, rank_mean, scaler
from cellray.train.probe import KnnProbe
from cellray.train.timing import Phases, Record

SMALLEST_SCALE = 1.0
"""Of a float16 loss: gradients that overflow below it are no number, however they are scaled."""
MONITORED_CELLS = 2048
"""Held-out cells whose embeddings are watched, over all ranks."""


class Report(Protocol):
    """Where a loop sends what it knows; every rank calls it equally often."""

    def __call__(self, records: Sequence[Record], summary: Mapping[str, Any]) -> None:
        """Take records of steps and a summary, and checkpoint."""


class Diverged(Exception):  # noqa: N818 - it ends a run in order, and never leaves the loop
    """The loss or a gradient is not a finite number; all ranks find so at the same step."""


@dataclass
class Loop:
    """All that the loop needs; made by the worker, or by a test in one process.

    Attributes
    ----------
    learner, module
        What is trained, and what to call: the learner wrapped for its strategy.
    columns
        The model column of each atlas gene, -1 for genes that the model does not have.
    validation
        This rank's share of the held-out cells, in equal batches; may be empty.
    probe
        Predicts labels at the end of epochs; may be None.
    report
        Takes the records since the last call, and a summary: at the end of an epoch its number,
        cells and their hash; when the run must end, what has failed.
    observe
        Takes every record at once, and the cells of this rank that it speaks of.
    stop
        Says after a step whether the run ends there, in a checkpoint; the same on all ranks.
    clock
        What the strategy measures of its collectives; None for one process.
    flops
        Floating-point operations of a cell's training step, and how many a second this device
        reaches in a matrix product; None leaves out their ratio, MFU (Chowdhery et al. 2022).
    """

    recipe: Recipe
    plan: Plan
    learner: Learner
    module: nn.Module
    optimizer: Optimizer
    schedule: LRScheduler
    columns: Tensor
    validation: Sequence[Rows]
    report: Report
    device: torch.device
    rank: int = 0
    observe: Callable[[Record, int], None] = lambda record, cells: None
    stop: Callable[[int], bool] = lambda step: False
    clock: CommClock | None = None
    flops: tuple[float, float] | None = None
    probe: KnnProbe | None = None
    state: State = field(default_factory=State)

    def __post_init__(self) -> None:
        self.scaler = scaler(self.recipe.train.precision, self.device)

    def restore(self, state: State) -> None:
        """Go on from a checkpoint's state; the learner and the optimiser hold theirs already."""
        self.state = state
        if state.loss_scale:
            self.scaler.load_state_dict(dict(state.loss_scale))
        if self.rank:  # the sums over all ranks are carried on by the first one
            state.cells = state.cells_hash = 0

    def run(self, batches: Iterator[Rows]) -> State:
        """Train on the batches from ``state.step`` on, until they end or patience does.

        A loss or a gradient that is not a number ends the run too: before it touches the weights,
        with a last report whose summary holds ``failure``.

        Raises
        ------
        CellrayError
            A batch does not fit into the memory, or the loss is no number though its gradients
            are.
        """
        if self._out_of_patience():  # restarted after its last checkpoint
            return self.state
        phases = Phases(self.device)
        sums: dict[str, Tensor] = {}
        since, records = 0, list[Record]()
        for rows in phases.waiting(batches):
            try:
                with explained(self.recipe, self.state.step + 1, len(rows), self.rank):
                    parts = self._step(rows, phases)
            except Diverged:
                self._give_up(rows, records)
                return self.state
            for name, value in parts.items():
                sums[name] = sums[name] + value if name in sums else value
            since += 1
            self._count(rows)
            epoch, place = divmod(self.state.step, self.plan.steps_per_epoch)
            stopped = self.stop(self.state.step)
            ended, due = place == 0, stopped or self._checkpoint_due()
            if ended or due or self.state.step % self.recipe.train.log_every == 0:
                records.append(self._record(sums, since) | self._lap(phases, since))
                self.observe(records[-1], since * len(rows))
                sums, since = {}, 0
            if ended or due:
                with explained(self.recipe, self.state.step, len(rows), self.rank):
                    summary = self._end_epoch(epoch, records) if ended else {}
                self._report(records, summary)
                records = []
                phases.restart()
                if self.clock is not None:
                    self.clock.lap()  # validation's collectives are no step's
            if stopped or (ended and self._out_of_patience()):
                break
        return self.state

    def _step(self, rows: Rows, phases: Phases) -> dict[str, Tensor]:
        recipe, passes = self.recipe, self.recipe.train.accumulate
        epoch = self.plan.epoch_of(self.state.step)
        # Dropout's bits follow from the step, so that a resumed run draws the same ones.
        torch.manual_seed(seed_of(recipe.seed, "dropout", self.state.step, self.rank))
        self.learner.train()
        self.optimizer.zero_grad(set_to_none=True)
        means: dict[str, Tensor] = {}
        size = len(rows) // passes
        for number in range(passes):
            with accumulating(self.module, last=number == passes - 1):
                part = rows.slice(number * size, (number + 1) * size) if passes > 1 else rows
                with phases.measure("transfer"):
                    batch = self._batch(part)
                with phases.measure("forward"):
                    parts = self._forward(self.module, batch, epoch)
                with phases.measure("backward"):
                    self.scaler.scale(parts["loss"] / passes).backward()  # type: ignore[no-untyped-call]
            for name, value in parts.items():
                share = value.detach() / passes
                means[name] = means[name] + share if name in means else share
        with phases.measure("optimizer"):
            norm = self._update(means["loss"])
        return means | {"grad_norm": norm}

    def _update(self, loss: Tensor) -> Tensor:
        """Take the optimiser's step, and give the norm of the gradients before they were clipped.

        Raises
        ------
        Diverged
            The norm is no number; it spans all ranks, so that all of them find so.
        """
        self.scaler.unscale_(self.optimizer)
        found = nn.utils.clip_grad_norm_(
            self.learner.parameters(), self.recipe.optim.clip or math.inf, foreach=True
        )
        norm: Tensor = found.full_tensor() if hasattr(found, "full_tensor") else found
        if not math.isfinite(norm.item()):
            # Half precision overflows now and then: the scaler leaves the step out.
            small = self.scaler.is_enabled() and self.scaler.get_scale() < SMALLEST_SCALE
            if not self.scaler.is_enabled() or small or not rank_mean(loss).isfinite():
                raise Diverged
            norm = torch.zeros_like(norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        self.state.step += 1
        self.learner.objective.after_step(self.learner.encoder, self.state.step / self.plan.steps)
        return norm

    def _batch(self, rows: Rows) -> Batch:
        batch = Batch.of(rows)
        return (batch.pin() if self.device.type == "cuda" else batch).to(self.device)

    def _forward(self, module: nn.Module, batch: Batch, epoch: int) -> dict[str, Tensor]:
        counts_BG = batch.counts(self.columns, n_genes=len(self.learner.genes))
        with autocast(self.recipe.train.precision, self.device):
            parts: dict[str, Tensor] = module(
                counts_BG, batch.totals(), batch.cells_B, epoch, self._batch_codes(batch)
            )
        return parts

    def _batch_codes(self, batch: Batch) -> Tensor | None:
        key = self.recipe.data.batch_key
        return None if key is None else batch.obs[key].to(torch.int64)

    def _count(self, rows: Rows) -> None:
        self.state.cells += len(rows)
        self.state.cells_hash += hash_cells(rows.cells)

    def _record(self, sums: Mapping[str, Tensor], count: int) -> Record:
        means = rank_mean(torch.stack([value.float() for value in sums.values()])) / count
        record = dict(zip((f"train_{name}" for name in sums), means.tolist(), strict=True))
        if not math.isfinite(record["train_loss"]):  # gradients are looked at in every step
            raise CellrayError(
                f"the loss is {record['train_loss']} at step {self.state.step} or up to "
                f"{count - 1} steps before, and its gradients are finite",
                "look at the objective's settings and at the counts of these cells",
            )
        rate = float(self.schedule.get_last_lr()[0])
        place = {"step": float(self.state.step), "lr": rate, "workers": float(world_size())}
        return place | record

    def _lap(self, phases: Phases, steps: int) -> Record:
        """Say where the time went, and what is held in memory."""
        lap = phases.lap(steps * self.plan.batch_size, steps)
        if self.clock is not None:
            lap["seconds_allreduce"] = self.clock.lap() / steps
        if self.flops is not None:
            per_cell, rate = self.flops
            lap["mfu"] = lap["cells_per_s"] / world_size() * per_cell / rate
        return lap | held_memory(self.device)

    def _report(self, records: list[Record], summary: Mapping[str, Any]) -> None:
        """Add up the cells over the ranks, and hand on what is known."""
        state = self.state
        mine = torch.tensor(
            [state.cells, state.cells_hash & int(MASK)], dtype=torch.int64, device=self.device
        )
        if world_size() > 1:
            dist.all_reduce(mine)
        cells, total = mine.tolist()
        seen = {"cells": cells, "cells_hash": total & int(MASK)}
        state.cells, state.cells_hash = (
            (0, 0) if "epoch" in summary else (cells, seen["cells_hash"])
        )
        state.loss_scale = self.scaler.state_dict() if self.scaler.is_enabled() else {}
        self.report(records, {**summary, **(seen if "epoch" in summary else {})})
        if self.rank:
            state.cells = state.cells_hash = 0

    def _give_up(self, rows: Rows, records: list[Record]) -> None:
        """Report the step that failed, with the weights as they were before it."""
        cells = torch.from_numpy(rows.cells.astype(np.int64)).to(self.device)
        failure = {
            "what": "the loss or a gradient is not a finite number",
            "step": self.state.step + 1,
            "epoch": self.plan.epoch_of(self.state.step) + 1,
            "cells": sorted(gather_with_grad(cells).tolist()),
        }
        self.optimizer.zero_grad(set_to_none=True)
        self._report(records, {"failure": failure})

    def _end_epoch(self, epoch: int, records: list[Record]) -> dict[str, Any]:
        loss = self.validate()
        if loss is not None:
            self.state.stale = 0 if loss < self.state.best else self.state.stale + 1
            self.state.best = min(self.state.best, loss)
            records[-1] |= {"validation_loss": loss} | self.monitors()
        last = epoch == self.plan.epochs or self._out_of_patience()
        if self.probe is not None and (last or epoch % self.recipe.probe.every == 0):
            records[-1] |= {"knn_macro_f1": self.probe.macro_f1(self.learner)}
        records[-1] |= {"epoch": float(epoch)}
        return {"epoch": epoch}

    @torch.no_grad()
    def validate(self) -> float | None:
        """Give the mean loss of the held-out cells, under the views of epoch 0 at any time."""
        if not self.validation:
            return None
        self.learner.eval()
        losses = [
            self._forward(self.learner, self._batch(rows), 0)["loss"].float()
            for rows in self.validation
        ]
        return float(rank_mean(torch.stack(losses).mean()))

    @torch.no_grad()
    def monitors(self) -> Record:
        """Say whether embeddings of the held-out cells still differ (`cellray.score.collapse`)."""
        pairs = []
        for rows in self.validation[: max(1, MONITORED_CELLS // self.plan.batch_size)]:
            batch = self._batch(rows.slice(0, min(len(rows), MONITORED_CELLS // world_size())))
            counts_BG = batch.counts(self.columns, n_genes=len(self.learner.genes))
            with autocast(self.recipe.train.precision, self.device):
                pair = self.learner.embed_pair(counts_BG, batch.totals(), batch.cells_B)
            pairs.append([gather_with_grad(z_BD).cpu().numpy() for z_BD in pair])
        z_ND, view_ND = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
        return collapse.monitors(z_ND, view_ND)

    def _checkpoint_due(self) -> bool:
        every = self.recipe.train.checkpoint_every
        return every is not None and self.state.step % every == 0

    def _out_of_patience(self) -> bool:
        patience = self.recipe.train.patience
        return patience is not None and self.state.stale >= patience
