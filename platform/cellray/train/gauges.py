"""A run's numbers in Ray's Prometheus endpoint; see `cellray.feed.meters`."""

from collections.abc import Mapping

from cellray.feed.meters import counter, gauge, publish_traffic

GAUGES = {
    "step": ("cellray_train_step", "Optimizer steps done"),
    "train_loss": ("cellray_train_loss", "Mean training loss since the last record"),
    "cells_per_s": ("cellray_cells_per_second", "Cells trained on a second, over all ranks"),
    "feed_wait_share": ("cellray_feed_wait_share", "Share of time spent waiting for batches"),
    "worker_memory_gib": ("cellray_worker_memory_gib", "Resident memory of the worker, GiB"),
    "gpu_memory_gib": ("cellray_gpu_memory_gib", "Peak memory of the worker's GPU, GiB"),
    "mfu": ("cellray_mfu", "Share of the device's peak FLOP/s that the model uses"),
}
"""Name and help of each key of a record."""
STEP_SECONDS = ("cellray_step_seconds", "Mean seconds of a step spent in a phase")
PHASES = ("feed", "transfer", "forward", "backward", "optimizer", "allreduce")
CELLS = ("cellray_cells_total", "Cells that the rank has trained on")
"""A counter, of a record's ``cells``: those of this rank since its last record."""
TAGS = ("run", "rank")


def publish(record: Mapping[str, float], *, run: str, rank: int) -> None:
    """Set the gauges to what a record says; called in a worker.

    Parameters
    ----------
    record
        Keys of `GAUGES`, ``seconds_PHASE`` of `PHASES`, and ``cells``; what is absent keeps its
        value, and other keys are passed over.
    run
        The MLflow run's id.
    rank
        The worker's rank.
    """
    tags = {"run": run, "rank": str(rank)}
    for key, (name, meaning) in GAUGES.items():
        if key in record:
            gauge(name, meaning, TAGS).set(float(record[key]), tags)
    for phase in PHASES:
        if (key := f"seconds_{phase}") in record:
            gauge(*STEP_SECONDS, (*TAGS, "phase")).set(float(record[key]), tags | {"phase": phase})
    if record.get("cells", 0) > 0:
        counter(*CELLS, TAGS).inc(float(record["cells"]), tags)
    publish_traffic()
