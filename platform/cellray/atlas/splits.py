"""Which cells are trained on, which validate, and which nothing looks at until the end.

A run may draw its own split, or several may share one that is stored in the atlas under a name:
a categorical in ``uns/splits``, with its facts in the manifest.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellray.atlas.manifest import amending, publish
from cellray.atlas.nodes import DICT, put_group
from cellray.atlas.selection import count_codes
from cellray.atlas.storage import intact, object_store, storage_errors
from cellray.atlas.store import Atlas
from cellray.atlas.tables import read_element, write_element
from cellray.core.errors import CellrayError, suggest
from cellray.core.seeds import generator

SIDES = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(3)

Sides = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class SplitSpec:
    """How cells are split.

    Attributes
    ----------
    by
        An obs column (a donor, a study, a perturbation): its values go to one side as a whole.
        Cells without a value are one group of their own.
    values, test_values
        Values of `by` that validate and that test; without any, values are taken in random order
        until the fractions are reached.
    stratify
        An obs column (a label) each of whose values is split in the same fractions, to within a
        cell. Without it and `by`, runs of cells are taken: the atlas is shuffled.
    validation, test
        Fractions of the cells.
    seed
        The same spec splits the same cells in the same way.
    """

    by: str | None = None
    values: tuple[str, ...] = ()
    test_values: tuple[str, ...] = ()
    stratify: str | None = None
    validation: float = 0.1
    test: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise CellrayError(f"seed {self.seed} is negative", "give 0 or more")
        for name in ("validation", "test"):
            if not 0 <= getattr(self, name) < 1:
                raise CellrayError(
                    f"{name} is {getattr(self, name)}", "give a fraction from 0 up to below 1"
                )
        if self.validation + self.test >= 1:
            raise CellrayError(
                f"validation and test take {self.validation:g} and {self.test:g} of the cells",
                "leave some to train on",
            )
        if self.by and self.stratify:
            raise CellrayError("a split is either by whole values or stratified", "name one column")
        if (self.values or self.test_values) and not self.by:
            raise CellrayError(
                "values are held out, but it is not said of which column", "name it with --by"
            )
        both = set(self.values) & set(self.test_values)
        if both:
            raise CellrayError(
                f"'{min(both)}' is to validate and to test", "name each value on one side"
            )

    @property
    def column(self) -> str | None:
        """The obs column that is needed."""
        return self.by or self.stratify


def split_cells(
    column: "pd.Series[Any] | None", part_cells: Sequence[int], spec: SplitSpec
) -> Sides:
    """Split cells as a spec says.

    Parameters
    ----------
    column
        The obs column ``spec.column`` of all cells, or None without one.
    part_cells
        Cells of each part of the atlas.
    spec
        How.

    Returns
    -------
    ndarray
        Index into `SIDES` of each cell, shape (n_cells,), uint8. A side whose fraction is not 0
        has a cell, and training has one.

    Raises
    ------
    CellrayError
        Too few cells or groups, or no such value.
    """
    n_cells = sum(part_cells)
    sides = np.full(n_cells, TRAIN, np.uint8)
    held = {TEST: spec.test, VALIDATION: spec.validation}
    wanted = [side for side, fraction in held.items() if fraction > 0]
    rng = generator(spec.seed, "split")
    if spec.by is not None and column is not None:
        codes, names = group_codes(column)
        if spec.values or spec.test_values:
            groups = _named_groups(names, spec)
        else:
            sizes = np.trim_zeros(count_codes(codes, len(names) + 1), "b")  # none are missing
            groups = _drawn_groups(sizes, held, spec.by, rng)
        chosen: Sides = groups[codes]
        return chosen
    if not wanted:
        return sides
    if n_cells <= len(wanted):
        raise CellrayError(f"{n_cells} cells cannot be split", "set validation to 0")
    if column is not None:
        codes, _ = group_codes(column)
        # The store is shuffled: within a value the stored order is a random one.
        _deal_evenly(sides, np.argsort(codes, kind="stable"), held, rng)
    else:
        start = 0
        for size in part_cells:
            # A run of a shuffled part is a random sample, and leaves runs to read around it.
            ring = start + (rng.integers(size) + np.arange(size)) % size
            tests = min(round(size * spec.test), size)
            sides[ring[:tests]] = TEST
            sides[ring[tests : tests + round(size * spec.validation)]] = VALIDATION
            start += size
    for side in (TRAIN, *wanted):
        if not (sides == side).any():
            crowd = np.bincount(sides, minlength=3).argmax()
            sides[rng.choice(np.flatnonzero(sides == crowd))] = side
    return sides


def plan_split(atlas: Atlas, name: str, spec: SplitSpec) -> tuple[Sides, dict[str, Any]]:
    """Split an atlas's cells, and say what `store_split` would store; nothing is written.

    Returns
    -------
    sides, facts
        Of `split_cells` and of `store_split`.

    Raises
    ------
    CellrayError
        A name that is taken or cannot be a path, no such column, or what `split_cells` refuses.
    """
    if not re.fullmatch(r"\w[\w-]*", name):
        raise CellrayError(f"'{name}' cannot name a split", "use letters, digits, '_' and '-'")
    if name in atlas.manifest.splits:
        raise CellrayError(f"{atlas.url} has a split '{name}' already", "choose another name")
    sides = split_cells(_column(atlas, spec.column), atlas.part_cells, spec)
    cells = dict(zip(SIDES, np.bincount(sides, minlength=3).tolist(), strict=True))
    return sides, {**asdict(spec), "n_cells": atlas.n_cells, "cells": cells}


def store_split(atlas: Atlas, name: str, spec: SplitSpec) -> dict[str, Any]:
    """Split an atlas's cells and store the split in it under a name.

    The digest stays: it is over the content, and a split is a way to look at it.

    Returns
    -------
    dict
        The spec, ``n_cells``, and ``cells`` of each side: what the manifest keeps of it.

    Raises
    ------
    CellrayError
        What `plan_split` refuses, or an atlas that cannot be written.
    """
    sides, facts = plan_split(atlas, name, spec)
    with storage_errors(atlas.url), amending(atlas.url):
        now = Atlas.open(atlas.url)
        manifest = now.manifest
        if name in manifest.splits or manifest.n_cells != atlas.n_cells:
            raise CellrayError(f"{atlas.url} was changed meanwhile", "split again")
        store = object_store(atlas.url)
        for path in ("uns", "uns/splits"):
            if path not in now.nodes:
                put_group(store, path, DICT)
        column = pd.Categorical.from_codes(sides, pd.Index(SIDES))
        write_element(store, f"uns/splits/{name}", column)
        publish(atlas.url, replace(manifest, splits={**manifest.splits, name: facts}))
    return facts


def stored_split(atlas: Atlas, name: str) -> Sides:
    """Read a split of an atlas: index into `SIDES` of each cell, shape (n_cells,), uint8.

    Raises
    ------
    CellrayError
        No split of this name, or cells were appended since it was made.
    """
    if name not in atlas.manifest.splits:
        known = suggest(name, atlas.manifest.splits) if atlas.manifest.splits else ""
        raise CellrayError(
            f"{atlas.url} has no split '{name}'",
            known or f"make one: cellray split {shlex.quote(atlas.url)} --name {name}",
        )
    n_cells = atlas.manifest.splits[name]["n_cells"]
    if n_cells != atlas.n_cells:
        raise CellrayError(
            f"split '{name}' was made of {n_cells:,} cells, before others were appended to make "
            f"{atlas.n_cells:,}",
            "make one of all: cellray split URL --name NEW",
        )
    with storage_errors(atlas.url), intact(atlas.url):
        column = read_element(atlas.group[f"uns/splits/{name}"])
    return np.asarray(column.codes, np.uint8)


def draw_split(atlas: Atlas, spec: SplitSpec) -> Sides:
    """Split an atlas's cells without storing it: as `split_cells`."""
    return split_cells(_column(atlas, spec.column), atlas.part_cells, spec)


