"""Cells whose types can be read off one embedding and not off another."""

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from cellray.evaluation.task import Embeddings


def make_cells(n_cells=420, n_types=4, *, seed=0):
    """Counts and a good embedding that know the type, a bad embedding that does not."""
    rng = np.random.default_rng(seed)
    types = np.sort(rng.choice(n_types, n_cells, p=np.arange(n_types, 0, -1) / 10))
    rates = rng.gamma(0.5, 2, (n_types, 60))
    centres = 4 * rng.normal(size=(n_types, 8))
    order = rng.permutation(n_cells)
    types = types[order]
    return Embeddings(
        frozen={
            "model": (centres[types] + rng.normal(size=(n_cells, 8))).astype(np.float32),
            "untrained": rng.normal(size=(n_cells, 8)).astype(np.float32),
        },
        counts=csr_matrix(rng.poisson(rates[types])),
        obs=pd.DataFrame(
            {
                "cell_type": pd.Categorical([f"type {number}" for number in types]),
                "donor": pd.Categorical(rng.choice(["anna", "ben", "cleo", "dan"], n_cells)),
            }
        ),
    )


@pytest.fixture(scope="session")
def cells():
    return make_cells()
