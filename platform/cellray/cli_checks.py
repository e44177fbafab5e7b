"""What the words of a verb must be, checked before any work: here, and where they are submitted.

Words are what was given, by the names of the command's parameters.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellray.cli_verbs import recipe_of
from cellray.core.errors import CellrayError

if TYPE_CHECKING:
    from cellray.core.recipe import Recipe
    from cellray.evaluation.suite import Suite
    from cellray.tuning.settings import Sweep

DRY_RESUME = CellrayError(
    "--dry-run is for what is new, and --resume goes on with something", "leave one of them out"
)

OWN = {
    "pretrain": ("atlas", "name", "recipe", "experiment", "storage"),
    "sweep": (
        *("recipe", "atlas", "name", "changes", "label", "metric"),
        *("warm_start", "experiment", "storage"),
    ),
}
"""What a run or a sweep that is resumed has of its own."""

OPTIONS = {"changes": "--set"}
"""Options that are not called as their parameters are."""


def recipe_to_train(given: Mapping[str, Any]) -> "Recipe | None":
    """Check the words of ``cellray pretrain``.

    Returns
    -------
    Recipe or None
        What to train; None where a run is resumed.

    Raises
    ------
    CellrayError
        A recipe that cannot be, no atlas or name, or what a resumed run has of its own.
    """
    if _resumed("pretrain", given):
        return None
    strategy = given.get("strategy")
    changes = [
        *(given.get("changes") or ()),
        *([] if strategy is None else [f"train.strategy={strategy}"]),
    ]
    recipe = recipe_of(given.get("recipe"), changes, given.get("num_workers"))
    _need(("atlas",) if given.get("dry_run") else ("atlas", "name"), given, "RUN_ID")
    return recipe


def sweep_to_run(given: Mapping[str, Any]) -> "Sweep | None":
    """Check the words of ``cellray sweep``.

    Returns
    -------
    Sweep or None
        What to search; None where a sweep is resumed.

    Raises
    ------
    CellrayError
        A sweep file that cannot be, no file, atlas or name, or what a resumed sweep has of its
        own.
    """
    if _resumed("sweep", given):
        return None
    _need(("recipe",), given, "SWEEP")
    from cellray.tuning.settings import Sweep

    label = given.get("label")
    changes = [
        *(given.get("changes") or ()),
        *([] if label is None else [f"probe.label={label}"]),
    ]
    sweep = Sweep.load(
        given["recipe"],
        changes,
        metric=given.get("metric"),
        budget=budget_of(given),
        concurrent=given.get("concurrent"),
    )
    _need(("atlas", "name"), given, "SWEEP")
    return sweep


def budget_of(given: Mapping[str, Any]) -> dict[str, float]:
    """Give what ``cellray sweep`` was told to spend at most."""
    names = ("trials", "hours", "cells")
    return {name: given[name] for name in names if given.get(name) is not None}


def suite_to_score(given: Mapping[str, Any]) -> "Suite":
    """Check the words of ``cellray evaluate``, and give its tasks and gates.

    Raises
    ------
    CellrayError
        A suite that cannot be, a suite and a task, or gates asked for where there are none.
    """
    from cellray.evaluation.suite import Suite

    suite, task = given.get("suite"), given.get("task")
    if suite is not None and task is not None:
        raise CellrayError("--task and --suite are both given", "leave one of them out")
    asked = Suite.load(suite) if suite else Suite.of({"tasks": {task or "annotation": {}}})
    if given.get("gate") and not asked.gates:
        what = f"{suite} has no gates" if suite else "--gate needs gates, and there are none"
        raise CellrayError(what, "give --suite FILE with 'gates:', or leave --gate out")
    return asked


def check_from_here(places: Sequence[tuple[str, str]]) -> None:
    """Raise unless there is what is read and was named by a path from this folder.

    Parameters
    ----------
    places
        Parameters, and what was given: an atlas, or a source of one.

    Raises
    ------
    CellrayError
        There is none.
    """
    for name, given in places:
        path = Path(given).expanduser()
        if name == "sources":
            if not path.exists():
                from cellray.atlas.hdf5 import no_file

                raise no_file(path)
        else:
            from cellray.atlas.store import Atlas

            Atlas.open(given)


def _resumed(verb: str, given: Mapping[str, Any]) -> bool:
    """Say whether something is resumed; then nothing may be given that it has of its own."""
    if given.get("resume") is None:
        return False
    if given.get("dry_run"):
        raise DRY_RESUME
    for name in OWN[verb]:
        if given.get(name) not in (None, []):
            option = OPTIONS.get(name, f"--{name.replace('_', '-')}")
            raise CellrayError(
                f"{option} beside --resume: what is resumed has its own", f"leave {option} out"
            )
    return True


def _need(names: Sequence[str], given: Mapping[str, Any], resumed: str) -> None:
    for name in names:
        if given.get(name) is None:
            raise CellrayError(
                f"--{name} is missing", f"give --{name}, or go on with --resume {resumed}"
            )
