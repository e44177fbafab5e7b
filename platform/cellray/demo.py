"""The demo: real counts to a registered, evaluated model, one verb after another."""

import time
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scanpy
from scipy.sparse import csr_matrix

from cellray import answers
from cellray.atlas.describe import describe
from cellray.atlas.store import Atlas
from cellray.atlas.write import ingest
from cellray.console import Console
from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe
from cellray.core.types import TARGET_SUM
from cellray.evaluation.run import evaluate
from cellray.evaluation.write import embed
from cellray.feed.session import ray_session
from cellray.tasks.splits import make_splits, usable_cells
from cellray.tasks.task import Spec
from cellray.track.promotion import promote
from cellray.train.run import pretrain

MODEL = "demo"
LABEL = "bulk_labels"
DECIMALS = 3
"""Decimals to which scanpy rounded the log-normalised values of its 700 cells."""

MIN_CELLS = 32
"""Cells below which there is no batch to train on and no neighbour to score by."""


def run(
    to: Console, *, h5ad: str | None, label: str | None, epochs: int, work: Path
) -> dict[str, Any]:
    """Run every verb in order, saying in a line what each does.

    Parameters
    ----------
    to
        Where to say it.
    h5ad, label
        A file of counts and its column of cell types; None takes scanpy's 700 PBMC.
    epochs
        Passes over the cells.
    work
        Folder for the atlas, the report and the embeddings; made when it is not there.

    Returns
    -------
    dict
        ``passed`` (whether the model's kNN beats the untrained encoder's), ``scores`` (kNN macro
        F1 by method), ``atlas``, ``model``, ``run_id``, ``report``, ``embeddings``, ``seconds``;
        ``model`` has the alias ``@champion`` and ``embeddings`` are there only if it passed.

    Raises
    ------
    CellrayError
        One of `h5ad` and `label` without the other, a label that cannot be predicted, too few
        cells, or what the verbs refuse.
    """
    if (h5ad is None) != (label is None):
        raise CellrayError("--h5ad and --label go together", "give both, or neither")
    began = time.monotonic()
    source, column = h5ad, label
    if source is None or column is None:
        source, column = str(work / "pbmc700.h5ad"), LABEL
        to.say("counts     the 700 real PBMC in scanpy's wheel: a tiny set, so scores are rough")
        work.mkdir(parents=True, exist_ok=True)
        pbmc_counts().write_h5ad(source)
    to.say(f"ingest     {source} becomes an atlas, {work / 'atlas'}")
    atlas = ingest([source], work / "atlas", overwrite=True, progress=to.progress)
    document = describe(atlas)
    to.say(
        f"inspect    {atlas.n_cells:,} cells x {atlas.n_genes:,} genes, "
        f"{answers.size(document['bytes'])}, digest {atlas.digest[:12]}"
    )
    _check(atlas, column)
    with ray_session():  # one for all verbs: each start costs seconds
        batch = min(64, atlas.n_cells // 8)
        recipe = Recipe().with_([f"data.batch_size={batch}", f"train.epochs={epochs}"])
        to.say(f"pretrain   a masked autoencoder for {epochs} epochs, on Ray Train")
        ref = pretrain(recipe, atlas.url, MODEL, progress=to.progress)
        to.say(f"evaluate   {ref.uri} beside PCA and the untrained encoder, predicting {column}")
        report = evaluate(
            ref.uri, atlas.url, label=column, out=work / "report", progress=to.progress
        )
        scores = {
            method: report.metrics[f"{method}/knn/macro_f1"]
            for method in ("model", "pca_all", "untrained")
        }
        passed = scores["model"] > scores["untrained"]
        done = {
            "passed": passed,
            "scores": scores,
            "atlas": atlas.url,
            "model": ref.uri,
            "run_id": ref.run_id,
            "report": report.folder / "report.html" if report.folder else None,
        }
        if passed:
            to.say(f"promote    {ref.uri} becomes models:/{MODEL}@champion")
            promote(MODEL, source=str(ref.version))
            out = (work / "embeddings.h5ad").absolute()
            to.say(f"embed      every cell into {out}, as obsm['X_cellray']")
            embed(atlas, f"models:/{MODEL}@champion", out=out, progress=to.progress)
            done |= {"embeddings": out}
    return done | {"seconds": time.monotonic() - began}


def _check(atlas: Atlas, label: str) -> None:
    """Refuse, before the minutes that training takes, what the evaluation would refuse."""
    if atlas.n_cells < MIN_CELLS:
        raise CellrayError(
            f"{atlas.n_cells} cells are too few for the demo",
            f"give an --h5ad of at least {MIN_CELLS} cells",
        )
    obs, spec = atlas.obs([label]), Spec(label=label)
    cells, _ = usable_cells(obs, spec)
    make_splits(obs[label].iloc[cells].astype(str).to_numpy(dtype=np.str_), None, spec)


def pbmc_counts() -> anndata.AnnData:
    """Recover the counts of the 700 PBMC that scanpy's wheel carries.

    scanpy keeps ``log1p(10_000 * count / n_counts)`` of 765 genes, rounded to three decimals; a
    count is therefore known to ``0.0005 (count + n_counts / 10_000)``, which is less than half
    for all of them.

    Returns
    -------
    AnnData
        700 cells x 765 genes; whole counts as CSR, float32; obs has ``bulk_labels``.

    Raises
    ------
    ValueError
        Some value is no count within the rounding: this scanpy carries other data.
    """
    stored = scanpy.datasets.pbmc68k_reduced()
    values = csr_matrix(stored.raw.X).astype(np.float64)
    scale = stored.obs["n_counts"].to_numpy(np.float64) / TARGET_SUM
    scale = np.repeat(scale, np.diff(values.indptr))
    counts = np.expm1(values.data) * scale
    whole = np.rint(counts)
    rounding = 0.5 * 10**-DECIMALS * (counts + scale) * 1.01
    if rounding.max() >= 0.5 or np.any(np.abs(counts - whole) > rounding):
        msg = "scanpy.datasets.pbmc68k_reduced() does not hold normalised whole counts"
        raise ValueError(msg)
    values.data = whole.astype(np.float32)
    values.eliminate_zeros()
    return anndata.AnnData(
        X=values,
        obs=pd.DataFrame({LABEL: stored.obs[LABEL]}),
        var=pd.DataFrame(index=stored.raw.var_names),
    )
