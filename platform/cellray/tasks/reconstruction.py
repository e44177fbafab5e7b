"""How well expression is rebuilt from an embedding, whether all was seen or half was hidden.

Shape suffixes: N cells, M test cells, G genes of the model that the data has, D embedding.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from cellray.core.cells import Cells as CellsOf
from cellray.core.seeds import generator
from cellray.learn.embed import gene_columns
from cellray.learn.learner import Learner
from cellray.score.embedding import log_normalise, pca_axes
from cellray.score.regression import explained_variance, mean_baseline, mse, ridge_regression
from cellray.tasks import figures
from cellray.tasks.names import PCA_DIM
from cellray.tasks.splits import cells_with, make_splits
from cellray.tasks.steps import portions
from cellray.tasks.task import NO_INTERVALS, Embeddings, Report, Spec, sample_cells

HIDDEN = 0.5
"""Share of the entries that are hidden from the test cells; as in pre-training by default."""
MOST_CELLS = 5_000
"""Expression is dense here."""
PORTION = 512

Values = NDArray[np.float32]


def reconstruction(embeddings: Embeddings, spec: Spec) -> Report:
    """Rebuild the expression of test cells from their embeddings.

    Twice: from whole cells, where the embedding is a bottleneck, and (``hidden``) from cells of
    which half of the entries, drawn at random, were set to zero and the others scaled up, as in
    pre-training; then only hidden entries are scored. A model with a decoder uses it
    (``decoder``); whatever it has, a ridge regression from the embeddings of the training cells, of
    which as much was hidden, decodes every encoder alike. PCA also projects onto its axes of the
    training cells, and the mean of the training cells is what any method has to beat.

    Parameters
    ----------
    embeddings
        Counts, genes and ``learners``.
    spec
        How to split: by whole groups, or at random.

    Raises
    ------
    CellrayError
        No gene of the model that varies; or as `make_splits`.
    """
    grouped, notes = cells_with(embeddings.obs, [spec.split_by])
    cells = grouped[sample_cells(len(grouped), MOST_CELLS, spec.seed, "reconstruction")]
    data = embeddings.take(cells)
    if len(cells) < len(grouped):
        notes.append(f"{len(cells):,} of the cells, sampled at random, were used.")
    learner = data.learners["model"]
    columns = gene_columns(learner.genes, data.genes)
    chosen = np.flatnonzero(columns >= 0)
    x_NG = log_normalise(data.counts)[:, chosen].toarray()
    places = columns[chosen]
    groups = None if spec.split_by is None else data.column(spec.split_by)
    splits = make_splits(np.full(len(cells), ""), groups, spec)
    learners = {method: of for method, of in data.learners.items() if of.genes == learner.genes}
    if len(learners) < len(data.learners):
        notes.append("The champion has other genes, and is left out.")
    rows: list[tuple[str, str, str, int, float]] = []
    with threadpool_limits(1, user_api="blas"):
        for number, split in enumerate(splits):
            train_NG, true_MG = x_NG[split.train], x_NG[split.test]
            rng = generator(spec.seed, "hidden entries", str(number))
            hidden_MG, left_MG = _hide(true_MG, rng)
            for suffix, known_NG, seen_MG, scored_MG in (
                ("", train_NG, true_MG, None),
                ("_hidden", _hide(train_NG, rng)[1], left_MG, hidden_MG),
            ):
                for method, readout, told_MG in _told(
                    learners, places, (train_NG, known_NG), seen_MG, seed=spec.seed
                ):
                    values = explained_variance(true_MG, told_MG, hidden_MG=scored_MG)
                    values["mse"] = mse(true_MG, told_MG, hidden_MG=scored_MG)
                    rows += [
                        (method, f"{readout}{suffix}", metric, number, value)
                        for metric, value in values.items()
                    ]
    scores = pd.DataFrame(rows, columns=["method", "readout", "metric", "split", "value"])
    shown = scores[scores["readout"].str.endswith("_hidden") & (scores["metric"] != "mse")]
    return Report(
        task="reconstruction",
        protocol=(
            f"Log-normalised expression of {len(chosen):,} genes in {len(cells):,} cells, split "
            f"70/30 {len(splits)} times (seed {spec.seed}). Explained variance is 1 - Var(y - p) / "
            "Var(y) of each gene over the test cells: its mean (uniform), and with weights Var(y) "
            f"(weighted). In 'hidden' columns {HIDDEN:.0%} of the entries were hidden from the "
            "method, and only these are scored."
        ),
        scores=scores,
        figures=(figures.scores_figure(shown, NO_INTERVALS),),
        notes=(*notes, "Genes that do not vary among the test cells are left out of the means."),
    )


def _told(
    learners: dict[str, Learner],
    places: NDArray[np.int64],
    train: tuple[Values, Values],
    seen_MG: Values,
    *,
    seed: int,
) -> Iterator[tuple[str, str, NDArray[Any]]]:
    """Give every method's and readout's prediction of the test cells, shape (M, G).

    Of the training cells come the whole expression, and what is seen of it.
    """
    train_NG, known_NG = train
    for method, learner in learners.items():
        train_ND, _ = _through(learner, places, known_NG)
        seen_MD, decoded_MG = _through(learner, places, seen_MG)
        if decoded_MG is not None and method != "untrained":
            yield method, "decoder", decoded_MG
        yield method, "ridge", ridge_regression(train_ND, train_NG, seen_MD, seed=seed)
    axes_DG = pca_axes(csr_matrix(train_NG), dim=PCA_DIM, seed=seed)
    known_ND, seen_MD = known_NG @ axes_DG.T, seen_MG @ axes_DG.T
    yield "pca", "projection", seen_MD @ axes_DG
    yield "pca", "ridge", ridge_regression(known_ND, train_NG, seen_MD, seed=seed)
    yield "mean", "mean", mean_baseline(train_NG, len(seen_MG))


def _hide(x_NG: Values, rng: np.random.Generator) -> tuple[NDArray[np.bool_], Values]:
    """Draw what is hidden, and give what is left, scaled up as in pre-training."""
    hidden_NG = rng.random(x_NG.shape) < HIDDEN
    return hidden_NG, (x_NG * ~hidden_NG / (1 - HIDDEN)).astype(np.float32)


def _through(
    learner: Learner, places: NDArray[np.int64], x_NG: Values
) -> tuple[Values, Values | None]:
    """Embed expression, and decode it if the objective can; genes that lack count as zero."""
    learner.eval()
    parts, decoded = [], []
    with torch.inference_mode():
        for cells in portions(np.arange(len(x_NG), dtype=np.int64), PORTION):
            wide = torch.zeros(len(cells), len(learner.genes))
            wide[:, torch.from_numpy(places)] = torch.from_numpy(x_NG[cells])
            of = CellsOf.of(wide)
            z_BD = learner.encoder(wide, of).float()
            parts.append(z_BD.numpy())
            found = learner.objective.expression(z_BD, of)
            if found is not None:
                decoded.append(found[:, torch.from_numpy(places)].numpy())
    return np.concatenate(parts), np.concatenate(decoded) if decoded else None
