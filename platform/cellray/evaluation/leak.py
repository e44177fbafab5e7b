"""Whether a model was pre-trained on the cells, or the donors, that it is scored on.

Shape suffixes: N cells, G genes.
"""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from cellray.atlas.choose import choose
from cellray.atlas.splits import TRAIN
from cellray.atlas.store import Atlas
from cellray.core.errors import CellrayError
from cellray.core.types import Span
from cellray.track.models import Resolved

MOST_CELLS = 2_000_000
"""Pre-training atlases of more cells are not read for the comparison."""
SPAN = 8192
LEAST_GENES = 10
"""Shared genes that a cell must express to be compared by its counts."""

NAMED = 5


@dataclass(frozen=True, eq=False)
class Seen:
    """What a model has seen of the cells that it is scored on.

    Attributes
    ----------
    cells
        Whether each was trained on, shape (N,); None where it cannot be known.
    groups
        Values that the pre-training atlas has too, by column that cells are split by; none where
        it has none of them.
    note
        The same in words.
    """

    cells: NDArray[np.bool_] | None
    groups: Mapping[str, tuple[str, ...]]
    note: str

    @property
    def share(self) -> float | None:
        """The share of the cells that was trained on."""
        return None if self.cells is None else float(self.cells.mean())


def seen_cells(
    resolved: Resolved,
    atlas: Atlas,
    cells: NDArray[np.int64],
    counts: csr_matrix[Any],
    split_by: Collection[str] = (),
    who: str = "the model",
) -> Seen:
    """Find the scored cells among those that a model was pre-trained on.

    In the same state of the same atlas they are known by their positions; in another atlas, by a
    hash of their counts of the genes that both have, whatever the order of genes and cells.

    Parameters
    ----------
    resolved
        The model.
    atlas, cells, counts
        What is scored: the atlas, positions in it, and the cells' counts, shape (N, G).
    split_by
        Columns of donors, to be compared by name.
    who
        What the model is called in the note.
    """
    url, digest = resolved.facts.get("atlas"), resolved.facts.get("atlas_digest")
    if url is None:
        return Seen(None, {}, f"What {who} was pre-trained on is not known.")
    try:
        trained_on = atlas if digest == atlas.digest else Atlas.open(url)
        sides = choose(resolved.learner.recipe, trained_on).sides
    except CellrayError as error:
        note = f"Whether {who} was pre-trained on these cells is not known: {error.what}."
        return Seen(None, {}, note)
    if trained_on.digest != digest:
        note = (
            f"Whether {who} was pre-trained on these cells is not known: its atlas {url} is not "
            "as it was then."
        )
        return Seen(None, {}, note)
    if digest == atlas.digest:
        seen = sides[cells] == TRAIN
        where = "this very atlas"
    elif trained_on.n_cells > MOST_CELLS:
        note = (
            f"Whether {who} was pre-trained on these cells was not checked: its atlas {url} has "
            f"{trained_on.n_cells:,} cells, more than the {MOST_CELLS:,} that are compared."
        )
        return Seen(None, {}, note)
    else:
        seen = _by_content(trained_on, sides == TRAIN, atlas.genes, counts)
        where = f"another atlas ({url})"
    trained = np.flatnonzero(sides == TRAIN)
    shared = {column: _groups(trained_on, trained, atlas, cells, column) for column in split_by}
    groups = {column: values for column, values in shared.items() if values}
    note = _note(seen, groups, where, who)
    if (parent := resolved.learner.recipe.init.model) is not None:
        note += f" It began as {parent}; what that one had seen is not known here."
    return Seen(seen, groups, note)


def _note(
    seen: NDArray[np.bool_], groups: Mapping[str, tuple[str, ...]], where: str, who: str
) -> str:
    said = f"{who[0].upper()}{who[1:]} was pre-trained on {where}: "
    if not seen.any():
        said += "none of the scored cells was among the cells it was trained on"
    else:
        said += (
            f"it was trained on {seen.mean():.1%} of the scored cells, though never on a label. "
            "These scores say how well it organises known cells, not how it does on new ones"
        )
    for column, values in groups.items():
        shown = ", ".join(f"'{name}'" for name in values[:NAMED])
        more = f" and {len(values) - NAMED} more" if len(values) > NAMED else ""
        said += f"; values of {column} that it was pre-trained on: {shown}{more}"
    return said + "."


def _groups(
    trained_on: Atlas,
    trained: NDArray[np.int64],
    atlas: Atlas,
    cells: NDArray[np.int64],
    column: str,
) -> tuple[str, ...]:
    if column not in trained_on.obs_columns:
        return ()
    before = {*trained_on.obs([column])[column].iloc[trained].dropna().astype(str)}
    here = {*atlas.obs([column])[column].iloc[cells].dropna().astype(str)}
    return tuple(sorted(before & here))


def _by_content(
    trained_on: Atlas,
    trained_N: NDArray[np.bool_],
    genes: NDArray[np.str_],
    counts: csr_matrix[Any],
) -> NDArray[np.bool_]:
    """Look each cell up among the training cells of another atlas."""
    shared = np.intersect1d(genes, trained_on.genes)
    known: list[NDArray[np.uint64]] = []
    words = gene_words(trained_on.genes, shared)
    for start in range(0, trained_on.n_cells, SPAN):
        span = Span(start, min(start + SPAN, trained_on.n_cells))
        hashes = cell_hashes(trained_on.read(span).to_scipy(), words)
        known.append(hashes[trained_N[span.start : span.stop]])
    here = gene_words(genes, shared)
    hashes = cell_hashes(counts, here)
    # Cells of which little is shared may well be alike without being the same.
    nonzero = csr_matrix(
        ((counts.data != 0) & (here[counts.indices] != 0), counts.indices, counts.indptr)
    )
    told = np.asarray(nonzero.sum(axis=1)).ravel() >= LEAST_GENES
    found: NDArray[np.bool_] = np.isin(hashes, np.concatenate(known)) & told
    return found


def gene_words(genes: NDArray[np.str_], shared: NDArray[np.str_]) -> NDArray[np.uint64]:
    """Give a random word for each gene by its name; zero for genes that are not shared."""
    wanted = {*shared.tolist()}
    words = [
        int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") | 1
        if name in wanted
        else 0
        for name in genes.tolist()
    ]
    return np.array(words, np.uint64)


def cell_hashes(counts: csr_matrix[Any], words_G: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash each cell's counts: the sum over its genes of a mix of the gene's word and the count.

    The order of the genes does not matter, and genes of word zero do not count. The mix is the
    finaliser of SplitMix64 (Steele et al. 2014), so that equal sums of different cells are as rare
    as equal random numbers of 64 bits.

    Parameters
    ----------
    counts
        Whole numbers, shape (N, G), without duplicates; explicit zeros do not matter.
    words_G
        Of `gene_words`, shape (G,).

    Returns
    -------
    ndarray
        Shape (N,), uint64.
    """
    word = words_G[counts.indices]
    x = word * (2 * counts.data.astype(np.uint64) + np.uint64(1))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    x[(word == 0) | (counts.data == 0)] = 0
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(x, dtype=np.uint64)])
    hashes: NDArray[np.uint64] = sums[counts.indptr[1:]] - sums[counts.indptr[:-1]]
    return hashes
