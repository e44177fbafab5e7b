"""Atlases whose genes are not the model's: named by orthologs, or refused."""

from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from cellray.atlas.write import ingest
from cellray.core.errors import CellrayError
from cellray.evaluation.gather import choose_cells, content_of, name_genes

GENES = [f"GENE{number}" for number in range(40)]


def atlas_of(folder, genes, n_cells=30):
    counts = np.random.default_rng(0).poisson(1.0, (n_cells, len(genes)))
    obs = pd.DataFrame(index=[f"c{number}" for number in range(n_cells)])
    path = folder / "cells.h5ad"
    data = anndata.AnnData(
        csr_matrix(counts.astype(np.float32)), obs=obs, var=pd.DataFrame(index=genes)
    )
    data.write_h5ad(path)
    return ingest([path], folder / "atlas")


def model(genes):
    return SimpleNamespace(genes=tuple(genes))


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    return atlas_of(tmp_path_factory.mktemp("human"), GENES)


@pytest.fixture(scope="module")
def mouse(tmp_path_factory):
    return atlas_of(tmp_path_factory.mktemp("mouse"), [name.capitalize() for name in GENES])


def test_genes_keep_their_names_where_none_are_given(atlas):
    named = name_genes(atlas, model([*GENES[:20], *(f"NEW{n}" for n in range(5))]), None)
    np.testing.assert_array_equal(named.genes, atlas.genes)
    assert named.share == pytest.approx(20 / 25)
    assert named.key == atlas.digest
    assert named.notes == ()


def test_too_few_of_the_models_genes_are_refused_with_their_share(atlas):
    known = [*GENES[:3], *(f"NEW{n}" for n in range(97))]
    with pytest.raises(CellrayError, match=r"has 3.0% of the model's 100 genes") as caught:
        name_genes(atlas, model(known), None)
    assert "an atlas of the same species" in caught.value.mend


def test_another_species_is_told_by_its_names(mouse):
    with pytest.raises(CellrayError, match="no gene in common") as caught:
        name_genes(mouse, model(GENES), None)
    assert "upper and lower case" in caught.value.mend
    assert "--orthologs TABLE" in caught.value.mend


def test_orthologs_give_the_genes_the_models_names(mouse, tmp_path):
    table = tmp_path / "orthologs.tsv"
    lines = [f"{name.capitalize()}\t{name}" for name in GENES[:30]]
    table.write_text("\n".join(["mouse\thuman", *lines]))
    named = name_genes(mouse, model(GENES), str(table))
    for own, given in zip(mouse.genes.tolist(), named.genes.tolist(), strict=True):
        known = own.upper() in GENES[:30]
        assert given == (own.upper() if known else f"{own} (no one-to-one ortholog)")
    assert named.share == pytest.approx(30 / 40)
    assert named.key != mouse.digest
    (note,) = named.notes
    assert "30" in note


def test_all_cells_are_chosen_in_the_order_of_their_source_or_a_sample(atlas):
    every = choose_cells(atlas, 100, 0)
    rows = atlas.obs(["cellray_row"])["cellray_row"].to_numpy()
    np.testing.assert_array_equal(rows[every], np.arange(30))
    some = choose_cells(atlas, 10, 0)
    assert len(some) == 10
    assert (np.diff(rows[some]) > 0).all()
    np.testing.assert_array_equal(some, choose_cells(atlas, 10, 0))


@pytest.mark.parametrize(
    ("files", "batches"),
    [({"recipe.yaml": "22"}, ()), ({"genes.txt": "22"}, ()), ({}, ("a", "b"))],
    ids=["recipe", "genes", "batches"],
)
def test_embeddings_are_kept_by_all_that_they_depend_on(files, batches):
    sealed = {"weights.safetensors": "00", "recipe.yaml": "11", "genes.txt": "11"}

    def resolved(files, batches):
        return SimpleNamespace(facts={"sha256": files}, learner=SimpleNamespace(batches=batches))

    digest = content_of(resolved(sealed, ()))
    assert content_of(resolved({**sealed}, ())) == digest
    assert content_of(resolved(sealed | files, batches)) != digest
