"""What names genes: Ensembl ids or symbols, and how a table of one kind finds the other.

Ids are known by how they look, and match whatever version they carry (``ENSG00000141510.17``);
symbols are what else names genes. A table that carries both kinds translates for tables that
carry one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellray.core.errors import CellrayError, suggest

Kind = Literal["ids", "symbols"]
Strings = NDArray[np.object_]

IDS: Kind = "ids"
SYMBOLS: Kind = "symbols"
COLUMNS: Mapping[Kind, str] = {IDS: "gene_id", SYMBOLS: "gene_symbol"}
"""Columns of an atlas's var that hold the other kind of name, where it is known."""

_ENSEMBL = r"^(ENS[A-Z]{0,6}G\d+)(?:\.\d+)?"
_KNOWN: Mapping[Kind, tuple[str, ...]] = {
    IDS: ("gene_id", "gene_ids", "ensembl_id", "ensembl", "ensemblid", "feature_id", "id"),
    SYMBOLS: (
        "gene_symbol",
        "gene_symbols",
        "symbol",
        "hgnc_symbol",
        "gene_name",
        "gene_names",
        "feature_name",
        "name",
        "gene",
    ),
}


@dataclass(frozen=True, eq=False)
class Table:
    """A source's or a vocabulary's genes.

    Attributes
    ----------
    label
        What it is called in messages.
    var
        The table.
    kind
        Of which kind the names in its index are.
    names
        Names of each kind that it carries, shape (n,), None where one is missing.
    """

    label: str
    var: pd.DataFrame
    kind: Kind
    names: Mapping[Kind, Strings]


def named_table(label: str, var: pd.DataFrame) -> Table:
    """Find out which kinds of names a table carries."""
    index = var.index.to_numpy(dtype=object)
    kind = IDS if _share_of_ids(index) > 0.5 else SYMBOLS
    other = SYMBOLS if kind == IDS else IDS
    found = {kind: index}
    lower = {str(column).lower(): column for column in reversed(var.columns)}
    known = [lower[name] for name in _KNOWN[other] if name in lower]
    # Ids are known by their looks in any column, symbols only by what a column is called.
    for column in dict.fromkeys([*known, *(var.columns if other == IDS else ())]):
        values = _strings(var[column])
        if values is not None and (_share_of_ids(values) > 0.5) == (other == IDS):
            found[other] = values
            break
    return Table(label, var, kind, found)


def _strings(column: "pd.Series[Any]") -> Strings | None:
    """Give a column's strings, None where one is missing or empty, if it holds any."""
    if not pd.api.types.is_string_dtype(column.astype(object).dropna()):
        return None
    values = column.astype(object).where(column.notna() & (column.astype(str) != ""), None)
    return values.to_numpy(dtype=object) if values.notna().any() else None


def _share_of_ids(values: Strings) -> float:
    known = pd.Series(values, dtype=object).dropna()
    return float(known.str.match(_ENSEMBL).mean()) if len(known) else 0.0


def chosen_names(tables: Sequence[Table], names: str, *, given: bool) -> list[Strings]:
    """Name the genes of all tables by one kind of name, or by a column.

    Parameters
    ----------
    tables
        The tables.
    names
        ``"index"``, which means the kind that the first table's index has; ``"ids"``,
        ``"symbols"``, or a column, with the index where that is empty.
    given
        Whether the first table is a vocabulary, which is named by its index if by a column.

    Returns
    -------
    list of ndarray
        Names of each table's genes, shape (n,).

    Raises
    ------
    CellrayError
        A table lacks the column, or the kind that is asked for.
    """
    if names not in {"index", IDS, SYMBOLS}:
        own = [tables[0].var.index.to_numpy(dtype=object)] if given else []
        return [*own, *(_column(table, names) for table in tables[len(own) :])]
    kind: Kind = tables[0].kind if names == "index" else SYMBOLS if names == SYMBOLS else IDS
    translation = _translation(tables, kind)
    return [_of_kind(table, kind, translation, asked=names != "index") for table in tables]


def without_version(values: Strings) -> "pd.Series[str]":
    """Drop the versions of Ensembl ids; other names stay as they are."""
    return pd.Series(values, dtype=object).str.replace(_ENSEMBL, r"\1", regex=True)


def _column(table: Table, name: str) -> Strings:
    if name not in table.var.columns:
        raise CellrayError(
            f"{table.label} has no var column '{name}'",
            suggest(name, map(str, table.var.columns))
            if len(table.var.columns)
            else "leave out --gene-names: var has no columns",
        )
    values = table.var[name]
    own = table.var.index.to_numpy(dtype=object)
    return np.where(values.isna(), own, values.astype(str).to_numpy(dtype=object))


def _translation(tables: Sequence[Table], kind: Kind) -> "pd.Series[str]":
    """Map the other kind of name to `kind`, by all tables that carry both, where that is clear."""
    other = SYMBOLS if kind == IDS else IDS
    pairs = [
        pd.DataFrame({"of": without_version(t.names[other]), "to": t.names[kind]})
        for t in tables
        if len(t.names) > 1
    ]
    if not pairs:
        return pd.Series(dtype=object)
    known = pd.concat(pairs).dropna()
    known["same"] = without_version(known["to"].to_numpy(dtype=object)).to_numpy()
    known = known.drop_duplicates(["of", "same"])
    return known[~known["of"].duplicated(keep=False)].set_index("of")["to"]


def _of_kind(table: Table, kind: Kind, translation: "pd.Series[str]", *, asked: bool) -> Strings:
    """Give a table's names of a kind; a gene that has none keeps the one in the index."""
    index = table.var.index.to_numpy(dtype=object)
    if kind in table.names:
        names = table.names[kind]
    elif len(translation):
        names = without_version(index).map(translation).to_numpy(dtype=object)
    elif asked:
        raise CellrayError(
            f"{table.label} names no gene by {kind}: it has '{index[0]}' and no column of {kind}",
            f"name the var column that holds them with --gene-names COLUMN, or leave {kind} out",
        )
    else:
        names = index
    return np.where(pd.isna(names), index, names)
