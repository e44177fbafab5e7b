"""How well an embedding mixes batches and keeps cell types apart, by the metrics of scIB."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from cellray.core.errors import CellrayError
from cellray.score.integration import integration_runs
from cellray.tasks import figures, maps
from cellray.tasks.correction import adapted, harmonised, has_scvi, scvi_embedding
from cellray.tasks.methods import embedded
from cellray.tasks.splits import cells_with, usable_sample
from cellray.tasks.steps import Layers
from cellray.tasks.task import NO_INTERVALS, Embeddings, Report, Spec

TOTALS = ("total", "bio", "batch")
FINE_TUNED: Mapping[str, Layers] = {"model_fine_tuned": "all", "model_shallow": "last"}


def integration(embeddings: Embeddings, spec: Spec) -> Report:
    """Score batch mixing and the conservation of labels as scIB does (Luecken et al. 2022).

    ``total`` is 0.4 times the mean of the batch metrics and 0.6 times that of the biological ones.
    Principal component regression compares an embedding's dependence on the batch with that of the
    PCA of all cells. Beside the embeddings as they are stand methods that are told the batches:
    Harmony on that PCA and, with ``spec.fine_tune``, scVI and the model trained further by its own
    objective with the batch as a covariate: all of it, or the encoder's last block ("shallow",
    Richter et al. 2024).

    Parameters
    ----------
    embeddings
        Embeddings, and label and batch in ``obs``.
    spec
        The label and the batch; ``splits`` is the number of seeds that k-means starts from.

    Raises
    ------
    CellrayError
        One batch or one label only.
    """
    batched, unbatched = cells_with(embeddings.obs, [spec.batch])
    kept, notes = usable_sample(embeddings.obs.iloc[batched], spec, "integration")
    notes = [*unbatched, *notes]
    data = embeddings.take(batched[kept])
    batch_N = data.column(spec.batch)
    labels = data.column(spec.label)
    if len(np.unique(batch_N)) < 2:
        raise CellrayError(
            f"obs column '{spec.batch}' has one value only, so there is nothing to integrate",
            "choose another --batch",
        )
    rows = []
    seeds = range(spec.seed, spec.seed + spec.splits)
    with threadpool_limits(1, user_api="blas"):
        compared = _compared(data, batch_N, spec)
        for method, z_ND in compared.items():
            runs = integration_runs(z_ND, batch_N, labels, seeds=seeds, pca_ND=compared["pca_all"])
            for number, found in enumerate(runs):
                order = [*TOTALS, *(metric for metric in found if metric not in TOTALS)]
                rows += [(method, "scib", metric, number, found[metric]) for metric in order]
    scores = pd.DataFrame(rows, columns=["method", "readout", "metric", "split", "value"])
    return Report(
        task="integration",
        protocol=(
            f"{len(labels):,} cells of {len(np.unique(labels))} values of {spec.label} in "
            f"{len(np.unique(batch_N))} values of {spec.batch}. Metrics of scIB, all between 0 and "
            f"1, more is better; total = 0.4 batch + 0.6 bio. k-means started from {len(seeds)} "
            f"seeds (from {spec.seed}); all else was computed once."
        ),
        scores=scores,
        figures=(
            figures.scores_figure(scores[scores["metric"].isin(TOTALS)], NO_INTERVALS),
            *maps.column_maps(
                data.frozen["model"],
                {
                    "umap_label": (str(spec.label), labels),
                    "umap_batch": (str(spec.batch), batch_N),
                },
                seed=spec.seed,
            ),
        ),
        notes=(
            *notes,
            "Harmony, scVI and the fine-tuned models were told the batches; the others were not.",
            *_missing(spec),
            "An embedding in which everything is mixed has good batch metrics and no use: read "
            "both means.",
        ),
    )


def _compared(
    data: Embeddings, batch_N: NDArray[np.str_], spec: Spec
) -> Mapping[str, NDArray[np.float32]]:
    """Give the embeddings as they are, and those from which the batches were removed."""
    found = dict(embedded(data, seed=spec.seed))
    found["harmony"] = harmonised(found["pca_all"], batch_N, seed=spec.seed)
    if spec.fine_tune:
        for name, layers in FINE_TUNED.items():
            found[name] = adapted(data, batch_N, str(spec.batch), layers=layers, seed=spec.seed)
        if has_scvi():
            found["scvi"] = scvi_embedding(data.counts, batch_N, seed=spec.seed)
    return found


def _missing(spec: Spec) -> list[str]:
    if not spec.fine_tune:
        return ["With --fine-tune, scVI and the model trained further stand beside these."]
    return [] if has_scvi() else ["scVI is not installed: pip install 'cellray[scvi]'."]
