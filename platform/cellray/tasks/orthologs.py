"""Genes of one species by their names in another, from a table of orthologs.

Shape suffixes: A genes of the atlas.
"""

import csv
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cellray.core.errors import CellrayError
from cellray.core.texts import read_text, without_version

LEAST_MATCH = 0.1
"""Of either species' genes that the table must name."""

NO_ORTHOLOG = " (no one-to-one ortholog)"

Names = Sequence[str] | NDArray[np.str_]


def ortholog_names(path: str, genes: Names, model_genes: Names) -> tuple[NDArray[np.str_], str]:
    """Name an atlas's genes as the model's species does, by one-to-one orthologs.

    Only pairs whose genes are in no other pair of the table count: where a gene has several
    orthologs, none of them can be said to do what it does. Ensembl ids match whatever version
    they carry; everything else matches as it is written, since the symbols of two species may
    differ in nothing but upper and lower case.

    Parameters
    ----------
    path
        A local path or a URL (whatever fsspec opens), plain or gzipped, of a ``.tsv``, ``.txt`` or
        ``.csv`` table with a header. The column with most of the atlas's genes is its species', the
        one with most of the model's is the model's; others are ignored.
    genes
        Of the atlas, length A.
    model_genes
        Of the model.

    Returns
    -------
    names : ndarray
        Shape (A,). A gene without an ortholog gets a name that matches nothing: its own might be
        that of another gene of the model's species.
    note : str
        How many were named, and what was left out.

    Raises
    ------
    CellrayError
        No such table, one that cannot be read, or less than a tenth of either species' genes in
        it; or one column that holds both.
    """
    header, rows = _table(path)
    ours, theirs = ([without_version(name.strip()) for name in of] for of in (genes, model_genes))
    columns = [{row[place] for row in rows} - {""} for place in range(len(header))]
    of_atlas, of_model = _shares(columns, ours), _shares(columns, theirs)
    source, target = int(np.argmax(of_atlas)), int(np.argmax(of_model))
    if min(of_atlas[source], of_model[target]) < LEAST_MATCH:
        raise CellrayError(
            f"{path} names {of_atlas[source]:.0%} of the atlas's genes, which are like "
            f"'{_example(genes)}', and {of_model[target]:.0%} of the model's, which are like "
            f"'{_example(model_genes)}'",
            "give a table of orthologs of these two species, with this kind of names",
        )
    if source == target:
        raise CellrayError(
            f"{path} has the atlas's and the model's genes in one column, '{header[source]}'",
            "leave the table out if both are of one species, or give one of the right two",
        )
    pairs = {(row[source], row[target]) for row in rows}
    pairs = {(a, b) for a, b in pairs if a and b}
    left, right = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    single = {a: b for a, b in pairs if left[a] == right[b] == 1}
    written = dict(zip(theirs, model_genes, strict=True))
    found = [single.get(name) for name in ours]
    names = [
        f"{gene}{NO_ORTHOLOG}" if name is None else str(written.get(name, name))
        for gene, name in zip(genes, found, strict=True)
    ]
    named = sum(name is not None for name in found)
    in_model = sum(name in written for name in found)
    note = (
        f"{named:,} of the atlas's {len(names):,} genes were named by their one-to-one orthologs "
        f"('{header[source]}' to '{header[target]}' of {path}); the model has {in_model:,} of "
        f"these. {len(pairs) - len(single):,} pairs of genes that have several orthologs were "
        "left out."
    )
    return np.asarray(names, np.str_), note


def _table(path: str) -> tuple[list[str], list[list[str]]]:
    """Read the header and the rows, names without their versions."""
    lines = [line for line in read_text(path, "orthologs").splitlines() if line.strip()]
    delimiter = "\t" if lines and "\t" in lines[0] else ","
    header, *rows = list(csv.reader(lines, delimiter=delimiter)) or [[]]
    if len(header) < 2:
        raise CellrayError(
            f"{path} has no two columns, of the genes of two species",
            "separate them by tabs or commas, below a header",
        )
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise CellrayError(
                f"{path}: row {number} has {len(row)} columns, the header has {len(header)}",
                "mend the table",
            )
    return header, [[without_version(name.strip()) for name in row] for row in rows]


def _shares(columns: Sequence[set[str]], genes: Sequence[str]) -> list[float]:
    """Give the share of the genes that each column holds."""
    return [sum(gene in column for gene in genes) / max(len(genes), 1) for column in columns]


def _example(genes: Names) -> str:
    return str(genes[0]) if len(genes) else ""
