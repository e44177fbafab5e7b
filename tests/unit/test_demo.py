"""The demo's counts, and what it says; the whole of it is run by ``make demo``."""

import numpy as np
import pytest
import scanpy

from cellray.answers import demo_text
from cellray.console import console
from cellray.core.errors import CellrayError
from cellray.demo import LABEL, MIN_CELLS, pbmc_counts, run


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


@pytest.mark.parametrize(
    ("cells", "label", "words"),
    [
        (100, "bulk_label", "no obs column 'bulk_label'; did you mean 'bulk_labels'"),
        (100, "one", "one value only"),
        (100, "each", "no value that two cells share"),
        (100, "pairs", "too few for a stratified split"),
        (MIN_CELLS - 1, LABEL, f"31 cells are too few for the demo; .* at least {MIN_CELLS}"),
        (10, LABEL, "10 cells are too few for the demo"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_training(
    cells, label, words, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    counts = pbmc_counts()[:cells].copy()
    numbers = np.arange(cells)
    counts.obs["one"] = "B"
    counts.obs["each"] = [f"c{i}" for i in numbers]
    counts.obs["pairs"] = [f"c{i}" for i in numbers // 2]
    counts.write_h5ad("own.h5ad")
    with pytest.raises(CellrayError, match=words), console(as_json=False) as to:
        run(to, h5ad="own.h5ad", label=label, epochs=1, work=tmp_path / "work")
    said = "".join(capfd.readouterr())
    assert "inspect " in said
    assert "pretrain " not in said


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


def test_a_demo_that_passed_names_a_command_that_its_reader_can_type(tmp_path, monkeypatch):
    ours, others = (tmp_path / name / "cellray" for name in ("ours", "others"))
    for script in (ours, others):
        script.parent.mkdir()
        script.write_text("#!/bin/sh\n")
        script.chmod(0o755)
    done = {
        "passed": True,
        "scores": {"model": 0.6, "pca_all": 0.6, "untrained": 0.3},
        "report": "report.html",
        "embeddings": "embeddings.h5ad",
        "seconds": 60.0,
    }

    def named(called, path):
        monkeypatch.setattr("sys.argv", [called, "demo"])
        monkeypatch.setenv("PATH", str(path))
        return demo_text(done).splitlines()[-1].split(maxsplit=1)

    monkeypatch.chdir(tmp_path)
    assert named("ours/cellray", tmp_path) == ["browse", "ours/cellray ui"]
    assert named("ours/cellray", others.parent) == ["browse", "ours/cellray ui"]
    assert named("ours/cellray", ours.parent) == ["browse", "cellray ui"]
    assert named(str(ours), ours.parent) == ["browse", "cellray ui"]
    assert named("-m", others.parent) == ["browse", "cellray ui"]
