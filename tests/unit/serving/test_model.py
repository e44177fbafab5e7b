"""What a replica does with the cells of a request, without Serve."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from cellray.atlas.simulate import Simulation, simulate_anndata
from cellray.atlas.store import Atlas
from cellray.atlas.write import ingest
from cellray.core.recipe import Recipe
from cellray.learn.embed import embed_matrix
from cellray.learn.learner import Learner
from cellray.serving import model as serving
from cellray.serving.bodies import Cells, RequestError
from cellray.serving.model import Served
from cellray.track import models, runs


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    cells = simulate_anndata(Simulation(n_cells=900, n_genes=60, seed=1))
    cells.write_h5ad(folder / "cells.h5ad")
    return ingest([folder / "cells.h5ad"], folder / "atlas")


def register(trained_on, **facts):
    learner = Learner.of(Recipe(), trained_on.genes)
    run = runs.start_run(experiment="cellray", run_name="training", params={}, tags={})
    facts = {"atlas": trained_on.url, "atlas_digest": trained_on.digest} | facts
    version = models.register(learner, run_id=run, name="cells", facts=facts, metrics={})
    return learner, f"models:/cells/{version}"


def of(atlas, start, stop):
    rows = atlas.read_cells(np.arange(start, stop)).to_scipy()
    return Cells(rows, atlas.genes, [str(i) for i in range(start, stop)])


def test_cells_are_embedded_as_everywhere_and_compared_with_the_training(store, atlas):
    learner, uri = register(atlas)
    served = Served.of(uri)
    cells = of(atlas, 0, 300)
    z, share = served.embed(cells, min_genes=1)
    np.testing.assert_allclose(
        z, embed_matrix(learner.eval(), cells.counts, cells.genes), atol=1e-5
    )
    assert share == 1
    assert served.drift() == {}  # a window is not full yet
    served.embed(of(atlas, 300, 600), min_genes=1)
    same = served.drift()
    assert same["library"] < 0.1
    assert abs(same["embedding"]) < 0.01

    served.window = serving.Window()
    twice = of(atlas, 0, 600)
    served.embed(Cells(twice.counts * 3, twice.genes, twice.names), min_genes=1)
    moved = served.drift()
    assert moved["library"] > 3 * same["library"]
    assert moved["detection"] == pytest.approx(same["detection"], abs=0.01)


def test_genes_are_matched_by_name_and_the_library_counts_all(store, atlas):
    _, uri = register(atlas)
    served = Served.of(uri)
    cells = of(atlas, 0, 500)
    order = np.random.default_rng(0).permutation(atlas.n_genes)
    shuffled = Cells(csr_matrix(cells.counts[:, order]), atlas.genes[order], cells.names)
    expected, _ = served.embed(cells, min_genes=1)
    found, _ = served.embed(shuffled, min_genes=1)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    library = np.asarray(cells.counts.sum(axis=1)).ravel()
    np.testing.assert_array_equal(served.window.sample().library_N, np.tile(library, 2))


def test_requests_that_do_not_fit_the_model_are_refused(store, atlas):
    _, uri = register(atlas)
    served = Served.of(uri)
    cells = of(atlas, 0, 5)
    few = Cells(cells.counts[:, :6], atlas.genes[:6], cells.names)
    for wrong, said in (
        (few, "only 10.0% of the model's 60 genes"),
        (Cells(cells.counts, np.char.add("x", atlas.genes), cells.names), "no gene in common"),
        (Cells(cells.counts / 2, cells.genes, cells.names), "which is no count"),
        (Cells(cells.counts, np.repeat(cells.genes[:1], 60), cells.names), "more than once"),
    ):
        with pytest.raises(RequestError, match=said) as caught:
            served.embed(wrong, min_genes=0.5)
        assert caught.value.status == 422
    assert served.embed(few, min_genes=0.1)[1] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"atlas": "/nowhere/atlas"}, "cannot be read"),
        ({"atlas": None}, "does not say what it was trained on"),
    ],
)
def test_without_the_atlas_there_is_no_drift_and_a_line_says_so(store, atlas, facts, said, caplog):
    _, uri = register(atlas, **facts)
    served = Served.of(uri)
    assert said in caplog.text
    served.embed(of(atlas, 0, 600), min_genes=1)
    assert served.drift() == {}
    assert served.describe()["drift"] is False


def test_another_state_of_the_atlas_is_told(store, atlas, caplog):
    _, uri = register(atlas, atlas_digest="0" * 64)
    assert Served.of(uri).reference is not None
    assert "has changed since" in caplog.text


def test_the_window_keeps_the_last_blocks(monkeypatch):
    monkeypatch.setattr(serving, "WINDOW_CELLS", 10)

    def cells(value, n):
        counts = csr_matrix(np.full((n, 2), value))
        return serving.Sample.of(counts, np.full(n, value), np.zeros((n, 1), np.float32))

    window = serving.Window()
    window.add(cells(1, 9))
    assert window.sample() is None
    window.add(cells(1, 2))
    assert len(window.sample()) == 11
    for value in range(2, 7):
        window.add(cells(value, 10))
    window.add(cells(9, 1))  # its block is not full
    assert sorted(set(window.sample().library_N)) == [3, 4, 5, 6]


def test_the_reference_is_of_the_atlas_that_was_trained_on(store, atlas):
    _, uri = register(atlas)
    reference = Served.of(uri).reference
    counts = Atlas.open(atlas.url).read_cells(np.arange(atlas.n_cells)).to_scipy()
    np.testing.assert_array_equal(
        np.sort(reference.library_N), np.sort(np.asarray(counts.sum(axis=1)).ravel())
    )
    np.testing.assert_allclose(reference.detection_G, (counts.toarray() > 0).mean(axis=0))
