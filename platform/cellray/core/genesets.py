"""Gene sets from files: read, and matched to the genes of an atlas and a model."""

import csv
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cellray.core.errors import CellrayError
from cellray.core.genes import GeneSets
from cellray.core.texts import read_text, without_version

LEAST_MATCH = 0.1
"""Of a file's genes, or of the atlas's: with fewer in common, they are named differently."""

TARGETS_OF = "_TARGET_GENES"
"""How MSigDB's C3 TFT ends the names of sets that begin with a factor."""

# In lower case, other signs than letters and digits as "_"; symbols before what may be an id.
_FACTOR_COLUMNS = (
    "source_genesymbol",
    "name_tf",
    "tf_name",
    "tf_symbol",
    "tf_gene",
    "regulator_symbol",
    "factor",
    "transcription_factor",
    "tf",
    "regulator",
    "source",
)
_TARGET_COLUMNS = (
    "target_genesymbol",
    "name_target",
    "target_name",
    "target_symbol",
    "target_gene",
    "targetgene",
    "target_genes",
    "target",
    "targets",
    "gene_symbol",
    "symbol",
    "gene",
    "genes",
)

logger = logging.getLogger(__name__)


def read_gene_sets(path: str) -> dict[str, tuple[str, ...]]:
    """Read gene sets, or the targets of transcription factors.

    Parameters
    ----------
    path
        A local path or a URL (``https://``, ``s3://``, whatever fsspec opens), plain or gzipped.
        ``.gmt``: a line a set with its name, a description and its genes, between tabs (MSigDB).
        ``.tsv``, ``.csv``, ``.txt``: a line an edge, whose header says which columns hold factor
        and target (DoRothEA, CollecTRI, TFLink); without a header the first two do (TRRUST).

    Returns
    -------
    dict
        Genes as the file names them, by set or factor, in the file's order, each once.

    Raises
    ------
    CellrayError
        No such file, one that cannot be read, a format that is not known, or no sets.
    """
    name = path.partition("?")[0].lower().removesuffix(".gz")
    if not name.endswith((".gmt", ".tsv", ".csv", ".txt")):
        raise CellrayError(
            f"gene sets of {path}: its name says no known format",
            "give a .gmt file, or a .tsv or .csv table of factors and targets, or one .gz of these",
        )
    lines = read_text(path, "gene sets").splitlines()
    pairs = _gmt(path, lines) if name.endswith(".gmt") else _edges(path, lines)
    sets: dict[str, dict[str, None]] = {}
    for set_name, gene in pairs:
        if set_name and gene:
            sets.setdefault(set_name, {})[gene] = None
    if not sets:
        raise CellrayError(f"{path} holds no gene sets", "see whether it is the right file")
    return {set_name: tuple(genes) for set_name, genes in sets.items()}


def match_gene_sets(
    path: str,
    sets: Mapping[str, Sequence[str]],
    names: Iterable[Sequence[str | None]],
    columns: NDArray[np.int64],
) -> GeneSets:
    """Find a file's genes among an atlas's, and the sets among a model's.

    A gene is found by any kind of name that the atlas has for it. Ensembl ids match whatever
    version they carry; a name that is not found as it is written is looked for in upper case,
    which finds the symbols of one species in another. What names several genes means them all.

    A set's factor is the gene that the set is named after, or the one before ``_TARGET_GENES``
    (MSigDB C3 TFT, which also writes ``NKX2_8`` for ``NKX2-8``).

    Parameters
    ----------
    path
        Where the sets are from, for messages.
    sets
        From `read_gene_sets`.
    names
        Names of the atlas's genes, of each kind that it has: A names each, None where one is
        missing.
    columns
        The model's column of each of the atlas's genes, shape (A,), int64; -1 where it has none.

    Returns
    -------
    GeneSets
        Sets without a gene of the model are left out.

    Raises
    ------
    CellrayError
        Less than a tenth both of the file's and of the atlas's genes are in common, or no set has
        a gene of the model.
    """
    names = [list(of_kind) for of_kind in names]
    find = _finder(names)
    found = {gene: find(gene) for genes in sets.values() for gene in genes}

    def of_model(places: Iterable[int]) -> list[int]:
        return sorted({int(columns[place]) for place in places} - {-1})

    kept: dict[str, NDArray[np.int64]] = {}
    factors = []
    for name, genes in sets.items():
        if of_set := of_model(place for gene in genes for place in found[gene]):
            kept[name] = np.asarray(of_set, np.int64)
            factors.append(next(iter(of_model(_factor(name, find))), -1))
    result = GeneSets(
        names=tuple(kept),
        columns=tuple(kept.values()),
        factors=np.asarray(factors, np.int64),
        matched=sum(map(bool, found.values())),
        of=len(found),
        covered=len({place for places in found.values() for place in places}),
        n_genes=len(columns),
    )
    if result.overlap < LEAST_MATCH:
        ours = " or ".join(next((name for name in kind if name), "?") for kind in names)
        raise CellrayError(
            f"the atlas has {result.matched} of the {result.of} genes of {path}, which names them "
            f"like {next(iter(found))}, the atlas like {ours}",
            "give gene sets of this species, by symbols or Ensembl ids, or ingest the atlas with "
            "a var column of these",
        )
    if not kept:
        raise CellrayError(
            f"no set of {path} has a gene of the model", "set data.genes higher, or to null"
        )
    return result


