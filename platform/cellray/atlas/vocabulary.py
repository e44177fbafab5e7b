"""The genes of an atlas: those of many sources brought together, or a given list."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellray.atlas.columns import join_column
from cellray.atlas.counts import Source
from cellray.atlas.h5ad import check_tables, read_frame
from cellray.atlas.hdf5 import h5_file, no_file
from cellray.atlas.naming import (
    COLUMNS,
    IDS,
    SYMBOLS,
    Kind,
    Strings,
    Table,
    chosen_names,
    named_table,
    without_version,
)
from cellray.atlas.storage import storage_errors
from cellray.atlas.store import Atlas
from cellray.atlas.urls import is_remote
from cellray.core.errors import CellrayError


def read_vocabulary(path: str | Path) -> pd.DataFrame:
    """Read the genes that an atlas shall have, in their order.

    Parameters
    ----------
    path
        A text file of one name a line, the var of an ``.h5ad``, or an atlas.

    Returns
    -------
    DataFrame
        Indexed by unique names; its columns are what is known of the genes.

    Raises
    ------
    CellrayError
        Nothing there or not to be read, no names, or names that repeat.
    """
    with storage_errors(str(path)):
        return _read_vocabulary(path)


def _read_vocabulary(path: str | Path) -> pd.DataFrame:
    if is_remote(str(path)) or Path(path).expanduser().is_dir():
        return Atlas.open(str(path)).var
    file = Path(path).expanduser()
    if not file.exists():
        raise no_file(file)
    if file.suffix == ".h5ad":
        with h5_file(file) as h5:
            check_tables(h5, file, "")
            table = read_frame(h5, "var", file)
    else:
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        except UnicodeDecodeError as error:
            raise CellrayError(f"{file} is no text", "give one gene name a line") from error
        table = pd.DataFrame(index=pd.Index([line for line in lines if line], dtype=object))
    if table.empty and not len(table.index):
        raise CellrayError(f"{file} names no gene", "give one gene name a line")
    twice = table.index[table.index.duplicated()]
    if len(twice):
        raise CellrayError(f"{file} names gene '{twice[0]}' twice", "name each gene once")
    return table


def join_genes(
    sources: Sequence[Source],
    *,
    join: Literal["inner", "outer"] | pd.DataFrame = "inner",
    names: str = "index",
    duplicates: Literal["sum", "refuse"] = "refuse",
) -> tuple[pd.DataFrame, list[NDArray[np.int64]]]:
    """Make one list of genes of those of all sources.

    Parameters
    ----------
    sources
        The sources.
    join
        ``"inner"`` keeps the genes that all have, in the order of the first; ``"outer"`` keeps
        all, new ones behind those before; a table keeps its own (`read_vocabulary`, or the var
        of an atlas).
    names
        What names genes: ``"index"``, of the kind that the first index (or the table) has;
        ``"ids"``, ``"symbols"``; or a column of var, with the index where that is empty.
    duplicates
        What to do with genes of one source that have one name.

    Returns
    -------
    var, maps
        The genes' table, indexed by unique names; and for each source where its columns go,
        shape (source columns,), int64, -1 where one is left out. With ``"sum"`` several columns
        may go to one place.

    Raises
    ------
    CellrayError
        Names that repeat though they may not, a source that matches none, a column or a kind of
        name that a source lacks.
    """
    given = isinstance(join, pd.DataFrame)
    tables = [named_table(str(source.path), source.genes) for source in sources]
    if isinstance(join, pd.DataFrame):
        tables.insert(0, named_table("the vocabulary", join))
    chosen = chosen_names(tables, names, given=given)
    keys = [pd.Index(without_version(values)) for values in chosen]
    for number, (table, key) in enumerate(zip(tables, keys, strict=True)):
        if duplicates == "refuse" or (given and number == 0):
            _refuse_duplicates(table, key)
    final = keys[0].unique()
    for number, key in enumerate(keys[1:], 1):
        shared = final.isin(key)
        if not shared.any():
            raise _nothing_shared(tables, keys, number, names)
        if not given and join == "inner":
            final = final[shared]
        elif not given:
            final = final.append(key.unique().difference(final, sort=False))
    maps = [final.get_indexer(key).astype(np.int64) for key in keys]
    if isinstance(join, pd.DataFrame):
        chosen[0] = join.index.to_numpy(dtype=object)  # found by another kind, it keeps its names
    var = _var(tables, chosen, maps, given=given)
    return var, maps[int(given) :]


def _refuse_duplicates(table: Table, key: "pd.Index[str]") -> None:
    twice = key[key.duplicated()]
    if len(twice):
        raise CellrayError(
            f"{table.label} names {len(twice)} genes twice, '{twice[0]}' among them",
            "make them unique, e.g. adata.var_names_make_unique(), or add them up with "
            "--duplicates sum",
        )


def _nothing_shared(
    tables: Sequence[Table], keys: Sequence["pd.Index[str]"], number: int, names: str
) -> CellrayError:
    """Say that a table matches none of those before it, with an example of each."""
    table, first = tables[number], tables[0]
    mend = "give all sources the same kind of gene names"
    if names == "index" and table.kind != first.kind:
        mend += (
            f": {table.label} has {table.kind}, {first.label} has {first.kind}; name a var column "
            "that all carry with --gene-names COLUMN"
        )
    before = "the sources before it" if len(tables[:number]) > 1 else first.label
    return CellrayError(
        f"{table.label} shares no gene with {before}: it names them like '{keys[number][0]}', "
        f"they like '{keys[0][0]}'",
        mend,
    )


def _var(
    tables: Sequence[Table],
    names: Sequence[Strings],
    maps: Sequence[NDArray[np.int64]],
    *,
    given: bool,
) -> pd.DataFrame:
    """Make the table of all genes, each as the first table that has it names and describes it.

    A vocabulary alone says which columns there are, but for the names of the other kind.
    """
    n_genes = 1 + max(int(columns.max()) for columns in maps)
    owner, row = np.full(n_genes, -1), np.zeros(n_genes, np.int64)
    for number, columns in reversed(list(enumerate(maps))):
        at = np.flatnonzero(columns >= 0)[::-1]  # the first of several comes last, and stays
        owner[columns[at]], row[columns[at]] = number, at
    used = [0] if given else [int(number) for number in np.unique(owner)]
    rows = [row[owner == number] for number in used]
    parts = [tables[number].var.iloc[at] for number, at in zip(used, rows, strict=True)]
    back = np.argsort(np.concatenate([np.flatnonzero(owner == number) for number in used]))
    index = np.concatenate([names[number][at] for number, at in zip(used, rows, strict=True)])
    var = pd.DataFrame(index=pd.Index(index[back], dtype=object))
    for column in dict.fromkeys(name for part in parts for name in part.columns):
        arrays = [part[column].array if column in part else None for part in parts]
        single = arrays[0] if len(arrays) == 1 else None
        joined = join_column(arrays, [len(part) for part in parts]) if single is None else single
        var[column] = joined[back]
    kind = SYMBOLS if named_table("", var).kind == IDS else IDS
    if COLUMNS[kind] not in var:
        found = _other_names(tables, maps, n_genes, kind)
        if not pd.isna(found).all():
            var[COLUMNS[kind]] = found
    return var


def _other_names(
    tables: Sequence[Table], maps: Sequence[NDArray[np.int64]], n_genes: int, kind: Kind
) -> Strings:
    """Give each gene's name of a kind that tables carry beside the other, None if none does."""
    found = np.full(n_genes, None, dtype=object)
    for table, columns in zip(tables, maps, strict=True):
        if kind in table.names and len(table.names) > 1:
            at = np.flatnonzero(columns >= 0)[::-1]
            at = at[pd.isna(found[columns[at]])]
            found[columns[at]] = table.names[kind][at]
    return found
