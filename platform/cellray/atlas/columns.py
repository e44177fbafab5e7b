"""The tables of an atlas: obs columns of many sources joined and shuffled, one by one."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from obstore.store import ObjectStore

from cellray.atlas.counts import Source
from cellray.atlas.tables import Column, write_table
from cellray.core.errors import CellrayError, suggest

NUMBERS, TRUTH, TEXT = "numbers", "truth values", "text"

_EXACT = 1 << 53  # up to here float64 holds every whole number

logger = logging.getLogger(__name__)

SOURCE, ROW, NAME = "cellray_source", "cellray_row", "cellray_name"
"""Columns of ours: the source's name, the row in it, and the name that the cell has there."""


def choose_columns(sources: Sequence[Source], wanted: Sequence[str] | None) -> list[str]:
    """Give the obs columns to keep: those wanted, or all of all sources.

    Raises
    ------
    CellrayError
        No source has a wanted column, or a column has the name of one of ours.
    """
    known = list(dict.fromkeys(name for source in sources for name in source.columns))
    names = known if wanted is None else list(dict.fromkeys(wanted))
    for name in names:
        if name not in known:
            raise CellrayError(
                f"no source has an obs column '{name}'",
                suggest(name, known) if known else "leave out --obs: no source has any",
            )
        if name in {SOURCE, ROW, NAME}:
            raise CellrayError(
                f"obs column '{name}' has a name that the atlas needs for its own",
                "rename it, or choose others with --obs",
            )
    return names


def write_obs(
    store: ObjectStore,
    sources: Sequence[Source],
    source_names: Sequence[str],
    columns: Sequence[str],
    order: NDArray[np.int64],
) -> bytes:
    """Write obs in stored order, one column in memory at a time.

    Parameters
    ----------
    store
        The atlas.
    sources, source_names
        The sources and their names.
    columns
        Which columns to keep.
    order
        For each stored cell its place in the joined sources, shape (n_cells,).

    Returns
    -------
    bytes
        A digest of all columns.
    """
    sizes = [source.n_cells for source in sources]
    source_of = np.repeat(np.arange(len(sources)), sizes)[order].astype(np.int32)
    row_of = np.concatenate([np.arange(size) for size in sizes])[order]
    labels = np.array(source_names, dtype=np.dtypes.StringDType())

    def written() -> Iterator[tuple[str, Column]]:
        for name in columns:
            parts = [s.column(name) if name in s.columns else None for s in sources]
            joined = join_column(parts, sizes)
            kinds = [None if part is None else kind_of(pd.Series(part).dtype) for part in parts]
            if kind_of(joined.dtype) == TEXT:
                say_text(name, dict(zip(source_names, kinds, strict=True)))
            yield name, joined[order]
        yield SOURCE, pd.Categorical.from_codes(source_of, pd.Index(source_names))
        yield ROW, row_of
        strings = np.dtypes.StringDType()
        yield NAME, np.concatenate([source.names().astype(strings) for source in sources])[order]

    def index(rows: slice) -> NDArray[Any]:
        return np.strings.add(
            np.strings.add(labels[source_of[rows]], "-"), row_of[rows].astype(labels.dtype)
        )

    names = [*columns, SOURCE, ROW, NAME]
    return write_table(store, "obs", written(), names, len(order), index)


def kind_of(dtype: Any) -> str:  # noqa: ANN401 - pandas' dtypes and NumPy's
    """Name what a column holds, or its categories: numbers, truth values or text."""
    kind = dtype.categories.dtype.kind if isinstance(dtype, pd.CategoricalDtype) else dtype.kind
    return NUMBERS if kind in "iuf" else TRUTH if kind == "b" else TEXT


def say_text(name: str, kinds: Mapping[str, str | None]) -> None:
    """Warn of an obs column that becomes text though some sources hold something else there.

    Parameters
    ----------
    name
        The column.
    kinds
        What each source holds there (`kind_of`), by its name; None where it lacks the column.
    """
    found = {
        kind: [source for source, held in kinds.items() if held == kind]
        for kind in (NUMBERS, TRUTH, TEXT)
    }
    if not found[NUMBERS] and not found[TRUTH]:
        return
    held = "; ".join(f"{kind} in {', '.join(names)}" for kind, names in found.items() if names)
    logger.warning("obs column '%s' becomes text: %s", name, held)


