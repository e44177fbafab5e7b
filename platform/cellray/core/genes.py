"""The genes of a model, and sets of them: programmes, and the targets of factors."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

SETS = "gene_sets"
"""The setting of a view that names a file of gene sets."""


@dataclass(frozen=True, slots=True, eq=False)
class GeneSets:
    """Sets of a model's genes.

    Attributes
    ----------
    names
        Of the sets: programmes, or transcription factors.
    columns
        The model's columns in each set, ascending, int64; none is empty.
    factors
        The model's column of the factor that a set is named after, shape (n_sets,), int64; -1
        where the model does not have it.
    matched
        Genes of the file that the atlas has.
    of
        Genes of the file.
    covered
        Genes of the atlas that the file has.
    n_genes
        Genes of the atlas.
    """

    names: tuple[str, ...]
    columns: tuple[NDArray[np.int64], ...]
    factors: NDArray[np.int64]
    matched: int
    of: int
    covered: int
    n_genes: int

    @property
    def overlap(self) -> float:
        """Share of the file's genes that match, or of the atlas's where that is larger.

        An atlas of few genes has few of a large file's, though they are named alike.
        """
        return max(self.matched / self.of, self.covered / self.n_genes)

    def __str__(self) -> str:
        return (
            f"{self.matched} of {self.of} genes ({self.matched / self.of:.0%}), which are "
            f"{self.covered / self.n_genes:.0%} of the atlas's, in {len(self.names)} sets"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Genes:
    """What views know of a model's genes.

    Attributes
    ----------
    names
        Of the model's columns.
    sets
        Gene sets by the file that a recipe names.
    """

    names: tuple[str, ...]
    sets: Mapping[str, GeneSets] = field(default_factory=dict)
