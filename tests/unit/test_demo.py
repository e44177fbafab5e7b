"""The demo's counts, and what it says; the whole of it is run by ``make demo``."""

import numpy as np
import pytest
import scanpy

from cellray.answers import demo_text
from cellray.demo import LABEL, pbmc_counts


@pytest.fixture(scope="module")
def stored():
    return scanpy.datasets.pbmc68k_reduced()


def test_recovered_counts_give_back_scanpys_values(stored):
    counts = pbmc_counts()
    dense = counts.X.toarray().astype(np.float64)
    assert dense.shape == (700, 765)
    np.testing.assert_array_equal(dense, np.rint(dense))
    assert dense.min() == 0
    totals = stored.obs["n_counts"].to_numpy(np.float64)
    again = np.log1p(dense / totals[:, None] * 10_000)
    np.testing.assert_allclose(again, stored.raw.X.toarray(), atol=0.00051)
    assert (dense.sum(axis=1) <= totals).all()


def test_recovered_counts_keep_names_and_types(stored):
    counts = pbmc_counts()
    assert counts.var_names.tolist() == stored.raw.var_names.tolist()
    assert counts.obs_names.tolist() == stored.obs_names.tolist()
    assert counts.obs[LABEL].tolist() == stored.obs[LABEL].tolist()
    assert counts.obs[LABEL].nunique() == 10


def test_values_that_are_no_counts_are_refused(stored, monkeypatch):
    changed = stored.copy()
    raw = changed.raw.to_adata()
    raw.X.data[7] += 0.05
    changed.raw = raw
    monkeypatch.setattr(scanpy.datasets, "pbmc68k_reduced", lambda: changed)
    with pytest.raises(ValueError, match="whole counts"):
        pbmc_counts()


def test_a_demo_that_fails_says_so():
    done = {
        "passed": False,
        "scores": {"model": 0.2, "pca_all": 0.6, "untrained": 0.3},
        "report": "report.html",
        "seconds": 60.0,
    }
    text = demo_text(done)
    assert text.startswith("failed")
    assert "masked model 0.200" in text
    assert "untrained encoder 0.300" in text
