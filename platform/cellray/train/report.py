"""What the controller does with reports: one MLflow run, and the place to resume from."""

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray.data
from ray.train import Checkpoint, UserCallback

from cellray.atlas.plan import Plan
from cellray.atlas.selection import Selection
from cellray.atlas.store import Atlas
from cellray.core.errors import CellrayError
from cellray.feed.source import train_dataset
from cellray.score import collapse
from cellray.track import runs

COLLAPSED = "cellray.collapsed"
"""Tag of a run whose embeddings are about one point or one line."""
RETRY_SECONDS = (1, 2, 4, 8, 16, 32)

logger = logging.getLogger(__name__)


class RunCallback(UserCallback):
    """Lives in Ray Train's controller, which survives the workers.

    It owns the MLflow run's id, so that restarts write to one run; and it makes the dataset of
    every worker group from the step of the last checkpoint on, so that no cell comes twice.

    Parameters
    ----------
    run_id, uri
        The MLflow run, and the tracking store that holds it.
    ticker
        A file on the driver's node, where the controller runs too; it gets the step after each
        report, for the driver's progress bar.
    atlas, plan, selection, world, obs, matrices
        What `train_dataset` takes.
    """

    def __init__(
        self,
        *,
        run_id: str,
        uri: str,
        ticker: Path,
        atlas: Atlas,
        plan: Plan,
        selection: Selection,
        world: int,
        obs: Sequence[str] = (),
        matrices: Sequence[str] = (),
    ) -> None:
        self._run_id = run_id
        self._uri = uri
        self._ticker = ticker
        self._atlas = atlas
        self._plan = plan
        self._selection = selection
        self._world = world
        self._obs = obs
        self._matrices = matrices
        self._step = 0
        self._collapsed = False

    def dataset(self) -> ray.data.Dataset:
        """Make the dataset from the last checkpoint's step on; Ray calls this at every start."""
        return train_dataset(
            self._atlas,
            self._plan,
            self._selection,
            world=self._world,
            step=self._step,
            obs=self._obs,
            matrices=self._matrices,
        )

    def after_report(
        self,
        run_context: Any,  # noqa: ANN401 - Ray's signature
        metrics: list[dict[str, Any]],
        checkpoint: Checkpoint | None,
    ) -> None:
        """Log rank 0's records and remember the place."""
        del run_context
        os.environ["MLFLOW_TRACKING_URI"] = self._uri  # the controller's own process
        if checkpoint is not None:
            self._step = metrics[0]["step"]
        self._log(metrics[0]["records"])
        self._flag(metrics[0]["records"])
        with self._ticker.open("a") as file:
            file.write(f"{metrics[0]['step']}\n")

    def _flag(self, records: list[dict[str, float]]) -> None:
        """Tag a run whose embeddings have collapsed, and take the tag back if they recover."""
        judged = [one for one in records if "effective_rank" in one]
        if not judged:
            return
        std, rank = judged[-1]["embedding_std"], judged[-1]["effective_rank"]
        flagged = collapse.collapsed(std, rank)
        if flagged != self._collapsed:
            self._collapsed = flagged
            runs.tag_run(self._run_id, COLLAPSED, str(flagged).lower())
        if flagged:
            logger.warning(
                "embeddings have collapsed: standard deviation %.3g, effective rank %.3g; see "
                "docs/methods/monitors.md",
                std,
                rank,
            )

    def _log(self, records: list[dict[str, float]]) -> None:
        """Log to MLflow; a server that is away for a minute costs no record and no run."""
        for seconds in RETRY_SECONDS:
            try:
                return runs.log_records(self._run_id, records)
            except CellrayError as error:
                logger.warning("%s; trying again in %d s", error, seconds)
                time.sleep(seconds)
        return runs.log_records(self._run_id, records)
