"""Pre-train by every method on the mouse bladder atlas and score the embeddings; write the table.

usage: python tests/benchmarks/methods.py mouse_bladder_2100.h5ad [NAME ...]

The proteins are those of cite_cbmc_8617.h5ad beside it.

The cells, their split and the steps are the same for all. The table goes to
docs/benchmarks/methods.md and its numbers to methods.json beside it; tests/behaviour/test_gates.py
trains some of the rows anew.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean

import anndata
from methods_tasks import (
    ENCODER_RATES,
    FINE_TUNE_STEPS,
    HEAD_RATE,
    LABEL,
    PROTEIN_STEPS,
    annotated,
    embedded,
    fine_tuned,
    proteins,
    ridge,
)

from cellray.atlas.store import Atlas
from cellray.atlas.write import ingest
from cellray.core.recipe import Recipe
from cellray.learn.learner import Learner
from cellray.score.embedding import pca_embedding
from cellray.track.runs import git_commit
from cellray.train.local import fit
from cellray.train.setup import prepare

ROOT = Path(__file__).parents[2]
SEEDS = (0, 1, 2)
FEW, PAIRS = (0.02, 0.1), (0.02, 1.0)
LABELS, PROTEIN_KEYS = (
    [f"{kind}_{share:g}" for share in shares]
    for kind, shares in (("labels", FEW), ("proteins", PAIRS))
)
REMARKS = "## Remarks"
BASE = (
    "data.genes=1000",
    "data.batch_size=128",
    "encoder.widths=[512,256]",
    "encoder.dropout=0",
    "train.epochs=40",
)
TINY_TOKENS = (
    "data.genes=1000",
    "data.batch_size=128",
    "encoder.name=transformer",
    "encoder.width=32",
    "encoder.layers=2",
    "encoder.heads=4",
    "encoder.n_tokens=64",
    "encoder.dropout=0",
    "train.epochs=40",
)
MASK = "views=[{name: random_mask}]"
LIGHT_MASK = "views=[{name: random_mask, fraction: 0.2}]"
NB_NOISE = "views=[{name: nb_noise, intensity: 1}, {name: dropout_noise}]"
LITTLE_NB_NOISE = "views=[{name: nb_noise, intensity: 0.2}, {name: dropout_noise}]"
SMALL_BYOL = ("objective.name=byol", "objective.hidden=512")


def frozen(learner: Learner) -> Learner:
    """Make the defect of released BYOL codes: the copy never moves."""
    learner.objective.after_step = lambda *_: None  # type: ignore[method-assign]
    return learner


def bounded(learner: Learner) -> Learner:
    """Make the defect of the released masked autoencoder: a sigmoid output."""
    decode = learner.objective.decoder.forward
    learner.objective.decoder.forward = lambda *args: decode(*args).sigmoid()
    return learner


def as_it_is(learner: Learner) -> Learner:
    """Leave a learner alone."""
    return learner


# What a row is called, what it changes in the recipe, and what it breaks on purpose.
METHODS: dict[str, tuple[Sequence[str], Callable[[Learner], Learner]]] = {
    "masked, 50 %": (("objective.name=masked", "objective.widths=[256,512]", MASK), as_it_is),
    "masked with a sigmoid output": (
        ("objective.name=masked", "objective.widths=[256,512]", MASK),
        bounded,
    ),
    "masked, negative binomial": (
        ("objective.name=masked", "objective.widths=[256,512]", "objective.likelihood=nb", MASK),
        as_it_is,
    ),
    "scmae": (("objective.name=scmae", "views=[{name: gene_shuffle, fraction: 0.4}]"), as_it_is),
    "byol, masks": ((*SMALL_BYOL, MASK), as_it_is),
    "byol, masks, frozen target": ((*SMALL_BYOL, MASK), frozen),
    "byol, negative binomial noise x 1, dropout noise": ((*SMALL_BYOL, NB_NOISE), as_it_is),
    "byol, negative binomial noise x 0.2, dropout noise": (
        (*SMALL_BYOL, LITTLE_NB_NOISE),
        as_it_is,
    ),
    "simsiam, masks": (("objective.name=simsiam", MASK), as_it_is),
    "barlow_twins, masks": (("objective.name=barlow_twins", MASK), as_it_is),
    "vicreg, masks": (("objective.name=vicreg", MASK), as_it_is),
    "simclr, masks": (("objective.name=simclr", LIGHT_MASK), as_it_is),
    "moco, masks": (("objective.name=moco", "objective.queue=512", LIGHT_MASK), as_it_is),
    "moco with prototypes, masks": (
        ("objective.name=moco", "objective.queue=512", "objective.prototypes=32", LIGHT_MASK),
        as_it_is,
    ),
    "nnclr, masks": (("objective.name=nnclr", "objective.bank=512", LIGHT_MASK), as_it_is),
    "expression_prediction": (("objective.name=expression_prediction", MASK), as_it_is),
    "bigan": (("objective.name=bigan", "views=[]"), as_it_is),
}


def recipe(name: str, seed: int) -> Recipe:
    """Give the recipe of a row."""
    return Recipe().with_([*BASE, *METHODS[name][0], f"seed={seed}"])


def train(name: str, seed: int, atlas: Atlas) -> Learner:
    """Pre-train a row."""
    return fit(recipe(name, seed), atlas, change=METHODS[name][1])


def tiny_transformer(seed: int, atlas: Atlas) -> Learner:
    """Pre-train a small transformer on gene tokens, long tails sampled in half of the draws."""
    changes = [*TINY_TOKENS, "objective.name=mvc", "objective.width=32", f"seed={seed}"]
    return fit(Recipe().with_([*changes, "views=[{name: random_mask, fraction: 0.4}]"]), atlas)


class Found(dict[str, dict[str, list[float]]]):
    """Scores by row and metric, one a seed."""

    def note(self, row: str, **scores: float) -> None:
        """Keep and print a row's scores of one seed."""
        for metric, value in scores.items():
            self.setdefault(row, {}).setdefault(metric, []).append(value)
        print(row, {metric: round(value, 3) for metric, value in scores.items()}, flush=True)


