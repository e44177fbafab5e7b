"""Mixing: views that move values between genes of a cell, or between cells of a batch.

Those that take another cell's values, all but `gene_swap`, depend on the batch: a cell's other
cell is one of those that come with it to the same worker.

Shape suffixes: B cells, G genes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from cellray.core.bits import bernoulli, integers
from cellray.core.cells import UNKNOWN, Cells
from cellray.core.genes import Genes
from cellray.core.seeds import generator
from cellray.core.sparse import Matrix, dense
from cellray.views.view import Fraction, Probability, View, drawn


def gene_swap(genes: Genes, *, fraction: Fraction = 0.1, probability: Probability = 0.5) -> View:
    """Exchange the values of pairs of genes of a cell (CLEAR, Han et al. 2022; scSSL-Bench).

    Genes sit on a circle, in an order that has nothing to do with theirs; a cell draws an axis,
    which pairs each gene with the one opposite, and then which pairs are exchanged. That takes
    no sorting, and each gene meets every other one with the same probability.

    Parameters
    ----------
    genes
        The model's; each is swapped alike.
    fraction
        Probability of a gene to be swapped.
    probability
        Of changing a cell at all.
    """
    n_genes = len(genes.names)
    gene_at_G = torch.from_numpy(generator("gene_swap", n_genes).permutation(n_genes))
    place_of_G = gene_at_G.argsort()
    gene_at_G = gene_at_G.repeat(2)  # spares a remainder an entry

    def view(
        x_BG: Matrix, key_B: Tensor, cells: Cells, *, needs_target: bool = True
    ) -> tuple[Matrix, Tensor | None]:
        del cells, needs_target
        x_BG = dense(x_BG)
        axis_B = integers(key_B, n_genes, stream=1)
        place_BG = (n_genes + axis_B)[:, None] - place_of_G.to(x_BG.device)
        partner_BG = gene_at_G.to(x_BG.device)[place_BG]
        first_BG = partner_BG.minimum(torch.arange(n_genes, device=x_BG.device))
        swapped_BG = bernoulli(key_B, n_genes, fraction).gather(1, first_BG)
        swapped_BG &= drawn(key_B, probability)[:, None]
        return torch.where(swapped_BG, x_BG.gather(1, partner_BG), x_BG), None

    return view


def gene_shuffle(genes: Genes, *, fraction: Fraction = 0.4) -> View:
    """Replace entries by the same genes' in another cell, and ask which (scMAE, Fang et al. 2024).

    Parameters
    ----------
    genes
        The model's; each is replaced alike.
    fraction
        Probability of replacing an entry.

    Returns
    -------
    View
        Targets are the entries that changed: a zero in place of a zero is none.
    """
    del genes

    def view(
        x_BG: Matrix, key_B: Tensor, cells: Cells, *, needs_target: bool = True
    ) -> tuple[Matrix, Tensor | None]:
        del cells
        x_BG = dense(x_BG)
        replaced_BG = bernoulli(key_B, x_BG.shape[1], fraction)
        changed_BG = torch.where(replaced_BG, x_BG[_others(key_B)], x_BG)
        return changed_BG, changed_BG != x_BG if needs_target else None

    return view


def crossover(genes: Genes, *, fraction: Fraction = 0.25, probability: Probability = 0.5) -> View:
    """Take some genes' values from another cell (CLEAR, Han et al. 2022; scSSL-Bench).

    Parameters
    ----------
    genes
        The model's; each is taken alike.
    fraction
        Probability of a gene to be taken.
    probability
        Of changing a cell at all.
    """
    del genes

    def view(
        x_BG: Matrix, key_B: Tensor, cells: Cells, *, needs_target: bool = True
    ) -> tuple[Matrix, Tensor | None]:
        del cells, needs_target
        x_BG = dense(x_BG)
        taken_BG = bernoulli(key_B, x_BG.shape[1], fraction) & drawn(key_B, probability)[:, None]
        return torch.where(taken_BG, x_BG[_others(key_B)], x_BG), None

    return view


def neighbours(genes: Genes, *, probability: Probability = 0.5) -> View:
    """Put the nearest cell of another batch in a cell's place (scSSL-Bench).

    Nearest by the cosine of log-normalised expression, among the cells of the minibatch whose
    batch is another one; with none such, or where its own batch is unknown, a cell stays.

    Parameters
    ----------
    genes
        The model's; all count.
    probability
        Of changing a cell.
    """
    del genes

    def view(
        x_BG: Matrix, key_B: Tensor, cells: Cells, *, needs_target: bool = True
    ) -> tuple[Matrix, Tensor | None]:
        del needs_target
        x_BG = dense(x_BG)
        unit_BG = F.normalize(dense(cells.x_BG), dim=1)
        known_B = cells.batch_B != UNKNOWN
        across_BB = (cells.batch_B[:, None] != cells.batch_B) & known_B[:, None] & known_B
        cosine_BB = (unit_BG @ unit_BG.T).masked_fill(~across_BB, -torch.inf)
        replaced_B = drawn(key_B, probability) & across_BB.any(dim=1)
        return torch.where(replaced_B[:, None], x_BG[cosine_BB.argmax(dim=1)], x_BG), None

    return view


def _others(key_B: Tensor) -> Tensor:
    """Draw another cell of the batch for each, shape (B,), int64; itself if it is the only one."""
    n_cells = len(key_B)
    ahead_B = 1 + integers(key_B, max(1, n_cells - 1), stream=1)
    return (torch.arange(n_cells, device=key_B.device) + ahead_B) % n_cells
