import anndata
import h5py
import numpy as np
import pandas as pd
import pytest

from cellray.atlas.sources import open_source
from cellray.core.errors import CellrayError


@pytest.fixture
def h5mu(tmp_path):
    """Write modalities as MuData stores them, and give the path."""

    def write(modalities, obs=None, name="a.h5mu"):
        path = tmp_path / name
        with h5py.File(path, "w") as file:
            file.attrs.update({"encoding-type": "MuData", "encoding-version": "0.1.0"})
            for key, data in modalities.items():
                anndata.io.write_elem(file, f"mod/{key}", data)
            if obs is not None:
                anndata.io.write_elem(file, "obs", obs)
        return path

    return write


def protein(cells, *, seed=3, n_features=5):
    counts = np.random.default_rng(seed).integers(0, 9, (len(cells), n_features))
    var = pd.DataFrame(index=[f"CD{i}" for i in range(n_features)])
    return anndata.AnnData(counts.astype(np.float32), pd.DataFrame(index=cells), var)


def together(stored, n_cells, elements=30):
    total = np.full((n_cells, stored.n_columns), -1)
    for chunk in stored.chunks(elements):
        assert (np.diff(chunk.rows) > 0).all()
        total[chunk.rows] = chunk.counts
    return total


def test_the_counts_are_those_of_rna_and_the_rest_rides_along(counted, h5mu):
    rna = counted()
    rna.layers["spliced"] = rna.X * 2
    prot = protein(rna.obs_names)
    source = open_source(h5mu({"prot": prot, "rna": rna}))
    assert (source.n_cells, list(source.genes.index)) == (40, list(rna.var_names))
    (chunk,) = source.chunks(10**6)
    np.testing.assert_array_equal(chunk.counts.toarray(), rna.X.toarray())
    assert set(source.matrices) == {"layers/spliced", "obsm/prot"}
    stored = source.matrices["obsm/prot"]
    assert (stored.sparse, stored.counts, list(stored.names)) == (False, True, list(prot.var_names))
    np.testing.assert_array_equal(together(stored, 40), prot.X)


def test_modalities_are_brought_to_the_same_cells(counted, h5mu):
    rna = counted()
    order = np.random.default_rng(0).permutation(50)
    prot = protein([f"cell{i}" for i in order])
    source = open_source(h5mu({"rna": rna, "prot": prot}))
    stored = source.matrices["obsm/prot"]
    expected = prot[list(rna.obs_names)].X
    np.testing.assert_array_equal(together(stored, 40), expected)
    chunks = list(stored.chunks(30))
    for skip in range(len(chunks) + 1):
        rest = list(stored.chunks(30, skip))
        assert [list(c.rows) for c in rest] == [list(c.rows) for c in chunks[skip:]]


def test_another_modality_can_hold_the_counts(counted, h5mu):
    path = h5mu({"gex": counted(), "prot": protein([f"cell{i}" for i in range(40)])})
    assert list(open_source(path, rna="gex").matrices) == ["obsm/prot"]
    with pytest.raises(CellrayError, match=r"no modality 'rna'; name the .*: .*gex, prot"):
        open_source(path)


def test_columns_of_the_whole_come_with_those_of_the_modality(counted, h5mu):
    rna = counted()
    cells = list(rna.obs_names)
    obs = pd.DataFrame(
        {"donor": [f"d{i % 3}" for i in range(40)], "rna:score": 1.0, "kind": "other"},
        index=cells[::-1],
    )
    source = open_source(h5mu({"rna": rna}, obs))
    assert source.columns == ("kind", "score", "passed", "donor")
    assert list(source.column("kind")) == list(rna.obs["kind"])
    assert list(source.column("donor")) == list(obs["donor"][cells])
    assert list(source.names()) == cells


def test_a_cell_that_a_modality_lacks_is_named(counted, h5mu):
    rna = counted()
    path = h5mu({"rna": rna, "prot": protein(rna.obs_names[:39])})
    with pytest.raises(CellrayError, match="'prot' lacks 1 cells of 'rna', 'cell39' among them"):
        open_source(path)


def test_names_of_cells_that_repeat_are_refused_where_they_are_needed(counted, h5mu):
    rna = counted()
    twice = [*rna.obs_names, "cell3"]
    with pytest.warns(UserWarning, match="not unique"):
        path = h5mu({"rna": rna, "prot": protein(twice)})
    with pytest.raises(CellrayError, match="'prot' names cell 'cell3' twice"):
        open_source(path)
