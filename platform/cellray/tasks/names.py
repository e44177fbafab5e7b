"""Names and colours of methods, readouts and metrics, for tables and figures."""

from collections.abc import Sequence
from itertools import cycle

PCA_DIM = 50

METHODS = {
    "model": "model",
    "champion": "champion",
    "pca_all": f"PCA ({PCA_DIM}), all cells",
    "pca": f"PCA ({PCA_DIM}), training cells",
    "untrained": "untrained encoder",
    "majority": "most common label",
    "own_mean": "its own training cells",
    "mean_effect": "mean effect",
    "control": "no change",
    "mean_difference": "mean difference",
    "mean_expression": "mean expression",
    "model_uniform": "model, uniform sampling",
    "model_fine_tuned": "model, fine-tuned",
    "model_shallow": "model, last layer tuned",
    "harmony": "Harmony on PCA",
    "scvi": "scVI",
    "nearest_centroid": "mean of each type",
    "genes": "shared genes",
}
"""Methods in the order of tables, and their names for people. A task may bring more."""

COLOURS = {
    "model": "#0f766e",
    "champion": "#6d28d9",
    "pca_all": "#b45309",
    "pca": "#f59e0b",
    "untrained": "#94a3b8",
}
MORE_COLOURS = ("#2563eb", "#be123c", "#4d7c0f", "#0891b2", "#a16207", "#7c2d12")
READOUTS = {
    "knn": "kNN (k = 5)",
    "probe": "linear probe",
    "fine_tuned": "fine-tuned",
    "leiden": "Leiden",
    "kmeans": "k-means",
    "scib": "scIB",
    "ridge": "ridge regression",
    "decoder": "its decoder",
    "projection": "projection",
    "dropout": "entries lost",
    "library": "molecules left",
    "missing": "genes lost",
    "majority": "no features",
    "seen": "seen",
    "unseen": "unseen",
    "markers": "its markers",
    "other_markers": "other classes' markers",
    "centroid": "nearest mean",
    "distance": "distance",
    "votes": "disagreement",
    "held_out_type": "held-out type",
    "transfer": "aligned (MMD)",
    "no_transfer": "not aligned",
    "logistic": "logistic regression",
}
METRICS = {
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "rare_f1": "rare classes' F1",
    "ontology_macro_f1": "macro F1, kinds count",
    "ontology_micro_f1": "micro F1, kinds count",
    "ece": "calibration error",
    "brier": "Brier score",
    "ari": "ARI",
    "nmi": "NMI",
    "asw": "ASW",
    "bio": "biology",
    "clisi": "cLISI",
    "ilisi": "iLISI",
    "kbet": "kBET",
    "bras": "BRAS",
    "kmeans_nmi": "k-means NMI",
    "kmeans_ari": "k-means ARI",
    "silhouette_label": "silhouette",
    "isolated_labels": "isolated labels",
    "graph_connectivity": "graph connectivity",
    "pcr_comparison": "PCR",
    "pearson_features": "Pearson by feature",
    "pearson_cells": "Pearson by cell",
    "pearson_flat": "Pearson, flat",
    "explained_variance": "explained variance",
    "uniform": "explained variance, uniform",
    "weighted": "explained variance, weighted",
    "mse": "MSE",
    "pearson_delta": "Pearson of change",
    "pearson_top20": "Pearson, top 20 genes",
    "discrimination": "discrimination",
    "auroc": "AUROC",
    "average_precision": "average precision",
    "unknown_auroc": "AUROC of unknown cells",
    "kept_accuracy": "accuracy of kept cells",
    "rejected_known": "known cells rejected",
    "rejected_unknown": "unknown cells rejected",
}


def readout_name(readout: str) -> str:
    """Give a readout's name for people: ``ridge_hidden`` is that of ``ridge``, and "hidden"."""
    kind, _, level = readout.rpartition("_")
    if readout in READOUTS or kind not in READOUTS:
        return READOUTS.get(readout, readout)
    return f"{READOUTS[kind]}, {level}"


def colours(methods: Sequence[str]) -> dict[str, str]:
    """Give each method its colour; what a task brings gets those that are left."""
    more = iter(cycle(MORE_COLOURS))
    return {name: COLOURS.get(name) or next(more) for name in methods}
