"""What becomes of what a run reports, in Ray Train's controller or in the run's own process."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellray.score import collapse
from cellray.train.exact import check_cells
from cellray.train.timing import Record

if TYPE_CHECKING:  # the controller starts a second earlier without them
    from cellray.track.outbox import Outbox
    from cellray.train.setup import Setup

COLLAPSED = "cellray.collapsed"
"""Tag of a run whose embeddings are about one point or one line."""


class Ledger:
    """What becomes of a run's reports: checked, sent to MLflow, and watched for a collapse.

    Parameters
    ----------
    setup
        Which cells are planned.
    outbox
        The way to the MLflow run; in another process than the one that opened it, its ``parts``.
    logged
        The last step that the run holds already.
    tell
        Tells the driver what happens.
    step
        Where the run begins.
    """

    def __init__(
        self,
        setup: "Setup",
        *,
        outbox: "Outbox | tuple[str, Path, str]",
        logged: int,
        tell: Callable[[Mapping[str, Any]], None],
        step: int,
    ) -> None:
        self._plan = setup.choice.plan
        self._selection = setup.choice.selection
        self._outbox_of = outbox
        self._logged = logged
        self.tell = tell
        # A run that is resumed may have been flagged before.
        self._collapsed: bool | None = None if step else False

    @cached_property
    def outbox(self) -> "Outbox":
        """The way to the MLflow run, opened at the first report."""
        if not isinstance(self._outbox_of, tuple):
            return self._outbox_of
        from cellray.track.outbox import Outbox

        run_id, file, uri = self._outbox_of
        return Outbox(run_id, file, uri=uri)

    def take(self, told: Mapping[str, Any]) -> None:
        """Take a report of rank 0: records, and at an epoch's end what it was trained on.

        Raises
        ------
        RuntimeError
            An epoch was not trained on the planned cells.
        """
        records: Sequence[Record] = told["records"]
        if "cells_hash" in told:
            check_cells(self._plan, self._selection, told)
        self.outbox.put([one for one in records if one["step"] > self._logged])
        self._flag(records)
        if "failure" in told:
            self.tell({"failure": told["failure"]})

    def _flag(self, records: Sequence[Record]) -> None:
        """Tag a run whose embeddings have collapsed, and take the tag back if they recover."""
        judged = [one for one in records if "effective_rank" in one]
        if not judged:
            return
        std, rank = judged[-1]["embedding_std"], judged[-1]["effective_rank"]
        flagged = collapse.collapsed(std, rank)
        known, self._collapsed = self._collapsed, flagged
        if flagged == known:
            return
        self.outbox.tag(COLLAPSED, str(flagged).lower())
        if known is None and not flagged:
            return
        word = "have collapsed" if flagged else "have spread out again"
        self.tell(
            {
                "event": f"embeddings {word}: standard deviation {std:.3g}, effective rank "
                f"{rank:.3g}; see docs/methods/monitors.md"
            }
        )
