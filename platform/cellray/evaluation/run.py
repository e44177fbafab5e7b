"""Evaluation as one call: resolve, embed, score, write, log."""

import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cellray.atlas.store import Atlas
from cellray.core.errors import CellrayError, suggest
from cellray.core.types import Progress
from cellray.evaluation.embed import embed_learners
from cellray.evaluation.export import check_folder, source_order
from cellray.evaluation.report import report_files, write_files
from cellray.evaluation.table import TASKS
from cellray.evaluation.task import Embeddings, Report, Spec, sample_cells
from cellray.learn.embed import gene_columns, matched_share
from cellray.track.models import Resolved, log_evaluation, resolve

MAX_CELLS = 50_000
"""Cells that are scored at most: PCA and kNN hold them in memory."""


def evaluate(
    model: str,
    atlas: str,
    *,
    label: str,
    task: str = "annotation",
    split_by: str | None = None,
    seeds: int = 5,
    seed: int = 0,
    max_cells: int = MAX_CELLS,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """Score a registered model on an atlas, beside the baselines of the task.

    Parameters
    ----------
    model
        URI of a registered model, such as ``models:/pbmc@champion``.
    atlas
        The atlas's URL.
    label
        The obs column to predict.
    task
        An entry of ``TASKS``.
    split_by
        An obs column (a donor) whose values are held out whole; None stratifies by label.
    seeds
        Number of splits.
    seed
        Seed of the splits, the PCA, the UMAP and of the sample when there are too many cells.
    max_cells
        Score a random sample of so many cells when the atlas has more; the report says so.
    out
        Folder for ``report.html``, ``table.csv``, ``metrics.json``, ``confusion.csv`` and the
        figures; None is ``.cellray/reports/NAME-vVERSION-TASK`` in the working folder.
    progress
        Called with ("embed", cells, all cells).

    Returns
    -------
    Report
        With the folder and the MLflow run that hold it.

    Raises
    ------
    CellrayError
        An unknown task, model or column, an atlas that cannot be used, no gene in common, or
        what the task refuses.
    """
    if task not in TASKS:
        raise CellrayError(f"unknown task '{task}'", suggest(task, TASKS))
    if seeds < 1:
        raise CellrayError(f"{seeds} splits cannot be scored", "give --seeds 1 or more")
    if label == split_by:
        raise CellrayError(
            f"--split-by {label} would hold out what is to be predicted",
            "split by another column, or leave it out",
        )
    spec = Spec(label=label, split_by=split_by, splits=seeds, seed=seed)
    opened = Atlas.open(atlas)
    obs = opened.obs([label] if split_by is None else list(dict.fromkeys([label, split_by])))
    resolved = resolve(model)
    folder = Path(out or Path(".cellray/reports") / f"{resolved.name}-v{resolved.version}-{task}")
    folder = folder.expanduser().absolute()
    check_folder(folder)
    columns = gene_columns(resolved.learner.genes, opened.genes)
    learners = [resolved.learner, resolved.learner.untrained()]
    model_ND, untrained_ND = embed_learners(learners, opened, progress=progress)
    # In the order of the sources: the splits then do not depend on how the atlas was shuffled.
    order = source_order(opened.obs(["cellray_source", "cellray_row"]))
    cells = order[sample_cells(opened.n_cells, max_cells, seed, "evaluation cells")]
    embeddings = Embeddings(
        frozen={"model": model_ND[cells], "untrained": untrained_ND[cells]},
        counts=opened.read_cells(cells).to_scipy(),
        obs=obs.iloc[cells].reset_index(drop=True),
    )
    found = TASKS[task](embeddings, spec)
    share = matched_share(columns, len(resolved.learner.genes))
    report = replace(
        found,
        notes=(*_notes(resolved, opened, share, scored=len(cells)), *found.notes),
        facts=_facts(resolved, opened, spec, share),
        folder=folder,
    )
    texts = report_files(report)
    write_files(texts, folder)
    with tempfile.TemporaryDirectory(prefix="cellray-") as scratch:
        # Not the folder itself: it may hold files of the user's.
        write_files(texts, Path(scratch))
        run_id = log_evaluation(
            resolved,
            metrics=report.metrics,
            dataset_name=Path(opened.url).name,
            dataset_digest=opened.digest,
            dataset_url=opened.url,
            artifacts=scratch,
            params=_params(spec) | {"max_cells": str(max_cells)},
            task=task,
        )
    return replace(report, run_id=run_id)


def _params(spec: Spec) -> dict[str, str]:
    return {name: str(value) for name, value in asdict(spec).items() if value is not None}


def _notes(resolved: Resolved, atlas: Atlas, share: float, *, scored: int) -> list[str]:
    """Say what a reader has to know about the model and these cells."""
    trained_on = resolved.facts.get("atlas_digest")
    if trained_on == atlas.digest:
        seen = (
            "The model was pre-trained on this very atlas: it has seen the counts of the test "
            "cells, though never a label. These scores say how well it organises known cells, not "
            "how it does on new ones."
        )
    else:
        seen = (
            "The model was pre-trained on another atlas. Whether some cells are in both was not "
            "checked."
        )
    notes = [seen]
    if share < 1:
        notes.append(
            f"The atlas has {share:.1%} of the model's genes; the others count as zero. PCA uses "
            "all genes of the atlas."
        )
    if scored < atlas.n_cells:
        notes.append(f"{scored:,} cells, sampled at random from {atlas.n_cells:,}, were scored.")
    return notes


def _facts(resolved: Resolved, atlas: Atlas, spec: Spec, share: float) -> Mapping[str, Any]:
    """Collect where the numbers come from, and how to get them again."""
    words = ["cellray", "evaluate", resolved.uri, "--atlas", atlas.url, "--label", spec.label]
    if spec.split_by is not None:
        words += ["--split-by", spec.split_by]
    if spec.splits != Spec.splits:
        words += ["--seeds", str(spec.splits)]
    learner = resolved.learner
    return {
        "model": resolved.uri,
        "name": resolved.name,
        "version": resolved.version,
        "training_run": resolved.run_id,
        "git_commit": resolved.facts.get("git_commit"),
        "weights_sha256": resolved.facts["sha256"]["weights.safetensors"],
        "parameters": sum(p.numel() for p in learner.encoder.parameters()),
        "dimensions": learner.encoder.dim,
        "genes": len(learner.genes),
        "objective": learner.recipe.objective.name,
        "recipe": learner.recipe.dump(),
        "training_seed": learner.recipe.seed,
        "trained_on": resolved.facts.get("atlas"),
        "trained_on_digest": resolved.facts.get("atlas_digest"),
        "atlas": atlas.url,
        "atlas_digest": atlas.digest,
        "atlas_cells": atlas.n_cells,
        "atlas_genes": atlas.n_genes,
        "genes_matched": share,
        "seen_in_pretraining": resolved.facts.get("atlas_digest") == atlas.digest,
        "split_seed": spec.seed,
        "command": shlex.join(words),
    }
