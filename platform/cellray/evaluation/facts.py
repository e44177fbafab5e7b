"""What a reader has to know of an evaluation, and where its numbers come from."""

import shlex
from collections.abc import Mapping
from typing import Any

from cellray.atlas.store import Atlas
from cellray.evaluation.leak import Seen
from cellray.tasks.task import Spec
from cellray.track.evaluations import options
from cellray.track.models import Resolved


def weights_of(resolved: Resolved) -> str:
    """Give the digest of a model's weights."""
    digest: str = resolved.facts["sha256"]["weights.safetensors"]
    return digest


def params_of(spec: Spec, max_cells: int) -> dict[str, str]:
    """Give what makes two evaluations by a task comparable, as text."""
    asked = spec.model_dump(exclude_defaults=True) | {"splits": spec.splits, "seed": spec.seed}
    return {name: str(value) for name, value in asked.items()} | {"max_cells": str(max_cells)}


def reader_notes(seen: Seen, atlas: Atlas, share: float, *, scored: int) -> tuple[str, ...]:
    """Say what a reader has to know about the model and these cells."""
    notes = [seen.note]
    if share < 1:
        notes.append(
            f"The atlas has {share:.1%} of the model's genes; the others count as zero. PCA uses "
            "all genes of the atlas."
        )
    if scored < atlas.n_cells:
        notes.append(f"{scored:,} cells, sampled at random from {atlas.n_cells:,}, were scored.")
    return tuple(notes)


def facts_of(
    resolved: Resolved, atlas: Atlas, entry: tuple[str, Spec], share: float, seen: Seen
) -> Mapping[str, Any]:
    """Collect where the numbers come from, and how to get them again."""
    task, spec = entry
    words = ["cellray", "evaluate", resolved.uri, "--atlas", atlas.url]
    if task != "annotation":
        words += ["--task", task]
    words += options(spec.model_dump(exclude_defaults=True))
    learner = resolved.learner
    return {
        "model": resolved.uri,
        "name": resolved.name,
        "version": resolved.version,
        "training_run": resolved.run_id,
        "git_commit": resolved.facts.get("git_commit"),
        "weights_sha256": weights_of(resolved),
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
        "seen_in_pretraining": seen.share,
        "seen_groups": list(seen.groups),
        "split_seed": spec.seed,
        "command": shlex.join(words),
    }