def group_codes(column: "pd.Series[Any]") -> tuple[NDArray[np.integer[Any]], list[str]]:
    """Give values numbers in the order of their sorted names, missing values last.

    Returns
    -------
    codes, names
        Shape (n_cells,), narrow; and the name of each number, without that of missing values.
    """
    categories = pd.Categorical(column).remove_unused_categories()
    names = np.asarray(categories.categories.map(str), dtype=object)
    order = np.argsort(names, kind="stable")
    number = np.append(np.argsort(order), len(names))  # a missing value's code, -1, takes the last
    codes = number.astype(np.min_scalar_type(len(names)))[categories.codes]
    return codes, names[order].tolist()


def _column(atlas: Atlas, name: str | None) -> "pd.Series[Any] | None":
    return None if name is None else atlas.obs([name])[name]


def _named_groups(names: Sequence[str], spec: SplitSpec) -> Sides:
    """Give the side of each group, missing values last, from the spec's values."""
    groups = np.full(len(names) + 1, TRAIN, np.uint8)
    for side, values in ((VALIDATION, spec.values), (TEST, spec.test_values)):
        for value in values:
            if value not in names:
                raise CellrayError(
                    f"obs column '{spec.by}' has no value '{value}'",
                    suggest(value, names) if names else "name another column: it is empty",
                )
            groups[names.index(value)] = side
    if groups[: len(names)].all():
        raise CellrayError(
            f"all values of '{spec.by}' are held out", "leave at least one to train on"
        )
    return groups


def _drawn_groups(
    sizes: NDArray[np.int64], held: dict[int, float], by: str, rng: np.random.Generator
) -> Sides:
    """Give the side of each group: random ones until a side has its fraction of the cells."""
    wanted = [side for side, fraction in held.items() if fraction > 0]
    if len(sizes) <= len(wanted):
        raise CellrayError(
            f"obs column '{by}' has {_count(len(sizes))} only, so no group can be held out",
            "split by another column, or set split_by to null",
        )
    groups = np.full(len(sizes), TRAIN, np.uint8)
    order, first = rng.permutation(len(sizes)), 0
    for left, side in zip(range(len(wanted), 0, -1), wanted, strict=True):
        reached = np.cumsum(sizes[order[first:]]) >= held[side] * sizes.sum()
        taken = int(reached.argmax()) + 1 if reached.any() else len(reached)
        last = min(first + taken, len(order) - left)
        groups[order[first:last]] = side
        first = last
    return groups


def _deal_evenly(
    sides: Sides, order: NDArray[np.int64], held: dict[int, float], rng: np.random.Generator
) -> None:
    """Take cells for each side at even distances along an order, from a random one on."""
    left = 1.0
    for side, fraction in held.items():
        marks = np.floor(np.arange(len(order) + 1) * (fraction / left) + rng.random())
        taken = np.diff(marks) > 0
        sides[order[taken]] = side
        order, left = order[~taken], left - fraction


def _count(n: int) -> str:
    return "one value" if n == 1 else f"{n} values"
