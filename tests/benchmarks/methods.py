"""Pre-train by every method on the mouse bladder atlas and score the embeddings; write the table.

usage: python tests/benchmarks/methods.py mouse_bladder_2100.h5ad [NAME ...]

The cells, their split and the steps are the same for all. The table goes to
docs/benchmarks/methods.md and its numbers to methods.json beside it; tests/behaviour/test_gates.py
trains some of the rows anew.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import Any

import anndata
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F

from cellray.atlas.store import Atlas
from cellray.atlas.write import ingest
from cellray.core.recipe import Recipe
from cellray.learn.embed import embed_matrix, gene_columns
from cellray.learn.learner import Learner, normalise
from cellray.score.annotation import f1, knn
from cellray.score.embedding import pca_embedding
from cellray.track.runs import git_commit
from cellray.train.local import fit
from cellray.train.setup import prepare

ROOT = Path(__file__).parents[2]
SEEDS = (0, 1, 2)
LABEL = "cell_type"
SPLITS = StratifiedShuffleSplit(5, test_size=0.3, random_state=0)
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
NB_NOISE = "views=[{name: nb_noise}, {name: dropout_noise}]"
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
    "byol, negative binomial and dropout noise": ((*SMALL_BYOL, NB_NOISE), as_it_is),
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


def embedded(learner: Learner, data: anndata.AnnData) -> NDArray[np.float32]:
    """Embed all cells."""
    return embed_matrix(learner, data.X, data.var_names)


def annotated(z: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
    """Give macro F1 by kNN and by a linear probe, means over the splits."""
    found: dict[str, list[float]] = {"knn": [], "probe": []}
    for train_cells, test_cells in SPLITS.split(z, labels):
        one, other = z[train_cells], z[test_cells]
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
        guesses = {
            "knn": knn(one, labels[train_cells], other),
            "probe": probe.fit(one, labels[train_cells]).predict(other),
        }
        for by, guess in guesses.items():
            found[by].append(f1(labels[test_cells], guess)["macro_f1"])
    return {by: mean(values) for by, values in found.items()}


def fine_tuned(
    learner: Learner, data: anndata.AnnData, share: float, seed: int, *, steps: int = 200
) -> float:
    """Train encoder and a linear head on a share of the training labels; macro F1 on the rest.

    The labelled cells have one of each type at least; all other cells of the split are the test.
    """
    torch.manual_seed(seed)
    names, labels = np.unique(data.obs[LABEL].astype(str), return_inverse=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    chosen = np.zeros(len(labels), bool)
    for label in range(len(names)):
        cells = order[labels[order] == label]
        chosen[cells[: max(1, round(share * len(cells)))]] = True
    counts = torch.from_numpy(np.asarray(data.X.todense(), np.float32))
    columns = gene_columns(learner.genes, data.var_names.to_numpy(str))
    totals, mine = counts.sum(1), torch.zeros(len(counts), len(learner.genes))
    mine[:, columns[columns >= 0]] = counts[:, columns >= 0]
    x, wanted = normalise(mine, totals), torch.from_numpy(labels)
    head = nn.Linear(learner.encoder.dim, len(names))
    parameters = [*learner.encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05)
    known = torch.from_numpy(np.flatnonzero(chosen))
    learner.train()
    for _ in range(steps):
        batch = known[torch.randint(len(known), (64,))]
        optimizer.zero_grad()
        F.cross_entropy(head(learner.encoder(x[batch])), wanted[batch]).backward()
        optimizer.step()
    learner.eval()
    with torch.no_grad():
        guess = head(learner.encoder(x)).argmax(dim=1).numpy()
    return f1(labels[~chosen], guess[~chosen])["macro_f1"]


def with_interval(values: Sequence[float]) -> str:
    """Give a mean with its range."""
    return f"{mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def measure(
    names: Sequence[str], atlas: Atlas, data: anndata.AnnData
) -> dict[str, dict[str, list[float]]]:
    """Train and score the rows, and what they are compared with."""
    labels = data.obs[LABEL].astype(str).to_numpy()
    found: dict[str, dict[str, list[float]]] = {}

    def note(row: str, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            found.setdefault(row, {}).setdefault(key, []).append(value)
        print(row, {key: round(value, 3) for key, value in values.items()}, flush=True)

    for seed in SEEDS:
        note("PCA to 64, all genes", annotated(pca_embedding(data.X, dim=64, seed=seed), labels))
        plain = recipe("masked, 50 %", seed)
        untrained = prepare(plain, atlas).learner(plain)
        note("the same encoder, untrained", annotated(embedded(untrained, data), labels))
        note("scratch, fine-tuned", _few(untrained, data, seed))
        for name in names:
            learner = train(name, seed, atlas)
            note(name, annotated(embedded(learner, data), labels))
            if name == "masked, 50 %":
                note("masked, fine-tuned", _few(learner, data, seed))
        tokens = tiny_transformer(seed, atlas)
        note("transformer, long tails at test", annotated(embedded(tokens, data), labels))
        tokens.encoder.long_tail = 0.0
        note("transformer, uniform at test", annotated(embedded(tokens, data), labels))
    return found


def _few(learner: Learner, data: anndata.AnnData, seed: int) -> dict[str, float]:
    state = {name: value.clone() for name, value in learner.state_dict().items()}
    found = {}
    for share in (0.02, 0.1):
        learner.load_state_dict(state)
        found[f"fine_tuned_{share:g}"] = fine_tuned(learner, data, share, seed)
    learner.load_state_dict(state)
    return found


def page(found: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Give the page."""
    lines = [
        "# Methods on the mouse bladder atlas",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, commit {git_commit()}. Command: "
        "`make bench-methods`",
        "(`tests/benchmarks/methods.py`). 2,100 cells of 16 types (Mouse Cell Atlas, Han 2018); "
        "1,000 highly",
        "variable genes, 40 epochs of 128 cells a step (560 steps), the same encoder for all;",
        "macro F1 on five stratified 70/30 splits, mean over seeds "
        f"{', '.join(map(str, SEEDS))} with the range.",
        "",
        "| method | kNN, k = 5 | linear probe |",
        "| --- | --- | --- |",
    ]
    few = []
    for row, scores in found.items():
        if "knn" not in scores:
            few.append(
                f"| {row} | {with_interval(scores['fine_tuned_0.02'])} "
                f"| {with_interval(scores['fine_tuned_0.1'])} |"
            )
            continue
        lines.append(
            f"| {row} | {with_interval(scores['knn'])} | {with_interval(scores['probe'])} |"
        )
    lines += [
        "",
        "Whole network fine-tuned for 200 steps on a share of the labels, macro F1 on the",
    ]
    lines += ["other cells:", "", "| start | 2 % | 10 % |", "| --- | --- | --- |", *few]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write."""
    source, names = Path(sys.argv[1]).absolute(), sys.argv[2:] or list(METHODS)
    with tempfile.TemporaryDirectory() as scratch:
        atlas = ingest([source], Path(scratch) / "atlas")
        found = measure(names, atlas, anndata.read_h5ad(source))
    print(page(found))
    if names == list(METHODS):
        out = ROOT / "docs/benchmarks/methods"
        out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
        out.with_suffix(".md").write_text(page(found))


if __name__ == "__main__":
    main()
