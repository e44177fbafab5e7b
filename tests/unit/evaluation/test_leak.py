"""Cells that a model has seen are found by their counts, whatever the order of genes and cells."""

from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from cellray.atlas.choose import choose
from cellray.atlas.splits import TRAIN, SplitSpec, store_split
from cellray.atlas.store import Atlas
from cellray.atlas.write import ingest
from cellray.core.recipe import Recipe
from cellray.evaluation.leak import cell_hashes, gene_words, seen_cells

GENES = np.array([f"GENE{number}" for number in range(40)])
RECIPE = Recipe.of({"data": {"batch_size": 8, "slab_batches": 1, "mix": 2, "validation": 0.2}})


def write(path, counts, genes, donors):
    plates = np.where(np.arange(len(counts)) % 2 == 0, "one", "two")
    obs = pd.DataFrame(
        {"donor": donors, "plate": plates}, index=[f"c{n}" for n in range(len(counts))]
    )
    var = pd.DataFrame(index=genes)
    anndata.AnnData(csr_matrix(counts.astype(np.float32)), obs=obs, var=var).write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def counts():
    return np.random.default_rng(0).poisson(1.0, (120, 40))


@pytest.fixture(scope="module")
def before(counts, tmp_path_factory):
    """The atlas of pre-training: 80 cells of two donors."""
    folder = tmp_path_factory.mktemp("before")
    donors = np.repeat(["anna", "ben"], 40)
    return ingest([write(folder / "a.h5ad", counts[:80], GENES, donors)], folder / "a")


@pytest.fixture(scope="module")
def after(counts, tmp_path_factory):
    """Another atlas: 30 of those cells and 40 new ones, genes in another order, one gene more."""
    folder = tmp_path_factory.mktemp("after")
    order = np.random.default_rng(1).permutation(40)
    there = np.concatenate([counts[50:80], counts[80:]])[:, order]
    there = np.concatenate([there, np.ones((70, 1), int)], axis=1)
    donors = np.array(["ben"] * 30 + ["cleo"] * 40)
    path = write(folder / "b.h5ad", there, [*GENES[order], "OTHER"], donors)
    return ingest([path], folder / "b")


def model(atlas, /, **facts):
    known = {"atlas": atlas.url, "atlas_digest": atlas.digest} | facts
    return SimpleNamespace(facts=known, learner=SimpleNamespace(recipe=RECIPE))


def seen(resolved, atlas, **words):
    cells = np.arange(atlas.n_cells)
    return seen_cells(resolved, atlas, cells, atlas.read_cells(cells).to_scipy(), **words)


def test_a_hash_is_that_of_the_formula(counts):
    rows = csr_matrix(counts[:5])
    words = gene_words(GENES, GENES)
    mask = 2**64 - 1
    for row, found in zip(counts[:5], cell_hashes(rows, words), strict=True):
        total = 0
        for word, count in zip(words.tolist(), row.tolist(), strict=True):
            if count:
                x = word * (2 * count + 1) & mask
                x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
                x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
                total = total + (x ^ x >> 31) & mask
        assert total == int(found)


def test_hashes_follow_counts_and_not_order_or_form(counts):
    words = gene_words(GENES, GENES)
    plain = cell_hashes(csr_matrix(counts), words)
    assert len({*plain.tolist()}) == len(counts)
    order = np.random.default_rng(2).permutation(40)
    np.testing.assert_array_equal(cell_hashes(csr_matrix(counts[:, order]), words[order]), plain)
    explicit = csr_matrix(counts + 1)
    explicit.data -= 1  # zeros that are stored
    np.testing.assert_array_equal(cell_hashes(explicit, words), plain)
    fewer = gene_words(GENES, GENES[:20])
    without = counts.copy()
    without[:, 20:] = 0
    np.testing.assert_array_equal(
        cell_hashes(csr_matrix(counts), fewer), cell_hashes(csr_matrix(without), words)
    )