def _finder(names: Iterable[Sequence[str | None]]) -> Callable[[str], Sequence[int]]:
    """Give the function that finds the places of a name among the atlas's genes."""
    exact: dict[str, dict[int, None]] = {}
    upper: dict[str, dict[int, None]] = {}
    for of_kind in names:
        for place, name in enumerate(of_kind):
            if name:
                bare = without_version(name)
                exact.setdefault(bare, {})[place] = None
                upper.setdefault(bare.upper(), {})[place] = None

    def find(name: str) -> Sequence[int]:
        bare = without_version(name)
        return tuple(exact.get(bare) or upper.get(bare.upper()) or ())

    return find


def _factor(name: str, find: Callable[[str], Sequence[int]]) -> Sequence[int]:
    bare = name.removesuffix(TARGETS_OF)
    return find(bare) or find(bare.replace("_", "-"))


def _gmt(path: str, lines: Iterable[str]) -> Iterable[tuple[str, str]]:
    for number, line in enumerate(lines, 1):
        name, *rest = line.rstrip("\t").split("\t")
        if not line.strip():
            continue
        if len(rest) < 2:
            raise CellrayError(
                f"{path} is no GMT: line {number} has no name, description and genes between tabs",
                "give a GMT file, or name a table of factors and targets .tsv or .csv",
            )
        for gene in rest[1:]:
            yield name.strip(), gene.partition(",")[0].strip()  # Enrichr adds weights


def _edges(path: str, lines: Iterable[str]) -> Iterable[tuple[str, str]]:
    kept = [line for line in lines if line.strip() and not line.startswith("#")]
    if not kept:
        return
    rows = list(csv.reader(kept, delimiter="\t" if "\t" in kept[0] else ","))
    header = [re.sub("[^a-z0-9]+", "_", word.lower()).strip("_") for word in rows[0]]
    factor = _column(header, _FACTOR_COLUMNS)
    target = _column(header, _TARGET_COLUMNS)
    if factor is None and target is None and len(header) > 1:
        logger.info("%s has no header: factors and targets are its first two columns", path)
        factor, target = 0, 1
    elif factor is None or target is None:
        known = _FACTOR_COLUMNS if factor is None else _TARGET_COLUMNS
        raise CellrayError(
            f"{path} has no column of {'factors' if factor is None else 'targets'}: its header is "
            f"'{', '.join(rows[0])}'",
            f"call it one of: {', '.join(known)}",
        )
    else:
        rows = rows[1:]
    for row in rows:
        if len(row) <= max(factor, target):
            raise CellrayError(
                f"{path}: a line has {len(row)} columns, {', '.join(row)!r}, the first has "
                f"{len(header)}",
                "mend the table",
            )
        for gene in re.split("[;|]", row[target]):
            yield row[factor].strip(), gene.strip()


def _column(header: Sequence[str], known: Iterable[str]) -> int | None:
    return next((header.index(name) for name in known if name in header), None)
