"""What a worker does with what its loop knows: checkpoints, gauges, word to the driver."""

import math
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch.distributed as dist
from pyarrow.fs import FileSystem, copy_files

from cellray.core.sections import MODES
from cellray.train.checkpoint import begin_checkpoint
from cellray.train.gauges import publish
from cellray.train.ticker import SECONDS
from cellray.train.timing import Record

if TYPE_CHECKING:
    from cellray.train.loop import Loop

PREFIX = f"cellray-checkpoint-{socket.gethostname()}-"  # a temporary folder may be shared
EPOCH = ("epoch", "cells", "cells_hash")
SHOWN = ("train_loss", "validation_loss", "knn_macro_f1", "cells_per_s", "feed_wait_share")
"""What of a record a driver shows."""


Store = Callable[[str], str]
"""Waits until a checkpoint is written, copies it to a name in the run's folder, and gives its path.
"""
HandIn = Callable[[Mapping[str, Any], Path, Store], None]
"""Takes a report, the folder in which its checkpoint is being written, and how to store that."""


class Saver:
    """Takes a loop's reports; at most one checkpoint is on its way while training goes on.

    Parameters
    ----------
    system, folder
        Where checkpoints go.
    run, rank
        Whose reports they are.
    tell
        Tells the driver how far the run is.
    hand_in
        Takes the reports; it returns before the checkpoint is stored.
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
        tell: Callable[[Mapping[str, Any]], None],
        hand_in: HandIn,
        timeout_s: int,
    ) -> None:
        self._tell_driver = tell
        self._hand_in = hand_in
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
        remove_leftovers()

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
        self._tell_driver({"step": record["step"], "facts": facts | epochs})

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

        def store(name: str) -> str:
            try:
                writing.result()
                target = f"{self._folder}/{name}"
                copy_files(str(held), target, destination_filesystem=self._system)
                return target
            finally:
                shutil.rmtree(held, ignore_errors=True)
                stored.set()

        if records:
            records[-1]["seconds_checkpoint"] = time.perf_counter() - began
            if self._rank == 0:
                self._tell(records[-1])
        told = {"records": list(records), "step": loop.state.step, **summary}
        self._hand_in(told | self._judged(records), held, store)

    def _judged(self, records: Sequence[Record]) -> dict[str, float]:
        """Give what checkpoints are ranked by; the worst where there is none, as inside an epoch.

        Ray ranks a checkpoint without the score above all others.
        """
        name = self.loop.recipe.train.best
        worst = math.inf if MODES[name] == "min" else -math.inf
        value = records[-1].get(name, worst) if records else worst
        return {name: value if math.isfinite(value) else worst}

    def wait(self) -> None:
        """Wait until the last checkpoint is stored."""
        self._stored.wait()


def remove_leftovers() -> None:
    """Remove what workers that were killed have left in this machine's temporary folder."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        pid = folder.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)
