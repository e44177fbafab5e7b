"""What a reader has to know of an evaluation, and where its numbers come from."""

import hashlib
from collections.abc import Mapping
from typing import Any

from cellray.atlas.store import Atlas
from cellray.core.texts import read_text
from cellray.evaluation.leak import Seen
from cellray.tasks.task import Spec
from cellray.track.evaluations import DIGEST, DIGEST_LENGTH, command
from cellray.track.models import Resolved

FILES = {"gene_sets": "gene sets", "ontology": "ontology", "orthologs": "orthologs"}
"""Fields of a `Spec` that name a file, and what these hold."""


def weights_of(resolved: Resolved) -> str:
    """Give the digest of a model's weights."""
    digest: str = resolved.facts["sha256"]["weights.safetensors"]
    return digest


def params_of(spec: Spec, max_cells: int) -> dict[str, str]:
    """Give what makes two evaluations by a task comparable, as text.

    Beside the name of a file or of a reference atlas stands a digest of what it holds now.

    Raises
    ------
    CellrayError
        A file or a reference that cannot be read.
    """
    asked = spec.model_dump(exclude_defaults=True) | {"splits": spec.splits, "seed": spec.seed}
    params = {name: str(value) for name, value in asked.items()} | {"max_cells": str(max_cells)}
    for name, what in FILES.items():
        if (path := getattr(spec, name)) is not None:
            content = hashlib.sha256(read_text(path, what).encode()).hexdigest()
            params[f"{name}{DIGEST}"] = content[:DIGEST_LENGTH]
    if spec.reference is not None:
        params[f"reference{DIGEST}"] = Atlas.open(spec.reference).digest[:DIGEST_LENGTH]
    return params


def reader_notes(seen: Mapping[str, Seen], atlas: Atlas, share: float, *, scored: int) -> list[str]:
    """Say what a reader has to know about the models and these cells."""
    notes = [one.note for one in seen.values()]
    if share < 1:
        notes.append(
            f"The atlas has {share:.1%} of the model's genes; the others count as zero. PCA uses "
            "all genes of the atlas."
        )
    if scored < atlas.n_cells:
        notes.append(f"{scored:,} cells, sampled at random from {atlas.n_cells:,}, were scored.")
    return notes


def facts_of(
    resolved: Resolved,
    champion: Resolved | None,
    atlas: Atlas,
    task: str,
    params: Mapping[str, str],
    share: float,
    seen: Mapping[str, Seen],
) -> Mapping[str, Any]:
    """Collect where the numbers come from, and how to get them again.

    Parameters
    ----------
    resolved, champion
        What was scored.
    atlas
        Where.
    task, params
        How; from `params_of`.
    share
        Of the model's genes that the atlas has.
    seen
        What model and champion have seen of the cells, by method.
    """
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
        "seen_in_pretraining": seen["model"].share,
        "seen_groups": dict(seen["model"].groups),
        "champion": None if champion is None else champion.uri,
        "champion_seen_in_pretraining": None if champion is None else seen["champion"].share,
        "champion_seen_groups": {} if champion is None else dict(seen["champion"].groups),
        "split_seed": int(params["seed"]),
        "params": dict(params),
        "command": command(resolved.uri, atlas.url, task, params),
    }
