"""The probe against scikit-learn, what it refuses, when it is due, and that it changes nothing."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier

from cellray.atlas.simulate import Simulation, simulate_anndata
from cellray.atlas.splits import TRAIN, VALIDATION, SplitSpec, store_split
from cellray.atlas.store import Atlas
from cellray.atlas.write import ingest
from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe
from cellray.feed.reader import read_batches
from cellray.train.checkpoint import begin_checkpoint, load_checkpoint
from cellray.train.local import fit
from cellray.train.probe import KnnProbe, choose_labelled
from cellray.train.setup import prepare
from cellray.train.worker import make_loop

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
SMALL = Recipe.of(
    {
        "encoder": {"name": "mlp", "widths": [16], "dim": 4},
        "objective": {"name": "masked", "widths": [16]},
        "data": {"batch_size": 32, "slab_batches": 2, "validation": 0.2},
        "train": {"epochs": 5, "log_every": 3},
        "optim": {"lr": 0.01},
    }
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("probe")


@pytest.fixture(scope="module")
def atlas(folder):
    """What is trained on; some of its cells have no label."""
    cells = simulate_anndata(Simulation(n_cells=400, n_genes=40, n_types=5, seed=1))
    cells.obs["some"] = cells.obs["cell_type"].where(np.arange(400) % 3 > 0)
    cells.obs["one"] = pd.Categorical(["a"] * 400)
    cells.obs["none"] = pd.Categorical([None] * 400, categories=["a"])
    cells.write_h5ad(folder / "a.h5ad")
    made = ingest([folder / "a.h5ad"], folder / "atlas")
    store_split(made, "late", SplitSpec(by="donor", values=("donor_0",)))
    return Atlas.open(made.url)


@pytest.fixture(scope="module")
def other(folder):
    """A labelled atlas of half of those genes in another order, and of some that are not there."""
    cells = simulate_anndata(Simulation(n_cells=300, n_genes=60, n_types=5, seed=2))
    cells = cells[:, np.random.default_rng(0).permutation(60)[:40]].copy()
    cells.write_h5ad(folder / "b.h5ad")
    return ingest([folder / "b.h5ad"], folder / "other")


@pytest.fixture(scope="module")
def foreign(folder):
    cells = simulate_anndata(Simulation(n_cells=60, n_genes=20, seed=3))
    cells.var_names = [f"AT{i}G" for i in range(20)]
    cells.write_h5ad(folder / "c.h5ad")
    return ingest([folder / "c.h5ad"], folder / "foreign")


def choose(atlas, *changes):
    recipe = SMALL.with_(list(changes))
    setup = prepare(recipe.with_(["probe={}", "train.best=validation_loss"]), atlas)
    found = choose_labelled(recipe, atlas, setup.choice.sides, setup.genes)
    return recipe, setup, found


def by_hand(learner, atlas, labelled):
    """Score with scikit-learn on embeddings of counts that are read one cell at a time."""
    rows = [atlas.read_cells(np.array([cell])).to_scipy().toarray() for cell in labelled.cells]
    counts = np.concatenate(rows)
    known = [name in learner.genes for name in atlas.genes]
    columns = [learner.genes.index(name) for name in atlas.genes[known]]
    mine = np.zeros((len(counts), len(learner.genes)), np.float32)
    mine[:, columns] = counts[:, known]
    with torch.no_grad():
        z = learner.embed(torch.from_numpy(mine), torch.from_numpy(counts.sum(1)).float()).numpy()
    labels = atlas.obs()[learner.recipe.probe.label].astype(str).to_numpy()[labelled.cells]
    n = labelled.n_reference
    knn = KNeighborsClassifier(5).fit(z[:n], labels[:n])
    return f1_score(labels[n:], knn.predict(z[n:]), labels=np.unique(labels[n:]), average="macro")


def records_of(recipe, atlas):
    found = []
    learner = fit(recipe, atlas, report=found.append)
    return found, learner


def test_without_a_label_nothing_is_probed(atlas):
    assert choose(atlas)[2] is None


def test_training_cells_are_the_reference_and_validation_cells_are_predicted(atlas):
    _, setup, found = choose(atlas, "probe.label=some", "probe.cells=50")
    assert found.atlas == (atlas.url, atlas.digest)
    sides = setup.choice.sides[found.cells]
    assert found.n_reference == 50
    assert (sides[:50] == TRAIN).all()
    assert (sides[50:] == VALIDATION).all()
    column = atlas.obs(["some"])["some"]
    everything = np.flatnonzero(column.notna() & (setup.choice.sides == VALIDATION))
    assert len(everything) > 50
    assert len(found.cells) == 100
    assert len(set(found.cells)) == 100
    assert found.labels.tolist() == column.iloc[found.cells].tolist()  # no cell without a label


def test_all_labelled_cells_take_part_when_they_are_few(atlas):
    found = choose(atlas, "probe.label=some", "data.split=late")[2]
    donors = atlas.obs(["donor", "some"])
    predicted = np.flatnonzero((donors["donor"] == "donor_0") & donors["some"].notna())
    assert found.cells[found.n_reference :].tolist() == predicted.tolist()
    reference = np.flatnonzero((donors["donor"] != "donor_0") & donors["some"].notna())
    assert found.cells[: found.n_reference].tolist() == reference.tolist()


def test_an_atlas_of_its_own_is_split_by_the_seed_or_by_whole_values(atlas, other):
    changes = ["probe.label=cell_type", f"probe.atlas={other.url}"]
    found = choose(atlas, *changes)[2]
    assert found.atlas == (other.url, other.digest)
    assert sorted(found.cells) == list(range(300))
    assert found.n_reference == 210
    again, another = (choose(atlas, *changes, f"seed={seed}")[2] for seed in (0, 1))
    assert np.array_equal(found.cells, again.cells)
    assert not np.array_equal(found.cells, another.cells)
    grouped = choose(atlas, *changes, "probe.split_by=donor")[2]
    donors = other.obs(["donor"])["donor"].astype(str).to_numpy()[grouped.cells]
    assert set(donors[: grouped.n_reference]).isdisjoint(donors[grouped.n_reference :])
    assert len(set(donors)) == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["probe.label=cel_type"], "no obs column 'cel_type'; did you mean 'cell_type'"),
        (["probe.label=one"], "'one' has one label only among the training cells of .*probe.label"),
        (["probe.label=none"], "'none' has no label among the training cells"),
        (
            ["probe.label=cell_type", "data.validation=0"],
            "labels no validation cell of .*; hold cells out with data.validation or data.split",
        ),
        (["probe.label=cell_type", "probe.atlas={foreign}"], "no gene in common"),
        (["probe.label=cell_type", "probe.atlas={foreign}/none"], "none"),
        (
            ["probe.label=cell_type", "probe.atlas={other}", "probe.split_by=doner"],
            "no obs column 'doner'; did you mean 'donor'",
        ),
        (["probe.label=one", "probe.atlas={other}"], "{other} has no obs column 'one'"),
        (
            ["probe.label=one", "probe.atlas={atlas}"],
            "one label only among the reference cells of {atlas}",
        ),
    ],
)
def test_what_cannot_be_probed_is_refused(atlas, other, foreign, changes, words):
    urls = {"atlas": atlas.url, "other": other.url, "foreign": foreign.url}
    named = [change.format(**urls) for change in changes]
    with pytest.raises(CellrayError, match=words.format(**urls)) as caught:
        choose(atlas, *named)
    assert "\n" not in str(caught.value)


def test_a_label_that_only_reference_cells_have_leaves_nothing_to_predict(atlas, other, folder):
    cells = simulate_anndata(Simulation(n_cells=200, n_genes=60, n_types=5, seed=4))
    first = cells.obs["donor"] == "donor_0"
    cells.obs["donor"] = np.where(first, "a", "b")
    # Whichever of the two donors is held out, some draws hold out the one without a label.
    cells.obs["cell_type"] = cells.obs["cell_type"].where(~first)
    cells.write_h5ad(folder / "d.h5ad")
    url = ingest([folder / "d.h5ad"], folder / "half").url
    changes = ["probe.label=cell_type", f"probe.atlas={url}", "probe.split_by=donor"]
    told = set()
    for seed in range(8):
        with pytest.raises(CellrayError) as caught:
            choose(atlas, *changes, f"seed={seed}")
        told.add(str(caught.value).split(" of ")[0])
    assert told == {
        "obs column 'cell_type' labels no held-out cell",
        "obs column 'cell_type' has no label among the reference cells",
    }


@pytest.mark.parametrize("where", ["same", "other"])
def test_the_score_is_that_of_scikit_learn_on_embeddings_made_by_hand(atlas, other, where):
    changes = ["probe.label=cell_type", "probe.cells=150"]
    if where == "other":
        changes.append(f"probe.atlas={other.url}")
    recipe, setup, found = choose(atlas, *changes)
    learner = setup.learner(recipe).train()
    probe = KnnProbe.of(found, learner, device=CPU)
    score = probe.macro_f1(learner)
    wanted = by_hand(learner, {"same": atlas, "other": other}[where], found)
    assert score == pytest.approx(wanted, abs=1e-9)
    assert 0.05 < score < 0.95  # or any order of the cells would do
    assert learner.training


def test_no_more_cells_are_embedded_at_a_time_than_in_a_pass(atlas):
    recipe, setup, found = choose(atlas, "probe.label=cell_type", "train.accumulate=2")
    learner, sizes = setup.learner(recipe), []
    learner.encoder.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[0]))
    KnnProbe.of(found, learner, device=CPU).macro_f1(learner)
    assert max(sizes) == 16
    assert sum(sizes) == len(found.cells)


def test_the_score_comes_when_it_is_due_and_changes_no_number(atlas):
    timed = ("seconds", "cells_per_s", "feed_wait", "worker_memory")
    plain, without = records_of(SMALL, atlas)
    probed, with_probe = records_of(SMALL.with_(["probe.label=cell_type", "probe.every=2"]), atlas)
    scores = [(r["epoch"], r.pop("knn_macro_f1")) for r in probed if "knn_macro_f1" in r]
    assert [epoch for epoch, _ in scores] == [2, 4, 5]
    assert all(0 < score <= 1 for _, score in scores)
    for one, two in zip(plain, probed, strict=True):
        keys = [key for key in one if not key.startswith(timed)]
        assert [one[key] for key in keys] == [two[key] for key in keys]
        assert set(one) == set(two)
    assert "validation_loss" in probed[-1]
    for name, value in without.state_dict().items():
        assert torch.equal(value, with_probe.state_dict()[name])


def test_the_last_score_is_of_the_weights_that_are_left(atlas):
    recipe, _, found = choose(atlas, "probe.label=cell_type")
    records, learner = records_of(recipe, atlas)
    assert records[-1]["knn_macro_f1"] == pytest.approx(by_hand(learner, atlas, found), abs=1e-9)
    assert len({r["knn_macro_f1"] for r in records if "knn_macro_f1" in r}) > 1


def looped(recipe, setup, found, atlas):
    told, learner = {}, setup.learner(recipe)

    def report(records, summary):
        told.update({r["step"]: r["knn_macro_f1"] for r in records if "knn_macro_f1" in r})

    made = make_loop(
        recipe,
        setup.choice.plan,
        learner,
        atlas,
        setup.validation_cells,
        report,
        module=learner,
        device=CPU,
        labelled=found,
    )
    return made, told


def test_a_run_that_goes_on_from_a_checkpoint_gives_the_same_scores(atlas, tmp_path):
    recipe, setup, found = choose(atlas, "probe.label=cell_type", "probe.every=2")
    plan, selection = setup.choice.plan, setup.choice.selection
    whole, wanted = looped(recipe, setup, found, atlas)
    whole.run(read_batches(atlas, plan, selection))
    first, begun = looped(recipe, setup, found, atlas)
    stop = 3 * plan.steps_per_epoch + 1
    first.run(itertools.islice(read_batches(atlas, plan, selection), stop))
    begin_checkpoint(tmp_path, first.learner, first.optimizer, first.state).result()
    second, rest = looped(recipe, setup, found, atlas)
    second.restore(load_checkpoint(tmp_path, second.learner, second.optimizer, second.schedule))
    second.run(read_batches(atlas, plan, selection, step=stop))
    assert [step // plan.steps_per_epoch for step in wanted] == [2, 4, 5]
    assert begun | rest == wanted
    assert begun
    assert rest


def test_a_run_that_runs_out_of_patience_ends_with_a_score(atlas):
    recipe, setup, found = choose(
        atlas, "probe.label=cell_type", "probe.every=9", "train.patience=1", "optim.lr=1e-12"
    )
    made, told = looped(recipe, setup, found, atlas)
    made.state.best = 0.0
    made.run(read_batches(atlas, setup.choice.plan, setup.choice.selection))
    assert list(told) == [setup.choice.plan.steps_per_epoch]