def write_var(store: ObjectStore, table: pd.DataFrame) -> bytes:
    """Write the genes' table: its numbers, strings and categories; gives a digest."""
    kept = [
        str(name)
        for name, column in table.items()
        if name != "_index" and column.dtype.kind in "biufOT"
    ]
    columns = ((name, join_column([table[name].array], [len(table)])) for name in kept)
    names = np.asarray(table.index, dtype=np.dtypes.StringDType())
    return write_table(store, "var", columns, kept, len(table), lambda rows: names[rows])


def join_column(parts: Sequence[Any], sizes: Sequence[int]) -> Column:
    """Join a column's parts from several sources.

    Numbers stay numbers of a type that holds them all. Strings, categories and mixtures become
    categories, the union of all. A part that is None is missing: NaN, or no category; numbers
    then become float64, and truth values categories of truth values. Whole numbers that float64
    does not hold, such as long ids, become categories of strings instead.

    Parameters
    ----------
    parts
        One part a source: a NumPy or pandas array, or None where the source lacks the column.
    sizes
        Rows of each part.
    """
    columns = [None if part is None else pd.Series(part) for part in parts]
    given = [column for column in columns if column is not None]
    whole = len(given) == len(parts) and not any(column.hasnans for column in given)
    kinds = {"c" if _is_categorical(column) else column.dtype.kind for column in given}
    if kinds == {"b"} and whole:
        return np.concatenate([column.to_numpy(np.bool_) for column in given])
    if kinds <= set("iuf"):
        types: list[Any] = [getattr(c.dtype, "numpy_dtype", c.dtype) for c in given]
        dtype = np.result_type(*types) if whole or kinds == {"f"} else np.dtype(np.float64)
        if not _holds(dtype, given):
            texts = [None if column is None else column.astype("string") for column in columns]
            return _join_categories(texts, sizes)
        fill: dict[str, Any] = {} if whole else {"na_value": np.nan}
        return np.concatenate(
            [
                np.full(size, np.nan, dtype) if column is None else column.to_numpy(dtype, **fill)
                for column, size in zip(columns, sizes, strict=True)
            ]
        )
    return _join_categories(columns, sizes)


def _join_categories(
    columns: Sequence["pd.Series[Any] | None"], sizes: Sequence[int]
) -> pd.Categorical:
    """Join columns as categories, in the order in which they first come."""
    parts = [None if column is None else pd.Categorical(column) for column in columns]
    known = [part for part in parts if part is not None]
    given = [part.categories for part in known]
    kinds = {index.dtype.kind for index in given}
    kept = kinds == {"b"} or (
        kinds <= set("iuf")
        and _holds(np.result_type(*(index.to_numpy().dtype for index in given)), given)
    )
    labels = [
        np.array([], object)
        if part is None
        else part.categories.to_numpy()
        if kept
        else part.categories.map(str).to_numpy(object)
        for part in parts
    ]
    union = pd.Index(
        pd.unique(np.concatenate([label for label in labels if len(label)] or labels[:1]))
    )
    codes = [
        np.full(size, -1)
        if part is None
        # A missing value's code is -1, which takes the -1 that is appended.
        else np.append(union.get_indexer(pd.Index(label)), -1)[part.codes]
        for part, label, size in zip(parts, labels, sizes, strict=True)
    ]
    # An order holds where all sources put the same categories in it.
    ordered = all(part.ordered and part.categories.equals(given[0]) for part in known)
    return pd.Categorical.from_codes(np.concatenate(codes), union, ordered=ordered)


def _holds(dtype: np.dtype[Any], columns: Sequence["pd.Series[Any] | pd.Index[Any]"]) -> bool:
    """Say whether columns of numbers keep all their whole numbers in a type."""
    if dtype.kind != "f":
        return True
    whole = [column.dropna().to_numpy() for column in columns if column.dtype.kind in "iu"]
    # NumPy makes narrow floats of narrow whole numbers only.
    return all(int(v.min()) >= -_EXACT and int(v.max()) <= _EXACT for v in whole if len(v))


def _is_categorical(column: "pd.Series[Any]") -> bool:
    return isinstance(column.dtype, pd.CategoricalDtype)
