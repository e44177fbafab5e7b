import dataclasses
import tracemalloc

import anndata
import numpy as np
import pytest

from cellray.atlas.simulate import BLOCK, Simulation, blocks, simulate, simulate_anndata, truth_of
from cellray.core.errors import CellrayError

SMALL = Simulation(n_cells=2 * BLOCK + 7, n_genes=150, n_types=3, n_donors=2, n_batches=3, seed=5)


def same(left, right):
    return (left.X != right.X).nnz == 0 and left.obs.equals(right.obs)


def test_the_file_and_memory_hold_the_same_cells(tmp_path):
    seen = []
    path = simulate(tmp_path / "a.h5ad", SMALL, progress=lambda *step: seen.append(step))
    read, made = anndata.read_h5ad(path), simulate_anndata(SMALL)
    assert same(read, made)
    assert read.X.dtype == np.float32
    assert read.var.equals(made.var)
    assert read.uns["simulation"]["seed"] == 5
    assert seen == [("simulate", n, 519) for n in (256, 512, 519)]
    assert [file.name for file in tmp_path.iterdir()] == ["a.h5ad"]


def test_compressed_files_hold_the_same(tmp_path):
    path = simulate(tmp_path / "a.h5ad", SMALL, compression="gzip")
    assert same(anndata.read_h5ad(path), simulate_anndata(SMALL))


def test_the_seed_decides():
    assert same(simulate_anndata(SMALL), simulate_anndata(SMALL))
    assert not same(simulate_anndata(SMALL), simulate_anndata(dataclasses.replace(SMALL, seed=6)))


def test_more_cells_begin_with_the_same_cells():
    few, many = (
        simulate_anndata(dataclasses.replace(SMALL, n_cells=n)) for n in (BLOCK + 10, 3 * BLOCK)
    )
    assert same(few, many[: BLOCK + 10])


def test_moments_match_the_model():
    s = Simulation(
        n_cells=20 * BLOCK,
        n_genes=40,
        n_types=1,
        n_donors=1,
        n_batches=1,
        library=2_000,
        library_spread=0.0,
        gene_spread=1.0,
        dispersion=0.4,
    )
    drawn = simulate_anndata(s).X.toarray().astype(np.float64)
    one = np.zeros(1, np.int64)
    mean = s.library * truth_of(s).profiles(one, one, one)[0].astype(np.float64)
    sd = np.sqrt(mean + s.dispersion * mean**2)
    assert (np.abs(drawn.mean(axis=0) - mean) < 5 * sd / np.sqrt(s.n_cells)).all()
    np.testing.assert_allclose(drawn.std(axis=0), sd, rtol=0.15)


def test_library_sizes_have_the_mean_and_spread_asked():
    s = Simulation(n_cells=20 * BLOCK, n_genes=500, library=1_000, library_spread=0.5)
    totals = simulate_anndata(s).X.sum(axis=1).A1
    assert totals.mean() == pytest.approx(1_000, rel=0.03)
    assert np.log(totals).std() == pytest.approx(0.5, rel=0.15)


def test_programmes_can_be_recovered():
    s = Simulation(
        n_cells=4 * BLOCK,
        n_genes=120,
        n_types=12,
        n_programmes=4,
        gene_spread=0.5,
        library=20_000,
        n_donors=1,
        n_batches=1,
    )
    data = simulate_anndata(s)
    share = data.X.toarray() / data.X.sum(axis=1)
    log_mean = np.log(
        [
            np.asarray(share)[(data.obs["cell_type"] == t).to_numpy()].mean(axis=0)
            for t in data.obs["cell_type"].cat.categories
        ]
    )
    alike = np.corrcoef(log_mean.T)
    programme = data.var["programme"].cat.codes.to_numpy()
    for gene in np.flatnonzero(programme >= 0):
        others = np.argsort(-alike[gene])[1:6]
        assert (programme[others] == programme[gene]).mean() >= 0.8
    listed = data.uns["programmes"]
    assert {name: list(genes) for name, genes in listed.items()} == {
        name: list(data.var_names[data.var["programme"] == name]) for name in listed
    }


def test_types_donors_and_plates_multiply():
    s = dataclasses.replace(SMALL, donor_spread=0.7, batch_spread=0.5)
    truth = truth_of(s)
    t, d, b = (np.array(codes) for codes in ([0, 1, 0, 1], [0, 0, 1, 1], [2, 2, 2, 2]))
    log = np.log(truth.profiles(t, d, b))
    interaction = log[0] - log[1] - log[2] + log[3]  # what is left is the rows' normalisation
    np.testing.assert_allclose(interaction, interaction[0], atol=1e-4)
    assert np.ptp(log[0] - log[1]) > 0.5
    assert np.ptp(log[0] - log[2]) > 0.5


def test_plates_follow_one_another_when_ordered():
    plates = simulate_anndata(dataclasses.replace(SMALL, ordered=True)).obs["batch"].cat.codes
    assert (np.diff(plates.to_numpy()) >= 0).all()
    assert plates.nunique() == 3
    mixed = simulate_anndata(SMALL).obs["batch"].cat.codes.to_numpy()
    assert (np.diff(mixed) < 0).any()


def test_sparsity_is_that_of_real_data_at_the_documented_settings():
    s = Simulation(n_cells=BLOCK, n_genes=20_000, n_types=12, n_programmes=40, library=6_500)
    counts, _ = next(blocks(s))
    assert 2_000 < counts.nnz / BLOCK < 2_800


def test_memory_does_not_grow_with_cells(tmp_path):
    def peak(n_cells):
        tracemalloc.start()
        simulate(tmp_path / "a.h5ad", dataclasses.replace(SMALL, n_cells=n_cells, n_genes=1_000))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(BLOCK)  # what is loaded once
    assert peak(16 * BLOCK) < peak(4 * BLOCK) + 4_000_000


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_cells": 0},
        {"n_types": -1},
        {"programme_share": 1.5},
        {"library": 0.0},
        {"dispersion": -1.0},
        {"donor_spread": -0.1},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(CellrayError):
        Simulation(**wrong)


def test_nothing_is_left_of_a_file_that_failed(tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path / "a.h5ad", SMALL, progress=stop)
    assert not list(tmp_path.iterdir())
