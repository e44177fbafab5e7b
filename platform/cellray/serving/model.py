"""What a replica serves: a model, the cells that it was trained on, and those that came since.

Shape suffixes: N cells, D embedding.
"""

import logging
import threading
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from cellray.atlas.store import Atlas
from cellray.core.errors import CellrayError
from cellray.core.types import Rows, Span
from cellray.learn.embed import embed_rows, gene_columns, matched_share, rows_of
from cellray.learn.learner import Learner
from cellray.score.drift import Sample, drift
from cellray.serving.bodies import Cells, RequestError
from cellray.track.models import Resolved, resolve

REFERENCE_CELLS = 2_000
WINDOW_CELLS = 500
"""Cells after which drift is told anew."""
BEFORE = 4
"""Windows, at most, that are looked at together."""

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Served:
    """A model that is loaded, and what is known of the cells it sees.

    Attributes
    ----------
    resolved
        The model.
    digest
        Of its files, as registered.
    reference
        Cells that it was trained on; None where they cannot be read.
    device
        Where it computes.
    window
        Cells that came lately.
    """

    resolved: Resolved
    reference: Sample | None
    device: str
    window: "Window" = field(default_factory=lambda: Window())

    def __post_init__(self) -> None:
        # Clients send the same genes again and again, and matching them takes 30 times as long as
        # embedding a cell.
        self._columns = lru_cache(maxsize=8)(partial(gene_columns, self.learner.genes))

    @classmethod
    def of(cls, uri: str) -> Self:
        """Load a registered model, and sample what it was trained on.

        Raises
        ------
        CellrayError
            As `cellray.track.models.resolve`.
        """
        resolved = resolve(uri)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        learner = resolved.learner.to(device)
        return cls(resolved, _reference(learner, resolved, device), device)

    @property
    def learner(self) -> Learner:
        """The model itself."""
        return self.resolved.learner

    def describe(self) -> dict[str, Any]:
        """Give what a client wants to know of the model."""
        facts, learner = self.resolved.facts, self.learner
        return {
            "uri": self.resolved.uri,
            "name": self.resolved.name,
            "version": self.resolved.version,
            "run_id": self.resolved.run_id,
            "weights_sha256": facts["sha256"]["weights.safetensors"],
            "objective": learner.recipe.objective.name,
            "encoder": learner.recipe.encoder.name,
            "dim": learner.encoder.dim,
            "trained_on": facts.get("atlas_digest"),
            "drift": self.reference is not None,
            "n_genes": len(learner.genes),
            "genes": list(learner.genes),
        }

    def embed(self, cells: Cells, *, min_genes: float) -> tuple[NDArray[np.float32], float]:
        """Embed the cells of a request.

        Parameters
        ----------
        cells
            Counts.
        min_genes
            Share of the model's genes that they must have.

        Returns
        -------
        z_ND, share
            The embeddings, and the share of the model's genes that there were.

        Raises
        ------
        RequestError
            422: too few of the model's genes, a gene that comes twice, values that are no counts.
        RuntimeError
            The embeddings are not finite.
        """
        try:
            columns = self._columns(tuple(cells.genes.tolist()))
            rows = rows_of(cells.counts)
        except CellrayError as error:
            raise RequestError(422, error.what, error.mend) from error
        share = matched_share(columns, len(self.learner.genes))
        if share < min_genes:
            raise RequestError(
                422,
                f"only {share:.1%} of the model's {len(self.learner.genes):,} genes are there, and "
                f"{min_genes:.0%} are asked for",
                "send all genes that were measured, named as GET /model lists them",
            )
        z_ND = embed_rows(self.learner, rows, columns, device=self.device)
        if not np.isfinite(z_ND).all():
            msg = f"{self.resolved.uri} gives embeddings that are not finite"
            raise RuntimeError(msg)
        if self.reference is not None:
            self.window.add(_sample(self.learner, rows, columns, z_ND))
        return z_ND, share

    def drift(self) -> dict[str, float]:
        """Tell how far the cells that came lately are from the reference; empty until enough came.

        See `cellray.score.drift.drift`.
        """
        found = self.window.sample()
        return {} if self.reference is None or found is None else drift(self.reference, found)


class Window:
    """The cells that came lately, in blocks of `WINDOW_CELLS` at least."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[Sample] = []
        self._blocks: list[Sample] = []

    def add(self, sample: Sample) -> None:
        """Take cells of a request."""
        with self._lock:
            self._open.append(sample)
            if sum(map(len, self._open)) >= WINDOW_CELLS:
                self._blocks = [*self._blocks, Sample.joined(self._open)][-BEFORE:]
                self._open = []

    def sample(self) -> Sample | None:
        """Give the whole blocks that are kept, None before the first."""
        with self._lock:
            blocks = list(self._blocks)
        return Sample.joined(blocks) if blocks else None


def _reference(learner: Learner, resolved: Resolved, device: str) -> Sample | None:
    """Sample the atlas that a model was trained on; its cells lie in random order."""
    url, digest = resolved.facts.get("atlas"), resolved.facts.get("atlas_digest")
    if not url:
        logger.warning("no drift: %s does not say what it was trained on", resolved.uri)
        return None
    try:
        atlas = Atlas.open(url)
        rows = atlas.read(Span(0, min(REFERENCE_CELLS, atlas.n_cells)))
    except CellrayError as error:
        logger.warning("no drift: the atlas of %s cannot be read: %s", resolved.uri, error)
        return None
    if atlas.digest != digest:
        logger.warning("the atlas %s has changed since %s was trained on it", url, resolved.uri)
    columns = gene_columns(learner.genes, atlas.genes)
    return _sample(learner, rows, columns, embed_rows(learner, rows, columns, device=device))


def _sample(
    learner: Learner, rows: Rows, columns: NDArray[np.int64], z_ND: NDArray[np.float32]
) -> Sample:
    counts = rows.to_scipy()
    known = np.flatnonzero(columns >= 0)
    places = csr_matrix(
        (np.ones(len(known)), (known, columns[known])), shape=(len(columns), len(learner.genes))
    )
    return Sample.of(counts @ places, np.asarray(counts.sum(axis=1)).ravel(), z_ND)
