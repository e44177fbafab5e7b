"""Fine-tuning: what is trained, on what, and that it learns."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe
from cellray.learn.learner import Learner
from cellray.score.annotation import f1, likeliest
from cellray.tasks.annotation import annotation
from cellray.tasks.finetune import classify, parts_of, regress
from cellray.tasks.steps import Counts, Schedule, steps_of
from cellray.tasks.task import Spec

GENES = np.array([f"GENE{number}" for number in range(60)])
RECIPE = {"encoder": {"name": "mlp", "widths": [32, 16], "dim": 8, "dropout": 0.1}}
SHORT = Schedule(steps=80, batch=32)


@pytest.fixture(scope="module")
def learner():
    return Learner.of(Recipe.of(RECIPE), GENES.tolist())


@pytest.fixture(scope="module")
def counts(cells, learner):
    return Counts(learner, cells.counts, GENES)


@pytest.fixture(scope="module")
def halves(cells):
    order = np.random.default_rng(0).permutation(len(cells.obs))
    return {"train": np.sort(order[:250]), "test": np.sort(order[250:])}


def test_it_learns_the_labels_and_leaves_the_model_as_it_was(cells, learner, counts, halves):
    labels, before = cells.column("cell_type"), copy.deepcopy(learner.state_dict())
    classes, probabilities = classify(learner, counts, labels, **halves, seed=0, schedule=SHORT)
    np.testing.assert_array_equal(classes, np.unique(labels))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    told = likeliest(classes, probabilities)
    assert f1(labels[halves["test"]], told)["macro_f1"] > 0.9
    for name, value in learner.state_dict().items():
        assert torch.equal(value, before[name])


def test_permuted_labels_are_told_at_chance(cells, learner, counts, halves):
    labels = np.random.default_rng(1).permutation(cells.column("cell_type"))
    told = likeliest(*classify(learner, counts, labels, **halves, seed=0, schedule=SHORT))
    assert f1(labels[halves["test"]], told)["macro_f1"] < 0.4


def test_the_same_seed_gives_the_same_numbers(cells, learner, counts, halves):
    labels = cells.column("cell_type")
    one, again, other = (
        classify(learner, counts, labels, **halves, seed=seed, schedule=SHORT)[1]
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_test_cells_do_not_take_part_in_training(cells, learner, counts, halves):
    labels = cells.column("cell_type")
    some = halves["test"][:10]
    wrong = labels.copy()
    wrong[halves["test"]] = labels[0]
    _, right = classify(learner, counts, labels, train=halves["train"], test=some, seed=0)
    _, same = classify(learner, counts, wrong, train=halves["train"], test=some, seed=0)
    np.testing.assert_array_equal(right, same)


def test_values_are_regressed_in_their_own_units(cells, learner, counts, halves):
    codes = np.unique(cells.column("cell_type"), return_inverse=True)[1]
    values = np.stack([1000 + 50 * codes, np.full(len(codes), 7)], axis=1).astype(np.float32)
    told = regress(learner, counts, values, **halves, seed=0, schedule=Schedule(steps=200))
    assert np.corrcoef(told[:, 0], values[halves["test"], 0])[0, 1] > 0.8
    assert told[:, 0].mean() == pytest.approx(values[halves["test"], 0].mean(), abs=3)
    np.testing.assert_array_equal(told[:, 1], 7)


@pytest.mark.parametrize(("layers", "moved"), [("all", True), ("last", False)])
def test_shallow_steps_train_the_last_block_alone(learner, layers, moved):
    encoder = copy.deepcopy(learner.encoder).train()
    x_BG = torch.rand(64, len(GENES))
    before = copy.deepcopy(encoder.state_dict())
    schedule = Schedule(steps=3, layers=layers)
    last = {name for name in before if name.startswith(f"blocks.{len(encoder.blocks) - 1}.")}
    for _ in steps_of(
        encoder, encoder, lambda of: encoder(x_BG[of]).square().sum(), 64, 0, schedule
    ):
        pass
    changed = {n for n, value in encoder.state_dict().items() if not torch.equal(value, before[n])}
    assert changed & last
    assert bool(changed - last) == moved


def test_a_part_of_the_training_cells_chooses_the_state_and_no_class_is_lost():
    codes = np.repeat([0, 1, 2], [60, 39, 1])
    fit, chosen = parts_of(100, codes, 0)
    assert len(chosen) == 20
    assert not np.intersect1d(fit, chosen).size
    assert {*codes[fit]} == {0, 1, 2}
    assert {*codes[chosen]} == {0, 1}
    few, none = parts_of(4, np.array([0, 1, 2, 2]), 0)
    assert len(few) == 4
    assert len(none) == 0


def test_a_loss_that_is_no_number_is_refused(cells, learner, counts, halves):
    with pytest.raises(CellrayError, match="the loss is nan at step 1"):
        regress(learner, counts, np.full((len(cells.obs), 1), np.nan, np.float32), **halves, seed=0)


def test_one_class_cannot_be_told(cells, learner, counts, halves):
    with pytest.raises(CellrayError, match="at least two classes"):
        classify(learner, counts, np.full(len(cells.obs), "one"), **halves, seed=0)


@pytest.fixture(scope="module")
def with_learners(cells, learner):
    return replace(
        cells, genes=GENES, learners={"model": learner, "untrained": learner.untrained()}
    )


def test_annotation_trains_every_network_when_asked(with_learners):
    spec = Spec(label="cell_type", splits=1)
    without = annotation(with_learners, spec)
    assert "fine_tuned" not in set(without.scores["readout"])
    report = annotation(with_learners, spec.model_copy(update={"fine_tune": True}))
    trained = report.scores[report.scores["readout"] == "fine_tuned"]
    assert set(trained["method"]) == {"model", "untrained"}
    assert trained.loc[trained["metric"] == "macro_f1", "value"].min() > 0.9
    assert any("as many steps" in note for note in report.notes)


def test_a_kind_of_the_true_type_counts_with_an_ontology(cells, tmp_path):
    file = tmp_path / "kinds.tsv"
    file.write_text("child\tparent\ntype 1\ttype 0\ntype 2\ttype 0\ntype 3\ttype 0\n")
    noisy = replace(cells, frozen={**cells.frozen, "model": cells.frozen["untrained"]})
    report = annotation(noisy, Spec(label="cell_type", splits=1, ontology=str(file)))
    rows = report.table.set_index(["method", "readout"]).loc[("model", "knn")]
    assert rows["ontology_micro_f1"] > rows["micro_f1"] + 0.1


def test_an_encoder_that_samples_by_weight_is_shown_sampling_alike(cells):
    recipe = {
        "encoder": {"name": "transformer", "n_tokens": 12, "width": 16, "layers": 1, "heads": 2}
    }
    learner = Learner.of(Recipe.of(recipe), GENES.tolist())
    data = replace(cells, genes=GENES, learners={"model": learner})
    report = annotation(data, Spec(label="cell_type", splits=1))
    assert "model_uniform" in set(report.scores["method"])
    assert any("uniform sampling" in note for note in report.notes)
