"""What a replica tells Prometheus; see `cellray.feed.meters`."""

from collections.abc import Mapping

from cellray.feed.meters import counter, gauge, histogram

REQUESTS = ("cellray_serve_requests_total", "Requests answered")
CELLS = ("cellray_serve_cells_total", "Cells embedded")
SECONDS = ("cellray_serve_seconds", "Seconds from a request to its answer")
BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
GENES = ("cellray_serve_genes_share", "Share of the model's genes in the last request")
DRIFT = {
    "library": ("cellray_drift_library", "Kolmogorov-Smirnov statistic of library sizes"),
    "detected": ("cellray_drift_detected", "Kolmogorov-Smirnov statistic of genes detected"),
    "detection": ("cellray_drift_detection", "Mean difference of genes' detection rates"),
    "expression": ("cellray_drift_expression", "Mean difference of genes' log expression"),
    "embedding": ("cellray_drift_embedding", "Squared maximum mean discrepancy of embeddings"),
}
"""Name and help of each key of `cellray.score.drift.drift`."""


def answered(path: str, status: int, seconds: float, *, model: str) -> None:
    """Count an answer."""
    histogram(*SECONDS, BOUNDS, ("path", "model")).observe(seconds, {"path": path, "model": model})
    tags = {"path": path, "status": str(status), "model": model}
    counter(*REQUESTS, ("path", "status", "model")).inc(1, tags)


def embedded(cells: int, share: float, *, model: str) -> None:
    """Count the cells of a request."""
    counter(*CELLS, ("model",)).inc(cells, {"model": model})
    gauge(*GENES, ("model",)).set(share, {"model": model})


def drifted(found: Mapping[str, float], *, model: str) -> None:
    """Set the gauges of drift."""
    for key, value in found.items():
        gauge(*DRIFT[key], ("model",)).set(value, {"model": model})
