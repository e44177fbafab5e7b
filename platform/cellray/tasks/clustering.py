"""How well the clusters of an embedding agree with labels that they never saw."""

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from cellray.score.clustering import agreement, kmeans, leiden, silhouette
from cellray.tasks import figures
from cellray.tasks.methods import embedded
from cellray.tasks.splits import usable_cells
from cellray.tasks.task import NO_INTERVALS, Embeddings, Report, Spec


def clustering(embeddings: Embeddings, spec: Spec) -> Report:
    """Cluster every embedding, and compare the clusters with the labels.

    By k-means, with as many clusters as there are labels, and by Leiden at resolution 1, each from
    several seeds: adjusted Rand index (ARI) and normalised mutual information (NMI). Without
    clusters, by the labels' own average silhouette width (ASW), scaled to [0, 1].

    Parameters
    ----------
    embeddings
        Embeddings, and the label in ``obs``.
    spec
        The label; ``splits`` is the number of seeds.

    Raises
    ------
    CellrayError
        No label with two cells, or one label only.
    """
    kept, notes = usable_cells(embeddings.obs, spec)
    data = embeddings.take(kept)
    labels = data.column(spec.label)
    n_labels = len(np.unique(labels))
    rows = []
    with threadpool_limits(1, user_api="blas"):
        for method, z_ND in embedded(data, seed=spec.seed).items():
            for number in range(spec.splits):
                seed = spec.seed + number
                for readout, clusters in (
                    ("leiden", leiden(z_ND, seed=seed)),
                    ("kmeans", kmeans(z_ND, n_labels, seed=seed)),
                ):
                    for metric, value in agreement(labels, clusters).items():
                        rows.append((method, readout, metric, number, value))
            width = silhouette(z_ND, labels, seed=spec.seed)
            rows.append((method, "labels", "asw", 0, width))
    scores = pd.DataFrame(rows, columns=["method", "readout", "metric", "split", "value"])
    return Report(
        task="clustering",
        protocol=(
            f"{len(labels):,} cells of {n_labels} values of {spec.label} were clustered by Leiden "
            f"(resolution 1) and by k-means ({n_labels} clusters), from {spec.splits} seeds each. "
            "No label was seen; ARI is 0 by chance."
        ),
        scores=scores,
        figures=(figures.scores_figure(scores, NO_INTERVALS),),
        notes=(*notes, "PCA saw no label: its axes were fitted on all cells."),
    )
