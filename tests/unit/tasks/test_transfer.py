"""Few labels: which cells they are, and that pre-training shows."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cellray.core.recipe import Recipe
from cellray.learn.embed import embed_matrix
from cellray.learn.learner import Learner, normalise
from cellray.tasks.splits import make_splits, usable_sample
from cellray.tasks.steps import Counts, Schedule, steps_of
from cellray.tasks.task import Spec
from cellray.tasks.transfer import FRACTIONS, labelled, transfer

GENES = np.array([f"GENE{number}" for number in range(60)])
RECIPE = {"encoder": {"name": "mlp", "widths": [32], "dim": 8, "dropout": 0.0}}
SPEC = Spec(label="cell_type", splits=1)


def embedded_by(learner, cells):
    return embed_matrix(learner, cells.counts, GENES)


@pytest.fixture(scope="module")
def report(cells):
    learner = Learner.of(Recipe.of(RECIPE), GENES.tolist())
    learners = {"model": learner, "untrained": learner.untrained()}
    frozen = {method: embedded_by(of, cells) for method, of in learners.items()}
    return transfer(replace(cells, genes=GENES, learners=learners, frozen=frozen), SPEC)


def test_labels_are_nested_and_no_type_is_without():
    labels = np.repeat(["a", "b", "c"], [600, 300, 6])
    (split,) = make_splits(labels, None, SPEC)
    known = dict(labelled(split, labels, seed=0))
    assert [*known] == [*FRACTIONS]
    before = set()
    for fraction, cells in known.items():
        assert before <= {*cells} <= {*split.train}
        before = {*cells}
        sizes = {name: np.sum(labels[split.train] == name) for name in "abc"}
        for name, size in sizes.items():
            assert np.sum(labels[cells] == name) == np.ceil(fraction * size)
    np.testing.assert_array_equal(known[1.0], split.train)
    other = dict(labelled(split, labels, seed=1))
    assert {*other[0.1]} != {*known[0.1]}


def test_every_fraction_is_scored_by_probe_and_network(report):
    rows = report.table.set_index(["method", "readout"])
    assert {*rows.index} == {
        (method, f"{readout}_{fraction:g}")
        for fraction in FRACTIONS
        for method, readout in [
            ("model", "fine_tuned"),
            ("untrained", "fine_tuned"),
            ("model", "probe"),
            ("untrained", "probe"),
            ("pca", "probe"),
            ("nearest_centroid", "centroid"),
        ]
    }
    few = rows.loc[("model", "fine_tuned_0.005"), "macro_f1"]
    assert rows.loc[("model", "fine_tuned_1"), "macro_f1"] > few
    assert rows.loc[("model", "fine_tuned_1"), "macro_f1"] > 0.9


def test_the_same_network_from_the_same_start_scores_the_same(report):
    """This model was never trained: as the model and as what it is compared with it is one."""
    rows = report.table.set_index(["method", "readout"])
    for fraction in FRACTIONS:
        of = f"fine_tuned_{fraction:g}"
        assert rows.loc[("model", of), "macro_f1"] == rows.loc[("untrained", of), "macro_f1"]


def test_every_mean_has_its_interval_and_what_never_differs_does_not_differ(report):
    keys = ["method", "readout", "metric"]
    joined = report.intervals.set_index(keys).join(report.scores.groupby(keys)["value"].mean())
    assert len(joined) == report.scores.groupby(keys).ngroups
    assert ((joined["low"] <= joined["value"]) & (joined["value"] <= joined["high"])).all()
    compared = report.tables["against_untrained"]
    assert {*compared["readout"]} == {
        f"{kind}_{fraction:g}" for kind in ("fine_tuned", "probe") for fraction in FRACTIONS
    }
    assert (compared[["difference", "low", "high"]] == 0).all(axis=None)
    assert (compared["p"] == 1).all()


def test_a_network_that_knows_the_types_needs_fewer_labels(cells):
    """Trained on the labels of cells that are not used later, it must win with one label each."""
    learner = Learner.of(Recipe.of(RECIPE), GENES.tolist())
    knowing = Learner.of(Recipe.of(RECIPE), GENES.tolist())
    counts, codes = (
        Counts(knowing, cells.counts, GENES),
        np.unique(cells.column("cell_type"), return_inverse=True)[1],
    )
    first, rest = np.arange(210), np.arange(210, 420)
    target = torch.from_numpy(codes[first])

    def error(of):
        z_BD = knowing.encoder(normalise(*counts[first[of]]))
        return torch.nn.functional.cross_entropy(z_BD, target[torch.from_numpy(of)])

    for _ in steps_of(knowing.encoder, knowing.encoder, error, len(first), 0, Schedule(steps=150)):
        pass
    learners = {"model": knowing, "untrained": learner}
    frozen = {method: embedded_by(of, cells) for method, of in learners.items()}
    data = replace(cells, genes=GENES, learners=learners, frozen=frozen).take(rest)
    rows = transfer(data, SPEC).table.set_index(["method", "readout"])
    few = f"probe_{FRACTIONS[0]:g}"
    assert rows.loc[("model", few), "macro_f1"] > rows.loc[("untrained", few), "macro_f1"] + 0.05


def test_the_page_has_a_curve(report):
    (figure,) = report.figures
    assert figure.name == "few_labels"
    assert figure.svg.startswith("<?xml")
    assert "as many steps" in report.protocol


def test_a_sample_that_leaves_a_type_with_one_cell_is_no_crash(cells, monkeypatch):
    monkeypatch.setattr("cellray.tasks.splits.MOST_CELLS", 40)
    labels = cells.obs["cell_type"].to_numpy(object).copy()
    labels[: len(labels) // 2 : 12] = "rare"
    obs = cells.obs.assign(cell_type=labels)
    for seed in range(6):
        spec = Spec(label="cell_type", splits=1, seed=seed)
        kept, notes = usable_sample(obs, spec, "transfer")
        _, sizes = np.unique(labels[kept].astype(str), return_counts=True)
        assert sizes.min() > 1
        assert len(make_splits(labels[kept].astype(str), None, spec)) == 1
        assert notes[0] == "40 of the cells were sampled at random."
