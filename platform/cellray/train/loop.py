"""The training loop. It knows neither Ray nor MLflow: batches come in, reports go out."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
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
from cellray.train.parallel import autocast, rank_mean

Record = dict[str, float]

MONITORED_CELLS = 2048
"""Held-out cells whose embeddings are watched, over all ranks."""


class Report(Protocol):
    """Where a loop sends what it knows; every rank calls it equally often."""

    def __call__(self, records: Sequence[Record], summary: Mapping[str, Any]) -> None:
        """Take records of steps and a summary, and checkpoint."""


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
    report
        Takes the records since the last call, and at the end of an epoch its summary.
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
    state: State = field(default_factory=State)

    def run(self, batches: Iterator[Rows]) -> State:
        """Train on the batches from ``state.step`` on, until they end or patience does.

        Raises
        ------
        CellrayError
            The loss is not a finite number.
        """
        if self._out_of_patience():  # restarted after its last checkpoint
            return self.state
        watch = Stopwatch()
        sums: dict[str, Tensor] = {}
        since = 0
        records: list[Record] = []
        for rows in watch.waiting(batches):
            for name, value in self._step(rows).items():
                sums[name] = sums[name] + value if name in sums else value
            since += 1
            self.state.step += 1
            epoch, place = divmod(self.state.step, self.plan.steps_per_epoch)
            ended, due = place == 0, self._checkpoint_due()
            if ended or due or self.state.step % self.recipe.train.log_every == 0:
                records.append(self._record(sums, since) | watch.lap(since * self.plan.batch_size))
                sums, since = {}, 0
            if ended or due:
                summary = self._end_epoch(epoch, records) if ended else {}
                self.report(records, summary)
                records = []
            if ended and self._out_of_patience():
                break
        return self.state

    def _step(self, rows: Rows) -> dict[str, Tensor]:
        recipe = self.recipe
        epoch = self.plan.epoch_of(self.state.step)
        # Dropout's bits follow from the step, so that a resumed run draws the same ones.
        torch.manual_seed(seed_of(recipe.seed, "dropout", self.state.step, self.rank))
        self.learner.train()
        parts = self._forward(self.module, rows, epoch)
        self.optimizer.zero_grad(set_to_none=True)
        parts["loss"].backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(
            self.learner.parameters(), recipe.optim.clip or math.inf, foreach=True
        )
        self.optimizer.step()
        self.schedule.step()
        progress = (self.state.step + 1) / self.plan.steps
        self.learner.objective.after_step(self.learner.encoder, progress)
        full = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        return {name: value.detach() for name, value in parts.items()} | {"grad_norm": full}

    def _forward(self, module: nn.Module, rows: Rows, epoch: int) -> dict[str, Tensor]:
        batch = Batch.of(rows)
        if self.device.type == "cuda":
            batch = batch.pin()
        batch = batch.to(self.device)
        counts_BG = batch.counts(self.columns, n_genes=len(self.learner.genes))
        with autocast(self.recipe.train.precision, self.device):
            parts: dict[str, Tensor] = module(
                counts_BG, batch.totals(), batch.cells_B, epoch, self._batch_codes(batch)
            )
        return parts

    def _batch_codes(self, batch: Batch) -> Tensor | None:
        key = self.recipe.data.batch_key
        return None if key is None else batch.obs[key].to(torch.int64)

    def _record(self, sums: Mapping[str, Tensor], count: int) -> Record:
        means = rank_mean(torch.stack([value.float() for value in sums.values()])) / count
        record = dict(zip((f"train_{name}" for name in sums), means.tolist(), strict=True))
        if not math.isfinite(record["train_loss"]):
            raise CellrayError(
                f"the loss is {record['train_loss']} at step {self.state.step}",
                "set optim.lr lower, or optim.clip",
            )
        learning_rate = self.schedule.get_last_lr()[0]
        return {"step": float(self.state.step), "lr": float(learning_rate)} | record

    def _end_epoch(self, epoch: int, records: list[Record]) -> dict[str, Any]:
        summary: dict[str, Any] = {"epoch": epoch}
        loss = self.validate()
        if loss is not None:
            summary["validation_loss"] = loss
            records[-1] |= {"validation_loss": loss}
            self.state.stale = 0 if loss < self.state.best else self.state.stale + 1
            self.state.best = min(self.state.best, loss)
            records[-1] |= self.monitors()
        records[-1] |= {"epoch": float(epoch)}
        return summary

    @torch.no_grad()
    def validate(self) -> float | None:
        """Give the mean loss of the held-out cells, under the views of epoch 0 at any time."""
        if not self.validation:
            return None
        self.learner.eval()
        losses = [self._forward(self.learner, rows, 0)["loss"].float() for rows in self.validation]
        return float(rank_mean(torch.stack(losses).mean()))

    @torch.no_grad()
    def monitors(self) -> Record:
        """Say whether embeddings of the held-out cells still differ (`cellray.score.collapse`)."""
        pairs = []
        for rows in self.validation[: max(1, MONITORED_CELLS // self.plan.batch_size)]:
            few = rows.slice(0, min(len(rows), MONITORED_CELLS // world_size()))
            batch = Batch.of(few).to(self.device)
            counts_BG = batch.counts(self.columns, n_genes=len(self.learner.genes))
            with autocast(self.recipe.train.precision, self.device):
                pair = self.learner.embed_pair(counts_BG, batch.totals(), batch.cells_B)
            pairs.append([gather_with_grad(z_BD).cpu().numpy() for z_BD in pair])
        z_ND, view_ND = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
        return {
            "embedding_std": collapse.embedding_std(z_ND),
            "effective_rank": collapse.effective_rank(z_ND),
            "alignment": collapse.alignment(z_ND, view_ND),
            "uniformity": collapse.uniformity(z_ND),
        }

    def _checkpoint_due(self) -> bool:
        every = self.recipe.train.checkpoint_every
        return every is not None and self.state.step % every == 0

    def _out_of_patience(self) -> bool:
        patience = self.recipe.train.patience
        return patience is not None and self.state.stale >= patience


class Stopwatch:
    """Cells per second, and the share of time spent waiting for the feed."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._start = clock()
        self._waited = 0.0

    def waiting(self, batches: Iterator[Rows]) -> Iterator[Rows]:
        """Pass batches on, and note how long each one took to come."""
        while True:
            before = self._clock()
            rows = next(batches, None)
            self._waited += self._clock() - before
            if rows is None:
                return
            yield rows

    def lap(self, cells: int) -> Record:
        """Give the rates since the last lap; `cells` over all ranks."""
        now = self._clock()
        seconds = max(now - self._start, 1e-9)
        rates = {"cells_per_s": cells / seconds, "feed_wait_share": self._waited / seconds}
        self._start, self._waited = now, 0.0
        return rates
