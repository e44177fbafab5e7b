"""Embedding a matrix: genes by name, any chunking, counts only."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe
from cellray.learn.embed import embed_matrix, gene_columns, matched_share
from cellray.learn.learner import Learner

GENES = [f"g{i}" for i in range(30)]


@pytest.fixture(scope="module")
def learner():
    recipe = Recipe.of({"encoder": {"name": "mlp", "widths": [16], "dim": 8}})
    return Learner.of(recipe, GENES)


@pytest.fixture(scope="module")
def counts():
    return csr_matrix(np.random.default_rng(0).poisson(0.5, (50, 30)).astype(np.int32))


def test_it_is_the_encoder_on_normalised_counts(learner, counts):
    dense = torch.from_numpy(counts.toarray()).float()
    expected = learner.embed(dense, dense.sum(1)).detach().numpy()
    found = embed_matrix(learner, counts, GENES)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 7, 50, 1000])
def test_chunking_does_not_change_embeddings(learner, counts, batch):
    whole = embed_matrix(learner, counts, GENES)
    np.testing.assert_allclose(embed_matrix(learner, counts, GENES, batch=batch), whole, atol=1e-5)


def test_genes_are_matched_by_name(learner, counts):
    order = np.random.default_rng(1).permutation(30)
    shuffled = embed_matrix(learner, counts[:, order], [GENES[i] for i in order])
    np.testing.assert_allclose(shuffled, embed_matrix(learner, counts, GENES), atol=1e-6)


def test_missing_genes_are_zero_and_foreign_ones_count_for_the_library(learner, counts):
    names = [*GENES[:20], *(f"other{i}" for i in range(10))]
    dense = torch.from_numpy(counts.toarray()).float()
    totals = dense.sum(1)
    dense[:, 20:] = 0
    expected = learner.embed(dense, totals).detach().numpy()
    np.testing.assert_allclose(embed_matrix(learner, counts, names), expected, atol=1e-6)


def test_counts_stored_in_two_parts_are_one_count(learner, counts):
    split = csr_matrix(
        (
            np.repeat(counts.data, 2),
            np.repeat(counts.indices, 2),
            counts.indptr * 2,
        ),
        shape=counts.shape,
    )
    found = embed_matrix(learner, split, GENES)
    np.testing.assert_allclose(found, embed_matrix(learner, counts * 2, GENES), atol=1e-6)
    assert split.nnz == 2 * counts.nnz  # the caller's matrix stays as it was


def test_no_cells_give_no_embeddings(learner, counts):
    assert embed_matrix(learner, counts[:0], GENES).shape == (0, 8)


@pytest.mark.parametrize("value", [-1.0, 0.5, np.nan, np.inf])
def test_values_that_are_no_counts_are_refused(learner, counts, value):
    wrong = counts.astype(np.float32)
    wrong.data[3] = value
    with pytest.raises(CellrayError, match="raw counts"):
        embed_matrix(learner, wrong, GENES)


def test_gene_columns_and_their_share():
    columns = gene_columns(["a", "b", "c", "d"], np.array(["c", "x", "a"]))
    assert columns.tolist() == [2, -1, 0]
    assert columns.dtype == np.int64
    assert matched_share(columns, 4) == 0.5


def test_other_names_are_refused_with_both_kinds():
    with pytest.raises(CellrayError, match=r"'ENSG01', 'ENSG02'.*'CD3E', 'CD4'"):
        gene_columns(["CD3E", "CD4", "CD8A"], ["ENSG01", "ENSG02", "ENSG03"])


def test_a_gene_that_comes_twice_is_refused():
    with pytest.raises(CellrayError, match="gene 'b' comes more than once"):
        gene_columns(["a", "b"], ["b", "a", "b"])
