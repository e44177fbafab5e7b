"""What a worker does with what its loop knows: checkpoints, gauges, word to the driver."""

import math
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import ray.train
import torch.distributed as dist
from pyarrow.fs import FileSystem, copy_files
from ray.train import Checkpoint, CheckpointUploadMode

from cellray.train.checkpoint import begin_checkpoint
from cellray.train.gauges import publish
from cellray.train.ticker import SECONDS, Ticker
from cellray.train.timing import Record

if TYPE_CHECKING:
    from cellray.train.loop import Loop

PREFIX = f"cellray-checkpoint-{socket.gethostname()}-"  # a temporary folder may be shared
EPOCH = ("epoch", "cells", "cells_hash")
SHOWN = ("train_loss", "validation_loss", "cells_per_s", "feed_wait_share")
"""What of a record a driver shows."""


class Saver:
    """Takes a loop's reports; at most one checkpoint is on its way while training goes on.

    Parameters
    ----------
    system, folder
        Where checkpoints go.
    run, rank
        Whose reports they are.
    ticker
        The way to the driver.
    timeout_s
        Seconds that a worker waits for the others' part of a checkpoint.

    Attributes
    ----------
    loop
        Whose state is saved; set before the first report.
    """

    loop: "Loop"

    def __init__(
        self,
        system: FileSystem,
        folder: str,
        *,
        run: str,
        rank: int,
        ticker: Ticker,
        timeout_s: int,
    ) -> None:
        self._ticker = ticker
        self._told = -math.inf
        self._system = system
        self._folder = folder
        self._run = run
        self._rank = rank
        self._stored = threading.Event()
        self._stored.set()
        # DCP's threads talk to each other while the steps do: they need a group of their own.
        patience = timedelta(seconds=timeout_s)
        several = dist.is_initialized()
        self._group = dist.new_group(backend="gloo", timeout=patience) if several else None
        sweep()

    def observe(self, record: Record, cells: int) -> None:
        """Show a record at once; it reaches MLflow with the next checkpoint.

        Parameters
        ----------
        record
            What the loop has just found.
        cells
            Cells that this rank has trained on since the last record.
        """
        publish({**record, "cells": cells}, run=self._run, rank=self._rank)
        now = time.monotonic()
        if self._rank == 0 and now - self._told > SECONDS:
            self._told = now
            self._tell(record)

    def _tell(self, record: Record) -> None:
        plan = self.loop.plan
        epochs = {"epoch": plan.epoch_of(int(record["step"]) - 1) + 1, "epochs": plan.epochs}
        facts = {key: record[key] for key in SHOWN if key in record}
        self._ticker.tell({"step": record["step"], "facts": facts | epochs})

    def __call__(self, records: Sequence[Record], summary: Mapping[str, Any]) -> None:
        """Begin a checkpoint and report; returns as soon as the state is copied."""
        began = time.perf_counter()
        self.wait()
        if "cells" in summary:
            records[-1]["cells_seen"] = float(summary["cells"])
        loop = self.loop
        held = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
        writing = begin_checkpoint(
            held,
            loop.learner,
            loop.optimizer,
            loop.state,
            records=records,
            epoch={key: summary[key] for key in EPOCH if key in summary},
            rank=self._rank,
            group=self._group,
        )
        self._stored = stored = threading.Event()

        def store(local: Checkpoint, name: str) -> Checkpoint:
            try:
                writing.result()
                target = f"{self._folder}/{name}"
                copy_files(local.path, target, destination_filesystem=self._system)
                return Checkpoint(target, self._system)
            finally:
                shutil.rmtree(held, ignore_errors=True)
                stored.set()

        # Ray ranks a checkpoint without the score above all others; inside an epoch there is none.
        loss = summary.get("validation_loss", math.inf)
        judged = {"validation_loss": loss if math.isfinite(loss) else math.inf}
        metrics = {"records": list(records), "step": loop.state.step, **summary, **judged}
        if records:
            records[-1]["seconds_checkpoint"] = time.perf_counter() - began
            if self._rank == 0:
                self._tell(records[-1])
        ray.train.report(
            metrics,
            checkpoint=Checkpoint.from_directory(held),
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=store,
            delete_local_checkpoint_after_upload=False,
        )

    def wait(self) -> None:
        """Wait until the last checkpoint is stored."""
        self._stored.wait()


def sweep() -> None:
    """Remove what workers that were killed have left in this machine's temporary folder."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        pid = folder.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)
