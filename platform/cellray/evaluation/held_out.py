"""What is held out where nobody says: whole donors, where the atlas says who they are."""

import math
from collections.abc import Collection, Mapping
from typing import Any

from cellray.atlas.store import Atlas
from cellray.evaluation.suite import Suite
from cellray.tasks.splits import TEST_SHARE
from cellray.tasks.task import CELLS, Spec, Task

DONORS = ("donor_id", "donor", "individual", "patient", "subject")
"""Columns that say who a cell is of; the first that can be used is."""

LEAST = 4
"""Values of a column that is held out by default: fewer give neither five splits nor intervals."""

SINGLE = "Single cells were held out"
NAME = "--split-by names a column to hold out whole values of"
OTHERWISE = f"--split-by names another column, or '{CELLS}' for single cells"


def settled(suite: Suite, given: Mapping[str, Any], atlas: Atlas) -> tuple[dict[str, Any], str]:
    """Say what the tasks of a suite hold out, if nobody did.

    Whatever compares evaluations asks here before it makes protocols: these say what was done, and
    not that it was the default. The same column is held out in all entries that name none.

    Parameters
    ----------
    suite
        The tasks.
    given
        What its entries do not name.
    atlas
        Whose cells are scored.

    Returns
    -------
    given : dict
        With ``split_by``: a column of donors, else that of the batches, else ``cells``.
    why : str
        A sentence for the reader; empty where ``split_by`` was given.

    Raises
    ------
    CellrayError
        As `Suite.specs`.
    """
    specs = [spec for _, spec in suite.specs(given).values()]
    if all(spec.split_by is not None for spec in specs):
        return dict(given), ""
    labels = list(dict.fromkeys(spec.label for spec in specs if spec.label is not None))
    batches = dict.fromkeys(spec.batch for spec in specs if spec.batch is not None)
    known = [
        name
        for name in dict.fromkeys([*DONORS, *batches])
        if name in atlas.obs_columns and name not in labels
    ]
    reasons = []
    for name in known:
        reason = _unfit(atlas, name, labels)
        if reason is None:
            given = {**given, "split_by": name}
            return given, f"{_held(Spec(split_by=name))} by default: {OTHERWISE}."
        reasons.append(reason)
    why = "; ".join(reasons) or f"no column is named {', '.join(DONORS[:-1])} or {DONORS[-1]}"
    return {**given, "split_by": CELLS}, f"{SINGLE}, and not whole donors, since {why}: {NAME}."


def split_how(task: Task, spec: Spec, why: str) -> str:
    """Say in a sentence what a task has held out, and why if nobody had asked for it."""
    if not task.splits:
        return ""
    if why.startswith(words := _held(spec)):
        return f" {why}"
    return f" {words}."


def _held(spec: Spec) -> str:
    return f"Whole values of '{spec.held_out}' were held out" if spec.held_out else SINGLE


def _unfit(atlas: Atlas, name: str, labels: Collection[str]) -> str | None:
    """Say why a column cannot be held out by default; None where it can."""
    obs = atlas.obs([name, *labels])
    if missing := int(obs[name].isna().sum()):
        return f"{missing:,} cells have no '{name}'"
    found = obs[name].nunique()
    if found < LEAST:
        return f"'{name}' has {found} of the {LEAST} values that this takes"
    for label in labels:
        # Who is in more of them than a split holds out, is always among the training cells.
        spread = obs.groupby(label, observed=True)[name].nunique() > math.ceil(TEST_SHARE * found)
        if int(spread.sum()) < 2:
            return f"a split by '{name}' could leave one '{label}' to learn from"
    return None
