"""What simulated pairs of data sets hold, whatever their settings."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cellray.atlas.scenarios import MISSING, RESPONSES, bulk_and_cells, rna_and_atac, two_species
from cellray.atlas.simulate import Simulation


@st.composite
def simulations(draw):
    return Simulation(
        n_cells=draw(st.integers(2, 600)),
        n_genes=draw(st.integers(2, 30)),
        n_types=draw(st.integers(2, 5)),
        n_programmes=draw(st.integers(1, 4)),
        library=draw(st.floats(1, 500)),
        dispersion=draw(st.sampled_from([0.0, 0.4])),
        seed=draw(st.integers(0, 2**32)),
    )


def assert_counts(data, n_cells, n_genes):
    assert data.shape == (n_cells, n_genes)
    assert data.X.dtype == np.float32
    assert data.X.has_canonical_format
    assert (data.X.data > 0).all()
    assert (data.X.data == np.round(data.X.data)).all()
    assert data.obs_names.is_unique
    assert data.var_names.is_unique


@settings(max_examples=25)
@given(simulations(), st.floats(0, 1), st.floats(0, 2))
def test_orthologs_are_pairs_of_different_genes(s, orthologs, spread):
    reference, query, table = two_species(s, orthologs=orthologs, spread=spread)
    n_known = int((reference.obs["cell_type"] != MISSING).sum())
    assert_counts(reference, n_known, s.n_genes)
    assert_counts(query, s.n_cells, s.n_genes)
    assert len(table) == round(orthologs * s.n_genes)
    for name, data in (("reference", reference), ("query", query)):
        assert table[name].is_unique
        assert table[name].isin(data.var_names).all()
    assert not set(reference.var_names) & set(query.var_names)


@settings(max_examples=25)
@given(simulations(), st.integers(2, 9), st.integers(1, 7))
def test_responses_are_as_frequent_as_they_can_be(s, n_samples, cells_of_sample):
    bulk, cells = bulk_and_cells(s, n_samples=n_samples, cells_of_sample=cells_of_sample)
    assert_counts(bulk, n_samples, s.n_genes)
    assert_counts(cells, s.n_cells, s.n_genes)
    for data in (bulk, cells):
        sizes = [int((data.obs["response"] == name).sum()) for name in RESPONSES]
        assert sizes == [(len(data) + 1) // 2, len(data) // 2]
    assert bulk.var_names.equals(cells.var_names)


@settings(max_examples=25)
@given(simulations(), st.integers(1, 40))
def test_peaks_are_open_or_not_and_cells_of_both_kinds_are_the_same(s, n_peaks):
    data = rna_and_atac(s, n_peaks=n_peaks)
    assert_counts(data, s.n_cells, s.n_genes)
    assert data.obsm["atac"].shape == (s.n_cells, n_peaks)
    assert (data.obsm["atac"].data == 1).all()
    assert data.obsm["activity"].shape == (s.n_cells, s.n_programmes)