def test_a_planted_leak_is_found_to_the_cell(before, after, counts):
    found = seen(model(before), after, split_by=["donor"])
    sides = choose(RECIPE, before).sides
    trained = {
        row.tobytes()
        for row in before.read_cells(np.flatnonzero(sides == TRAIN))
        .to_scipy()
        .toarray()
        .astype(int)
    }
    at = pd.Index(after.genes).get_indexer(before.genes)
    rows = after.read_cells(np.arange(70)).to_scipy().toarray().astype(int)[:, at]
    expected = [row.tobytes() in trained for row in rows]
    assert 10 < sum(expected) < 31
    assert found.cells.tolist() == expected
    assert found.share == np.mean(expected)
    assert found.groups == {"donor": ("ben",)}
    assert f"trained on {np.mean(expected):.1%} of the scored cells" in found.note
    assert found.note.endswith("values of donor that it was pre-trained on: 'ben'.")


def test_every_column_that_cells_are_split_by_is_compared(before, after):
    found = seen(model(before), after, split_by=["plate", "donor"])
    assert found.groups == {"plate": ("one", "two"), "donor": ("ben",)}
    assert found.note.endswith(
        "; values of plate that it was pre-trained on: 'one', 'two'; values of donor that it was "
        "pre-trained on: 'ben'."
    )


def test_donors_that_were_held_out_of_the_training_are_no_leak(counts, tmp_path):
    donors = np.repeat(["anna", "ben"], 40)
    atlas = ingest([write(tmp_path / "a.h5ad", counts[:80], GENES, donors)], tmp_path / "a")
    store_split(atlas, "donors", SplitSpec(by="donor", values=("ben",)))
    atlas = Atlas.open(atlas.url)
    known = model(atlas)
    known.learner.recipe = RECIPE.with_(["data.split=donors"])
    found = seen(known, atlas, split_by=["donor"])
    assert found.share == 0.5
    assert found.groups == {"donor": ("anna",)}


def test_another_model_is_called_by_its_name(before, after):
    found = seen(model(before), after, who="the champion (models:/cells/1)")
    assert found.note.startswith("The champion (models:/cells/1) was pre-trained on another atlas")
    gone = seen(model(before, atlas="/nowhere"), after, who="the champion")
    assert gone.note.startswith("Whether the champion was pre-trained on these cells is not known")


def test_in_the_same_atlas_the_held_out_cells_are_unseen(before):
    found = seen(model(before), before)
    np.testing.assert_array_equal(found.cells, choose(RECIPE, before).sides == TRAIN)
    assert found.share == pytest.approx(0.8, abs=0.05)
    assert "this very atlas" in found.note


def test_new_cells_are_unseen(before, after):
    cells = np.flatnonzero(after.obs(["donor"])["donor"].astype(str) == "cleo")
    rows = after.read_cells(cells).to_scipy()
    found = seen_cells(model(before), after, cells, rows, ["donor"])
    assert found.share == 0
    assert found.groups == {}
    assert "none of the scored cells was among the cells it was trained on." in found.note


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"atlas": "/nowhere/atlas"}, "is not known: no atlas at /nowhere/atlas"),
        ({"atlas_digest": "00"}, "is not as it was then"),
        ({"atlas": None}, "What the model was pre-trained on is not known"),
    ],
    ids=["gone", "changed", "unknown"],
)
def test_what_cannot_be_known_is_said(before, after, facts, said):
    found = seen(model(before, **facts), after)
    assert (found.cells, found.share, found.groups) == (None, None, {})
    assert said in found.note


def test_a_large_atlas_is_not_read(before, after, monkeypatch):
    monkeypatch.setattr("cellray.evaluation.leak.MOST_CELLS", 79)
    found = seen(model(before), after)
    assert found.share is None
    assert "has 80 cells, more than the 79 that are compared" in found.note
    assert Atlas.open(before.url).n_cells == 80
