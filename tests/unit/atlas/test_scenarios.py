"""Simulated pairs of data sets: their moments are those of the laws that they are drawn from."""

from dataclasses import replace

import anndata
import numpy as np
import pytest

from cellray.atlas.scenarios import MISSING, RESPONSES, bulk_and_cells, rna_and_atac, two_species
from cellray.atlas.simulate import Simulation, truth_of
from cellray.core.errors import CellrayError

SMALL = Simulation(
    n_cells=3_000, n_genes=60, n_types=3, n_programmes=4, library=600, library_spread=0, seed=2
)


def profiles(log):
    p = np.exp(log - log.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def active(truth):
    return np.pad(truth.activity, ((0, 0), (0, 1)))[:, truth.programme]


def assert_means(counts, mean, dispersion):
    """Compare gene means with their law, within 5 standard errors."""
    error = np.sqrt((mean + dispersion * mean**2) / len(counts))
    np.testing.assert_array_less(np.abs(counts.mean(axis=0) - mean), 5 * error + 1e-12)


def same(left, right):
    if left.shape != right.shape or (left.X != right.X).nnz:
        return False
    return left.obs.equals(right.obs) and left.var.equals(right.var)


def test_species_share_types_but_not_the_scale_of_genes():
    truth = truth_of(SMALL)
    reference, query, table = two_species(SMALL, orthologs=1, spread=0.5)
    place = query.var_names.get_indexer(table["query"])  # of the reference's genes, in order
    assert table["reference"].tolist() == reference.var_names.tolist()
    for data, order in ((reference, np.arange(60)), (query, place)):
        scale = data.var["log_scale"].to_numpy()[order]
        assert scale.std() == pytest.approx(0.5, abs=0.15)
        p = profiles(truth.base + active(truth) + scale)
        counts = data.X.toarray()[:, order]
        for code in range(3):
            chosen = (data.obs["cell_type"] == f"type_{code}").to_numpy()
            if chosen.any():
                assert_means(counts[chosen], 600 * p[code], SMALL.dispersion)


def test_one_type_is_missing_in_the_reference_alone():
    reference, query, _ = two_species(SMALL)
    assert set(reference.obs["cell_type"]) == {"type_1", "type_2"}
    assert set(query.obs["cell_type"]) == {MISSING, "type_1", "type_2"}
    shares = query.obs["cell_type"].value_counts(normalize=True)
    expected = truth_of(SMALL).type_share
    np.testing.assert_allclose(
        [shares[f"type_{n}"] for n in range(3)], expected, atol=5 * np.sqrt(0.25 / 3_000)
    )


def test_orthologs_are_the_share_that_was_asked_for_and_their_order_is_lost():
    _, query, table = two_species(SMALL, orthologs=0.7)
    assert len(table) == 42
    assert (np.diff(query.var_names.get_indexer(table["query"])) < 0).any()


def test_bulk_is_the_sum_of_cells():
    s = replace(SMALL, n_types=1, dispersion=0.0)
    bulk, cells = bulk_and_cells(s, n_samples=400, cells_of_sample=5, effect=1.5, spread=0.4)
    truth = truth_of(s)
    response = bulk.var["response"].to_numpy()
    assert response.sum() == 6
    assert bulk.var["assay"].std() == pytest.approx(0.4, abs=0.15)
    for r, name in enumerate(RESPONSES):
        log = truth.base + active(truth)[0] + 1.5 * r * response
        of_bulk = bulk.X.toarray()[(bulk.obs["response"] == name).to_numpy()]
        mean = 5 * 600 * profiles(log + bulk.var["assay"].to_numpy())
        assert_means(of_bulk, mean, 0)
        # A sum of Poisson counts is one.
        large = mean > 5
        np.testing.assert_allclose(of_bulk.var(axis=0)[large] / mean[large], 1, atol=0.5)
        of_cells = cells.X.toarray()[(cells.obs["response"] == name).to_numpy()]
        assert_means(of_cells, 600 * profiles(log), 0)
    assert bulk.obs["response"].value_counts().tolist() == [200, 200]
    assert cells.obs["response"].value_counts().tolist() == [1_500, 1_500]


def test_bulk_samples_differ_in_their_mixtures():
    s = replace(SMALL, dispersion=0.0, separation=2.0)
    bulk, _ = bulk_and_cells(s, n_samples=60, cells_of_sample=40, effect=0, spread=0)
    counts = bulk.X.toarray()
    large = counts.mean(axis=0) > 20
    assert np.median(counts.var(axis=0)[large] / counts.mean(axis=0)[large]) > 3


def test_peaks_are_open_as_their_programme_is_active():
    data = rna_and_atac(SMALL, n_peaks=80, within=0.5, openness=-1.0)
    activity = data.obsm["activity"].astype(np.float64)
    programme, bias = data.uns["peak_programme"], data.uns["peak_bias"]
    assert set(np.bincount(programme)) == {20}
    chance = 1 / (1 + np.exp(1.0 - bias - activity[:, programme]))
    peaks = data.obsm["atac"].toarray()
    assert set(np.unique(peaks)) == {0, 1}
    error = np.sqrt((chance * (1 - chance)).sum(axis=0)) / len(peaks)
    np.testing.assert_array_less(np.abs(peaks.mean(axis=0) - chance.mean(axis=0)), 5 * error)
    # Beyond the mean: open where the chance is high, cell by cell.
    z = ((peaks - chance) * (chance - chance.mean(axis=0))).sum() / np.sqrt(
        (chance * (1 - chance) * (chance - chance.mean(axis=0)) ** 2).sum()
    )
    assert abs(z) < 5


def test_counts_follow_the_same_activities():
    s = replace(SMALL, dispersion=0.0)
    data = rna_and_atac(s, n_peaks=8, within=0.5)
    truth = truth_of(s)
    noise = data.obsm["activity"] - truth.activity[data.obs["cell_type"].str[5:].astype(int)]
    assert noise.std() == pytest.approx(0.5, rel=0.05)
    own = np.pad(data.obsm["activity"].astype(np.float64), ((0, 0), (0, 1)))[:, truth.programme]
    mean = 600 * profiles(truth.base + own)
    counts = data.X.toarray()
    error = np.sqrt(mean.sum(axis=0)) / len(counts)
    np.testing.assert_array_less(np.abs(counts.mean(axis=0) - mean.mean(axis=0)), 5 * error)
    assert ((counts - mean) ** 2).sum() / mean.sum() == pytest.approx(1, abs=0.02)


def test_library_sizes_have_their_spread():
    s = replace(SMALL, library=5_000, library_spread=0.5, dispersion=0.0)
    totals = two_species(s)[1].X.sum(axis=1).A1
    assert totals.mean() == pytest.approx(5_000, rel=0.06)
    assert np.log(totals).std() == pytest.approx(0.5, rel=0.1)


def test_the_seed_decides():
    few = replace(SMALL, n_cells=50)
    for scenario in (two_species, bulk_and_cells):
        one, two = scenario(few)[:2]
        again, other = scenario(few), scenario(replace(few, seed=3))
        assert same(one, again[0])
        assert same(two, again[1])
        assert not same(one, other[0])
        assert not same(two, other[1])
    assert same(rna_and_atac(few), rna_and_atac(few))
    assert not same(rna_and_atac(few), rna_and_atac(replace(few, seed=3)))
    assert two_species(few)[2].equals(two_species(few)[2])


def test_files_hold_what_was_made(tmp_path):
    data = rna_and_atac(replace(SMALL, n_cells=40), n_peaks=30)
    data.write_h5ad(tmp_path / "a.h5ad")
    read = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert same(read, data)
    assert (read.obsm["atac"] != data.obsm["atac"]).nnz == 0


@pytest.mark.parametrize(
    ("scenario", "wrong", "message"),
    [
        (two_species, {"orthologs": 1.5}, "orthologs lies outside"),
        (two_species, {"spread": -1}, "spread is negative"),
        (bulk_and_cells, {"n_samples": 1}, "1 bulk samples of 100 cells"),
        (bulk_and_cells, {"cells_of_sample": 0}, "bulk samples of 0 cells"),
        (bulk_and_cells, {"spread": -1}, "spread is negative"),
        (rna_and_atac, {"n_peaks": 0}, "n_peaks = 0"),
        (rna_and_atac, {"within": -0.1}, "within is negative"),
    ],
)
def test_impossible_settings_are_refused(scenario, wrong, message):
    with pytest.raises(CellrayError, match=message):
        scenario(SMALL, **wrong)


def test_a_reference_that_lacks_the_only_type_is_refused():
    with pytest.raises(CellrayError, match="lacks the only type"):
        two_species(replace(SMALL, n_types=1))