def measure_labels(found: Found, names: Sequence[str], source: Path, folder: Path) -> None:
    """Pre-train by every method, and annotate."""
    atlas, data = ingest([source], folder / "labels"), anndata.read_h5ad(source)
    labels = data.obs[LABEL].astype(str).to_numpy()
    few = {f"labels_{share:g}": share for share in FEW}
    for seed in SEEDS:
        plain = recipe("masked, 50 %", seed)
        untrained = prepare(plain, atlas).learner(plain)
        found.note("PCA to 64, all genes", **annotated(pca_embedding(data.X, dim=64), labels))
        found.note("the same encoder, untrained", **annotated(embedded(untrained, data), labels))
        scores = {key: fine_tuned(untrained, data, share, seed) for key, share in few.items()}
        found.note("from scratch", **scores)
        for name in names:
            learner = train(name, seed, atlas)
            found.note(name, **annotated(embedded(learner, data), labels))
            if name == "masked, 50 %":
                scores = {key: fine_tuned(learner, data, share, seed) for key, share in few.items()}
                found.note("pre-trained, masked", **scores)
        tokens = tiny_transformer(seed, atlas)
        found.note("transformer, long tails at test", **annotated(embedded(tokens, data), labels))
        tokens.encoder.long_tail = 0.0
        found.note("transformer, uniform at test", **annotated(embedded(tokens, data), labels))


def measure_proteins(found: Found, source: Path, folder: Path) -> None:
    """Pre-train a masked model, and regress proteins on expression."""
    atlas, data = ingest([source], folder / "proteins"), anndata.read_h5ad(source)
    for seed in SEEDS:
        plain = recipe("masked, 50 %", seed).with_(["data.genes=null", "train.epochs=10"])
        untrained = prepare(plain, atlas).learner(plain)
        learner = fit(plain, atlas)
        for share in PAIRS:
            key = f"proteins_{share:g}"
            found.note("ridge", **{key: ridge(untrained, data, share, seed)})
            found.note("from scratch", **{key: proteins(untrained, data, share, seed)})
            found.note("pre-trained, masked", **{key: proteins(learner, data, share, seed)})


def table(found: Found, head: Sequence[str], metrics: Sequence[str]) -> str:
    """Lay out the rows that have all of some metrics: mean over seeds, with the range."""
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for row, scores in found.items():
        if all(metric in scores for metric in metrics):
            cells = [
                f"{mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
                for values in (scores[metric] for metric in metrics)
            ]
            lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def page(found: Found, remarks: str) -> str:
    """Give the page; remarks on the numbers are written by hand, and kept."""
    rates = " or ".join(f"{rate:g}" for rate in ENCODER_RATES)
    return f"""# Methods on small real data

{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, commit {git_commit()}. Command:
`make bench-methods` (`tests/benchmarks/methods.py`). Means over seeds {", ".join(map(str, SEEDS))},
with the range.

## Annotation

Mouse bladder (Mouse Cell Atlas, Han 2018), 2,100 cells of 16 types. 1,000 highly variable genes, 40
epochs of 128 cells a step (560 steps), the same encoder (512-256-64) for all but the transformer,
which has two layers of 32 units on 64 gene tokens. Macro F1 on five stratified 70/30 splits.

{table(found, ("method", "kNN, k = 5", "linear probe"), ("knn", "probe"))}

## Few labels

The whole network fine-tuned for {FINE_TUNE_STEPS} steps on a share of the labels (class-weighted
cross-entropy, AdamW, head at {HEAD_RATE:g}, encoder at {rates}, whichever is better on half of
the other cells); macro F1 on the other half.

{table(found, ("start", *(f"{share:.0%} of the labels" for share in FEW)), LABELS)}

## RNA to protein

Cord blood CITE-seq (Stoeckius 2017), 8,617 cells, 2,000 genes, 10 antibodies. Fine-tuned for
{PROTEIN_STEPS} steps on a share of the pairs, rates chosen on validation cells as above; Pearson
correlation on test cells, mean over proteins.

{table(found, ("start", *(f"{share:.0%} of the pairs" for share in PAIRS)), PROTEIN_KEYS)}

{REMARKS}

{remarks}
"""


def main() -> None:
    """Measure and write."""
    source, names = Path(sys.argv[1]).absolute(), sys.argv[2:] or list(METHODS)
    out, found = ROOT / "docs/benchmarks/methods.md", Found()
    with tempfile.TemporaryDirectory() as scratch:
        measure_labels(found, names, source, Path(scratch))
        measure_proteins(found, source.parent / "cite_cbmc_8617.h5ad", Path(scratch))
    if names == list(METHODS):
        remarks = out.read_text().partition(REMARKS)[2].strip() if out.exists() else ""
        out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
        out.write_text(page(found, remarks))


if __name__ == "__main__":
    main()
