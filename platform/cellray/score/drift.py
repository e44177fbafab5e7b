"""How far cells that come now have moved from the cells that a model was trained on.

Shape suffixes: N cells, G genes of the model, D embedding.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.stats import ks_2samp

from cellray.core.errors import CellrayError
from cellray.core.types import TARGET_SUM
from cellray.score.mmd import SCALES, mmd

MOST = 1000
"""Cells of a sample that the discrepancy of embeddings takes at most: it looks at all pairs."""


@dataclass(frozen=True, eq=False)
class Sample:
    """What is compared of some cells.

    Attributes
    ----------
    library_N
        Counts of each cell, over all genes that were measured.
    detected_N
        How many of the model's genes each cell expresses.
    detection_G
        Share of the cells that express each gene.
    expression_G
        Mean of ``log1p`` of each gene's counts scaled to 10,000 a cell.
    z_ND
        Embeddings.
    """

    library_N: NDArray[np.float64]  # noqa: N815 - a shape suffix
    detected_N: NDArray[np.int64]  # noqa: N815
    detection_G: NDArray[np.float64]  # noqa: N815
    expression_G: NDArray[np.float64]  # noqa: N815
    z_ND: NDArray[np.float32]  # noqa: N815

    @classmethod
    def of(
        cls,
        counts_NG: "csr_matrix[Any]",
        library_N: NDArray[Any],
        z_ND: NDArray[np.float32],
    ) -> Self:
        """Summarise cells.

        Parameters
        ----------
        counts_NG
            Counts of the model's genes, no gene of a cell stored twice.
        library_N
            Counts of each cell over all genes that were measured, the model's or not.
        z_ND
            Embeddings.
        """
        library = np.asarray(library_N, np.float64)
        scale = TARGET_SUM / np.where(library > 0, library, 1.0)
        stored = counts_NG.astype(np.float64)
        stored.eliminate_zeros()
        each = np.diff(stored.indptr)
        n, n_genes = stored.shape
        logs = np.log1p(stored.data * np.repeat(scale, each))
        return cls(
            library_N=library,
            detected_N=each.astype(np.int64),
            detection_G=np.bincount(stored.indices, minlength=n_genes) / max(n, 1),
            expression_G=np.bincount(stored.indices, logs, minlength=n_genes) / max(n, 1),
            z_ND=z_ND,
        )

    @classmethod
    def joined(cls, parts: "list[Self]") -> Self:
        """Give the sample of the cells of several; `parts` holds one at least."""
        weights = np.array([len(part) for part in parts], np.float64)

        def mean(rows: list[NDArray[np.float64]]) -> NDArray[np.float64]:
            found: NDArray[np.float64] = np.average(rows, axis=0, weights=weights)
            return found

        return cls(
            library_N=np.concatenate([part.library_N for part in parts]),
            detected_N=np.concatenate([part.detected_N for part in parts]),
            detection_G=mean([part.detection_G for part in parts]),
            expression_G=mean([part.expression_G for part in parts]),
            z_ND=np.concatenate([part.z_ND for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.library_N)


def drift(reference: Sample, found: Sample) -> dict[str, float]:
    """Compare cells with a reference; every number is about 0 where both are of one kind.

    Parameters
    ----------
    reference
        Cells that the model was trained on.
    found
        Cells that came since.

    Returns
    -------
    dict of str to float
        ``library``, ``detected``
            Kolmogorov-Smirnov statistics of the library sizes and of the genes detected: the
            largest distance of the two empirical distribution functions, from 0 to 1 (Smirnov
            1948, Ann. Math. Stat. 19; SciPy's `scipy.stats.ks_2samp`). Samples of n and m cells
            of one kind exceed ``1.36 sqrt((n + m) / (n m))`` in 5 of 100 cases.
        ``detection``
            Mean over genes of the absolute difference of the shares of cells that express it.
        ``expression``
            Mean over genes of the absolute difference of the mean log expression.
        ``embedding``
            Squared maximum mean discrepancy of the embeddings, without bias (Gretton et al. 2012,
            see `cellray.score.mmd`), bandwidths from the reference alone, so that its values may
            be compared over time. Of each sample at most 1,000 cells, evenly picked, are taken.

    Raises
    ------
    CellrayError
        A sample of fewer than four cells, or of other genes than the reference.
    """
    if min(len(reference), len(found)) < 4:
        raise CellrayError(
            f"drift of {len(found)} cells from {len(reference)} cannot be told",
            "give at least four of each",
        )
    if reference.detection_G.shape != found.detection_G.shape:
        raise CellrayError(
            f"samples of {len(reference.detection_G)} and {len(found.detection_G)} genes cannot "
            "be compared",
            "give the counts of the model's genes",
        )
    known, now = (torch.from_numpy(_picked(one.z_ND)) for one in (reference, found))
    return {
        "library": _smirnov(reference.library_N, found.library_N),
        "detected": _smirnov(reference.detected_N, found.detected_N),
        "detection": _distance(reference.detection_G, found.detection_G),
        "expression": _distance(reference.expression_G, found.expression_G),
        "embedding": float(mmd(known, now, _bandwidths(known))),
    }


def _picked(z_ND: NDArray[np.float32]) -> NDArray[np.float64]:
    """Pick cells evenly, in float64: the discrepancy is a difference of means that are near."""
    places = np.linspace(0, len(z_ND) - 1, min(len(z_ND), MOST)).astype(np.int64)
    return z_ND[places].astype(np.float64)


def _bandwidths(z_ND: torch.Tensor) -> torch.Tensor:
    """Give `SCALES` times the median distance of different cells."""
    median = torch.pdist(z_ND).median()
    return median.new_tensor(SCALES) * torch.where(median > 0, median, 1.0)


def _smirnov(x_N: NDArray[Any], y_N: NDArray[Any]) -> float:
    # SciPy warns where the exact p-value, which nobody asks for, cannot be computed.
    return float(ks_2samp(x_N, y_N, method="asymp").statistic)


def _distance(x_G: NDArray[np.float64], y_G: NDArray[np.float64]) -> float:
    return float(np.abs(x_G - y_G).mean())
