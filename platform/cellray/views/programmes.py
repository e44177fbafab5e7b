"""Masks by gene sets: hidden programmes, and programmes or factors' targets as the only input.

Three defects of the code released with the paper are avoided: a programme is drawn for every cell
and not for the batch, and the masks of input and target are neither swapped nor left out.

Shape suffixes: B cells, G genes, K sets, C sets drawn for a cell, W words of 64 genes.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cellray.core.bits import choose, integers
from cellray.core.cells import Cells
from cellray.core.errors import CellrayError
from cellray.core.genes import Genes, GeneSets
from cellray.core.sparse import Matrix
from cellray.views.view import Fraction, View, only, times


class _Members:
    """Which genes are in which sets, a bit each: 20,000 genes of 830 sets take 2 MB."""

    def __init__(self, columns: Sequence[NDArray[np.int64]], n_genes: int) -> None:
        member_KG = np.zeros((len(columns), -(-n_genes // 64) * 64), dtype=bool)
        for row_G, places in zip(member_KG, columns, strict=True):
            row_G[places] = True
        words_KW = np.packbits(member_KG, axis=1, bitorder="little").view(np.int64)
        self.n_genes = n_genes
        self._on = cache(torch.from_numpy(words_KW).to)

    def union(self, sets_BC: Tensor) -> Tensor:
        """Give the genes in any of each cell's sets, shape (B, G), bool."""
        words_KW = self._on(sets_BC.device)
        words_BW = words_KW[sets_BC[:, 0]]
        for sets_B in sets_BC.T[1:]:
            words_BW |= words_KW[sets_B]
        places = 2 ** torch.arange(8, dtype=torch.uint8, device=sets_BC.device)
        bits = words_BW.view(torch.uint8)[:, :, None].bitwise_and(places) != 0
        return bits.flatten(1)[:, : self.n_genes]


def programme_mask(genes: Genes, *, gene_sets: str, fraction: Fraction = 0.1) -> View:
    """Hide whole programmes, other ones in every cell (Richter et al. 2024).

    What stays is scaled by 1 / (1 - share of the cell's genes that is hidden). A cell whose
    programmes hold all genes is seen as empty.

    Parameters
    ----------
    genes
        The model's, with its gene sets.
    gene_sets
        File of programmes.
    fraction
        Of the programmes that are hidden: ``int(n_programmes * fraction)``, at least one. The
        share of genes is larger, since programmes overlap little; targets are what is hidden.

    Returns
    -------
    View
        Hidden entries are exactly zero.

    Raises
    ------
    CellrayError
        The only programme holds every gene.
    """
    sets = _sets(genes, gene_sets)
    members = _Members(sets.columns, len(genes.names))
    count = max(1, int(len(sets.names) * fraction))
    if len(sets.names) == 1 and len(sets.columns[0]) == len(genes.names):
        raise CellrayError(
            f"the one programme of {gene_sets}, '{sets.names[0]}', holds all genes of the model",
            "give a file with more programmes",
        )

    def view(
        x_BG: Matrix, key_B: Tensor, cells: Cells, *, needs_target: bool = True
    ) -> tuple[Matrix, Tensor | None]:
        del cells
        hidden_BG = members.union(choose(key_B, len(sets.names), count))
        seen_B = (~hidden_BG).sum(dim=1)
        scale_B = members.n_genes / seen_B.clamp(min=1)
        return times(only(x_BG, ~hidden_BG), scale_B), hidden_BG if needs_target else None

    return view


def gp_to_gp(genes: Genes, *, gene_sets: str) -> View:
    """Show one programme of a cell and nothing else, and ask for it (Richter et al. 2024).

    The programme is drawn for every cell. Its values are not scaled: programmes are about a
    hundredth of the genes, so that the scale of `programme_mask` would make inputs a hundred
    times what the encoder gets of whole cells, and differ from what is asked for.

    Parameters
    ----------
    genes
        The model's, with its gene sets.
    gene_sets
        File of programmes.

    Returns
    -------
    View
        Targets are the entries that stay.
    """
    sets = _sets(genes, gene_sets)
    members = _Members(sets.columns, len(genes.names))

    def view(
        x_BG: Matrix, key_B: Tensor, cells: Cells, *, needs_target: bool = True
    ) -> tuple[Matrix, Tensor | None]:
        del cells
        seen_BG = members.union(integers(key_B, len(sets.names))[:, None])
        return only(x_BG, seen_BG), seen_BG if needs_target else None

    return view


def gp_to_tf(genes: Genes, *, gene_sets: str) -> View:
    """Show the targets of one transcription factor and ask for the factor (Richter et al. 2024).

    The factor is drawn for every cell among those that are a gene of the model and have targets
    beside themselves. It is never in the input, not even where it is a target of its own. Values
    are not scaled, as in `gp_to_gp`.

    Parameters
    ----------
    genes
        The model's, with its gene sets.
    gene_sets
        File of factors and targets, or of sets that are named after factors.

    Returns
    -------
    View
        The one target of a cell is its factor.

    Raises
    ------
    CellrayError
        No set is named after a gene of the model, or none of these has targets.
    """
    sets = _sets(genes, gene_sets)
    pairs = [
        (factor, others)
        for factor, columns in zip(sets.factors, sets.columns, strict=True)
        if factor >= 0 and len(others := columns[columns != factor])
    ]
    if not pairs:
        raise CellrayError(
            f"no set of {gene_sets} is named after a gene of the model, so that none says what a "
            "factor's targets are",
            "give a table of factors and targets, or sets named FACTOR_TARGET_GENES",
        )
    members = _Members([columns for _, columns in pairs], len(genes.names))
    factors_on = cache(torch.tensor([factor for factor, _ in pairs]).to)

    def view(
        x_BG: Matrix, key_B: Tensor, cells: Cells, *, needs_target: bool = True
    ) -> tuple[Matrix, Tensor | None]:
        del cells
        sets_B = integers(key_B, len(pairs))
        seen_BG = members.union(sets_B[:, None])
        if not needs_target:
            return only(x_BG, seen_BG), None
        genes_G = torch.arange(members.n_genes, device=key_B.device)
        factor_B = factors_on(key_B.device)[sets_B]
        return only(x_BG, seen_BG), factor_B[:, None] == genes_G

    return view


def _sets(genes: Genes, path: str) -> GeneSets:
    if path not in genes.sets:
        raise CellrayError(
            f"the gene sets of {path} were not read", "give them to the learner with its genes"
        )
    return genes.sets[path]
