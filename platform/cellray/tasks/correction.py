"""Embeddings from which batches were removed: Harmony, scVI, and the model trained further.

Shape suffixes: N cells, B cells of a batch, D embedding.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from cellray.core.errors import CellrayError
from cellray.learn.learner import Learner
from cellray.tasks.steps import Counts, Layers, Schedule, portions, steps_of
from cellray.tasks.task import Embeddings

ADAPTED = Schedule(steps=500, batch=256, weight_decay=0.01)
SCVI_EPOCHS = 400
SCVI_BATCH = 128
SCVI_STEPS = 4_000
"""scVI's own number of epochs, or as many as these steps take where that is less."""

Values = NDArray[np.float32]


def harmonised(z_ND: Values, batch_N: NDArray[np.str_], *, seed: int) -> Values:
    """Correct an embedding by Harmony (Korsunsky et al. 2019), with its default settings.

    Parameters
    ----------
    z_ND
        A PCA, shape (N, D).
    batch_N
        The batch of each cell, shape (N,).
    seed
        Of its clustering.

    Returns
    -------
    ndarray
        Shape (N, D), float32.
    """
    with _left_alone(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's, of its clustering
        from harmony import harmonize

        corrected = harmonize(
            z_ND,
            pd.DataFrame({"batch": batch_N}),
            "batch",
            # Its defaults, but for few cells: of 12 it would make 0 clusters in blocks of 0.
            n_clusters=max(2, min(100, len(z_ND) // 30)),
            block_proportion=max(0.05, min(1.0, 2 / len(z_ND))),
            random_state=seed,
            n_jobs=1,
            verbose=False,
        )
    return np.asarray(corrected, np.float32)


def has_scvi() -> bool:
    """Say whether scvi-tools is installed, which is an extra."""
    return find_spec("scvi") is not None


def scvi_embedding(counts: csr_matrix[Any], batch_N: NDArray[np.str_], *, seed: int) -> Values:
    """Embed counts by scVI (Lopez et al. 2018), with its default network, on the CPU.

    Parameters
    ----------
    counts
        Shape (N, genes); genes that no cell has are left out.
    batch_N
        The batch of each cell, shape (N,).
    seed
        Of its weights and batches.

    Returns
    -------
    ndarray
        The mean of the latent variables, shape (N, 10), float32.
    """
    expressed = np.asarray(counts.sum(axis=0)).ravel() > 0
    epochs = max(1, min(SCVI_EPOCHS, SCVI_STEPS * SCVI_BATCH // counts.shape[0]))
    quiet = logging.getLogger("lightning.pytorch")
    level = quiet.level
    try:
        with (
            _left_alone(),
            warnings.catch_warnings(),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")  # of its own and of Lightning's deprecations
            quiet.setLevel(logging.ERROR)
            import anndata
            import scvi

            scvi.settings.verbosity = logging.ERROR
            scvi.settings.seed = seed
            cells = anndata.AnnData(
                counts[:, expressed].astype(np.float32), obs=pd.DataFrame({"batch": batch_N})
            )
            cells.obs_names = cells.obs_names.astype(str)
            scvi.model.SCVI.setup_anndata(cells, batch_key="batch")
            model = scvi.model.SCVI(cells)
            model.train(
                max_epochs=epochs,
                accelerator="cpu",
                batch_size=SCVI_BATCH,
                enable_progress_bar=False,
                enable_model_summary=False,
                logger=False,
                enable_checkpointing=False,
            )
            return np.asarray(model.get_latent_representation(), np.float32)
    finally:
        quiet.setLevel(level)


@contextlib.contextmanager
def _left_alone() -> Iterator[None]:
    """Put back the random numbers and the threads that libraries set for the whole process."""
    state = np.random.get_state()  # noqa: NPY002
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002
            torch.set_num_threads(threads)


def adapted(
    data: Embeddings, batch_N: NDArray[np.str_], column: str, *, layers: Layers, seed: int
) -> Values:
    """Train the model further on these cells by its own objective, with the batch as covariate.

    Parameters
    ----------
    data
        The cells, with the model among their learners.
    batch_N, column
        The batch of each cell, shape (N,), and the obs column that holds it.
    layers
        ``all``, or the ``last`` block of the encoder ("shallow"); the objective's heads always.
    seed
        Of the batches.

    Returns
    -------
    ndarray
        Embeddings of the cells, shape (N, D), float32.

    Raises
    ------
    CellrayError
        A loss that is no number, or an encoder or objective that takes no batches.
    """
    model = data.learners["model"]
    names, codes_N = np.unique(batch_N, return_inverse=True)
    data_section = model.recipe.data.model_copy(update={"batch_key": column})
    recipe = model.recipe.model_copy(update={"data": data_section})
    learner = Learner.of(recipe, model.genes, batches=names.tolist(), sets=model.gene_sets)
    learner.start_from(model)
    counts = Counts(learner, data.counts, data.genes)
    batches = torch.from_numpy(codes_N)

    def error(of: NDArray[np.int64]) -> torch.Tensor:
        cells = torch.from_numpy(of)
        counts_BG, totals_B = counts[of]
        # Views are drawn anew at every step: its number takes the place of the epoch's.
        found: dict[str, torch.Tensor] = learner(counts_BG, totals_B, cells, done, batches[cells])
        return found["loss"]

    done = 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for done in steps_of(
            learner, learner.encoder, error, len(batch_N), seed, ADAPTED.of(layers)
        ):
            learner.objective.after_step(learner.encoder, done / ADAPTED.steps)
    learner.eval()
    with torch.inference_mode():
        parts = [
            learner.embed(*counts[of], batches[torch.from_numpy(of)]).numpy()
            for of in portions(np.arange(len(batch_N), dtype=np.int64), 1024)
        ]
    z_ND: Values = np.concatenate(parts)
    if not np.isfinite(z_ND).all():
        raise CellrayError(
            "the model's embeddings are NaN or infinite after it was trained further",
            "leave --fine-tune out, or train the model with a lower optim.lr",
        )
    return z_ND
