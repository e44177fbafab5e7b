"""Encoders over gene tokens: which genes of a cell become tokens, and what a token is.

Shape suffixes: B cells, G genes, S tokens, E token, D embedding; T of places after pooling.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from cellray.core.bits import keys, random_bits_at, uniform
from cellray.core.cells import Cells
from cellray.core.sparse import Matrix, Sparse, dense
from cellray.nets.covariate import Covariate
from cellray.nets.encoder import Encoder
from cellray.nets.order import coexpression_places

Length = Annotated[int, Field(ge=8)]
Share = Annotated[float, Field(ge=0, le=1)]

HIDDEN = -1.0
"""Value of a token whose own is hidden; no expression is negative."""
FLOOR = 1e-5
"""Added to the weights of long-tail sampling, so that the smallest value can be drawn."""
RACE, LENT, TAIL = range(3)
"""Streams of random bits: of the sampling, of the weights of hidden genes, of its kind."""


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """What an encoder made of the tokens of some cells.

    Attributes
    ----------
    z_BD
        Embedding of each cell.
    states_BSE
        The tokens after the last block.
    genes_BSE
        Embeddings of the tokens' genes.
    values_BS
        Their values before any was hidden, float32; 0 where there is no token.
    kept_BS, hidden_BS
        Where there is a token, and where its value was hidden, bool.
    """

    z_BD: Tensor  # noqa: N815 - shape suffixes
    states_BSE: Tensor  # noqa: N815
    genes_BSE: Tensor  # noqa: N815
    values_BS: Tensor  # noqa: N815
    kept_BS: Tensor  # noqa: N815
    hidden_BS: Tensor  # noqa: N815


class TokenEncoder(Encoder):
    """An encoder whose input is a cell's expressed genes, each a token of gene and value.

    A token is the gene's embedding plus what a small network makes of the value. Of a cell that
    expresses more than `n_tokens` genes, as many are sampled without replacement, all alike or
    with weights ``value - smallest value + 1e-5`` (long-tail sampling, Qi et al. 2025), which
    makes large values as frequent as small ones. What is sampled follows from the cell's
    pattern of expressed genes, and in training also from its key.

    Parameters
    ----------
    n_genes
        Columns of the input G.
    n_batches
        Batches of the covariate, which shifts all tokens.
    n_tokens
        Tokens of a cell at most.
    long_tail
        Share of the cells of a training batch that are sampled with weights; in eval mode all
        are, unless it is 0.
    width
        Size of a token E.
    dim
        Size of the embedding D; None leaves it at E, without a last linear layer.

    Attributes
    ----------
    token_dim
        Size of a token E.
    fixed_length
        Whether cells are padded to `n_tokens`, and not to the longest of the batch.
    """

    token_dim: int
    fixed_length: bool = False
    place_G: Tensor  # noqa: N815 - shape suffixes

    def __init__(
        self,
        n_genes: int,
        n_batches: int,
        *,
        n_tokens: int,
        long_tail: float,
        width: int,
        dim: int | None,
    ) -> None:
        super().__init__(n_genes, n_batches)
        self.n_tokens, self.long_tail = n_tokens, long_tail
        self.token_dim, self.dim = width, width if dim is None else dim
        self.gene_GE = nn.Parameter(torch.randn(n_genes, width))  # as nn.Embedding's
        self.value = nn.Sequential(nn.Linear(1, width), nn.GELU(), nn.Linear(width, width))
        self.covariate = Covariate(n_batches, width)
        self.project = nn.Identity() if dim is None else nn.Linear(width, dim)
        # Places and not genes in order: a model that takes them over from one of other genes
        # still orders those that both have alike.
        self.register_buffer("place_G", torch.arange(n_genes))

    def fit(self, x_BG: Matrix) -> None:
        """Learn the order of the genes by co-expression."""
        places = coexpression_places(dense(x_BG).cpu().numpy())
        self.place_G.copy_(torch.from_numpy(places))

    def adopted(self) -> None:
        """Give the places new numbers: those of other genes leave gaps, and may come twice."""
        self.place_G.copy_(self.place_G.argsort(stable=True).argsort())

    def forward(self, x_BG: Matrix, cells: Cells | None = None) -> Tensor:
        """Embed cells, shape (B, G) to (B, D)."""
        return self.tokens(x_BG, cells).z_BD

    def tokens(
        self, x_BG: Matrix, cells: Cells | None = None, *, hidden_BG: Tensor | None = None
    ) -> Tokens:
        """Embed cells, and give their tokens too.

        Parameters
        ----------
        x_BG, cells
            As for `forward`.
        hidden_BG
            Entries whose tokens get the value -1 instead of their own, shape (B, G), bool. Which
            genes are sampled does not depend on their values either.
        """
        x = _expressed(x_BG)
        hidden = torch.zeros_like(x.values, dtype=torch.bool)
        if hidden_BG is not None:
            hidden = hidden_BG[x.rows, x.columns]
        lengths_B = torch.bincount(x.rows, minlength=x.shape[0])
        longest = int(lengths_B.max())
        if longest > self.n_tokens:
            chosen = self._sample(x, hidden, cells, lengths_B)
            x, hidden = x.only(chosen), hidden[chosen]
            lengths_B = lengths_B.clamp(max=self.n_tokens)
        length = self.n_tokens if self.fixed_length else max(1, min(longest, self.n_tokens))
        order, slot = self._arrange(x, lengths_B)

        def padded(entries: Tensor) -> Tensor:
            empty_BS = entries.new_zeros(x.shape[0], length)
            return empty_BS.index_put((x.rows, slot), entries[order])

        values_BS, hidden_BS = padded(x.values), padded(hidden)
        kept_BS = padded(torch.ones_like(hidden))
        genes_BSE = F.embedding(padded(x.columns), self.gene_GE)
        seen_BS = values_BS.masked_fill(hidden_BS, HIDDEN)
        token_BSE = self.covariate(genes_BSE + self.value(seen_BS[:, :, None]), cells)
        z_BE, states_BSE = self.mix(token_BSE * kept_BS[:, :, None], kept_BS)
        return Tokens(self.project(z_BE), states_BSE, genes_BSE, values_BS, kept_BS, hidden_BS)

    def mix(self, token_BSE: Tensor, kept_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Run the blocks: what makes one encoder another.

        Parameters
        ----------
        token_BSE
            The tokens, in the order of the genes' places; zero where there is none.
        kept_BS
            Where there is a token, bool.

        Returns
        -------
        z_BE : Tensor
            What is made of a cell's tokens together.
        states_BSE : Tensor
            What is made of each token.
        """
        raise NotImplementedError

    def _sample(self, x: Sparse, hidden: Tensor, cells: Cells | None, lengths_B: Tensor) -> Tensor:
        """Choose `n_tokens` entries at most of each cell, shape (nnz,), bool.

        Each entry arrives at an exponential time of rate its weight, and the first ones are
        taken: that is sampling without replacement (Efraimidis and Spirakis 2006).
        """
        key_B = _pattern_keys(x)
        tail_B = torch.full_like(key_B, self.long_tail > 0, dtype=torch.bool)
        if self.training and cells is not None:
            key_B = key_B + cells.key_B
            tail_B = uniform(key_B, 1, TAIL).squeeze(1) < self.long_tail
        weight = torch.where(tail_B[x.rows], _tail_weights(x, hidden, key_B), 1.0)
        time = -_uniform_at(key_B, x, RACE).log() / weight
        by_time = time.argsort()
        by_cell = by_time[x.rows[by_time].argsort(stable=True)]
        rank = _number(x.rows, lengths_B)
        chosen = torch.zeros_like(hidden)
        chosen[by_cell] = rank < self.n_tokens
        return chosen

    def _arrange(self, x: Sparse, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Give the entries' order by cell and place, and the slot of each in that order."""
        n_genes = x.shape[1]
        place = (x.rows * n_genes + self.place_G[x.columns]) * n_genes + x.columns
        return place.argsort(), _number(x.rows, lengths_B)


def pooled(blocks: Iterable[nn.Module], token_BSE: Tensor) -> tuple[Tensor, Tensor]:
    """Run blocks that leave fewer and fewer places, and take the mean over the last ones.

    Returns
    -------
    z_BE : Tensor
        The mean.
    states_BSE : Tensor
        Each token plus what it was pooled into.
    """
    x_BTE = token_BSE
    for block in blocks:
        x_BTE = block(x_BTE)
    length, n_places = token_BSE.shape[1], x_BTE.shape[1]
    place_S = torch.arange(length, device=x_BTE.device) * n_places // length
    return x_BTE.mean(dim=1), token_BSE + x_BTE[:, place_S]


def _expressed(x_BG: Matrix) -> Sparse:
    """Give the entries above 0, cell after cell."""
    if isinstance(x_BG, Sparse):
        return x_BG.only(x_BG.values > 0)
    n_cells, n_genes = x_BG.shape
    rows, columns = (x_BG > 0).nonzero(as_tuple=True)
    return Sparse(x_BG[rows, columns], rows, columns, (n_cells, n_genes))


def _number(rows: Tensor, lengths_B: Tensor) -> Tensor:
    """Count the entries of each cell from 0 on; `rows` ascend."""
    starts_B = lengths_B.cumsum(0) - lengths_B
    return torch.arange(len(rows), device=rows.device) - starts_B[rows]


def _pattern_keys(x: Sparse) -> Tensor:
    """Hash which genes a cell expresses into a key, shape (B,), int64.

    A sum of random words that wraps: the same in any order of the entries, to the last bit.
    """
    n_cells, n_genes = x.shape
    words_G = keys(0, 0, 0, torch.arange(n_genes, device=x.rows.device))
    return words_G.new_zeros(n_cells).index_add_(0, x.rows, words_G[x.columns])


def _uniform_at(key_B: Tensor, x: Sparse, stream: int) -> Tensor:
    """Draw a number in (0, 1) for every entry, float64, so that no two entries tie."""
    return (random_bits_at(key_B, x, stream).double() + (2**31 + 0.5)) * 2.0**-32


def _tail_weights(x: Sparse, hidden: Tensor, key_B: Tensor) -> Tensor:
    """Give the weights of long-tail sampling, shape (nnz,), float64.

    A hidden entry gets the weight of a visible one of its cell, drawn at random: hidden genes are
    sampled as often as others, and nothing of their values shows.
    """
    seen = (~hidden).nonzero().squeeze(1)
    values, rows = x.values.detach().double()[seen], x.rows[seen]
    lowest_B = values.new_full((x.shape[0],), torch.inf)
    lowest_B.scatter_reduce_(0, rows, values, "amin")
    weight = values.new_ones(len(hidden))
    weight[seen] = values - lowest_B[rows] + FLOOR
    counts_B = torch.bincount(rows, minlength=x.shape[0])
    lent = (hidden & (counts_B[x.rows] > 0)).nonzero().squeeze(1)
    place = _uniform_at(key_B, x, LENT)[lent] * counts_B[x.rows[lent]]
    first_B = counts_B.cumsum(0) - counts_B
    weight[lent] = weight[seen[first_B[x.rows[lent]] + place.long()]]
    return weight
