"""Annotation: splits, scores, what is left out and what is refused."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix
from sklearn.decomposition import TruncatedSVD
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

from cellray.core.errors import CellrayError
from cellray.tasks.annotation import annotation
from cellray.tasks.splits import make_splits, usable_cells
from cellray.tasks.table import TASKS
from cellray.tasks.task import Spec

SPEC = Spec(label="cell_type")
BY_DONOR = Spec(label="cell_type", split_by="donor")


@pytest.fixture(scope="module")
def report(cells):
    return annotation(cells, SPEC)


@pytest.fixture(scope="module")
def by_donor(cells):
    return annotation(cells, BY_DONOR)


def values_of(report, **chosen):
    scores = report.scores
    for name, value in chosen.items():
        scores = scores[scores[name] == value]
    return scores["value"].to_numpy()


def with_obs(cells, **columns):
    return replace(cells, obs=cells.obs.assign(**columns))


def test_stratified_splits_are_those_of_scikit_learn(cells):
    labels = cells.obs["cell_type"].to_numpy(str)
    splits = make_splits(labels, None, SPEC)
    theirs = StratifiedShuffleSplit(5, test_size=0.3, random_state=0).split(labels, labels)
    for ours, (train, test) in zip(splits, theirs, strict=True):
        np.testing.assert_array_equal(ours.train, np.sort(train))
        np.testing.assert_array_equal(ours.test, np.sort(test))
        assert not np.intersect1d(ours.train, ours.test).size
        assert len(ours.train) + len(ours.test) == len(labels)
        for name in np.unique(labels):
            share = np.mean(labels[ours.test] == name)
            assert share == pytest.approx(np.mean(labels == name), abs=1 / len(ours.test))


def test_group_splits_hold_out_whole_groups_a_different_set_each(cells):
    labels, groups = cells.obs["cell_type"].to_numpy(str), cells.obs["donor"].to_numpy(str)
    splits = make_splits(labels, groups, BY_DONOR)
    held = [frozenset(groups[split.test]) for split in splits]
    assert len(set(held)) == len(splits) == 5
    for split in splits:
        assert not set(groups[split.train]) & set(groups[split.test])
        assert len(split.train) + len(split.test) == len(labels)


def test_two_groups_allow_two_splits_and_the_report_says_so(cells):
    halves = np.where(np.arange(len(cells.obs)) % 2 == 0, "left", "right")
    report = annotation(with_obs(cells, donor=halves), BY_DONOR)
    assert report.scores["split"].nunique() == 2
    assert any("Only 2 different sets of 'donor'" in note for note in report.notes)


@pytest.mark.parametrize("method", ["model", "untrained", "pca", "pca_all"])
@pytest.mark.parametrize("fixture", ["report", "by_donor"])
def test_scores_equal_scikit_learn_on_the_same_splits(cells, method, fixture, request):
    found = request.getfixturevalue(fixture)
    spec = SPEC if fixture == "report" else BY_DONOR
    labels = cells.obs["cell_type"].to_numpy(str)
    groups = None if spec.split_by is None else cells.obs["donor"].to_numpy(str)
    dense = cells.counts.toarray()
    logs = np.log1p(dense / dense.sum(axis=1, keepdims=True) * 10_000).astype(np.float32)
    expected = {("knn", "macro_f1"): [], ("knn", "micro_f1"): [], ("probe", "micro_f1"): []}
    for split in make_splits(labels, groups, spec):
        train, test = split.train, split.test
        if method.startswith("pca"):
            fitted = logs if method == "pca_all" else logs[train]
            z = TruncatedSVD(50, random_state=0).fit(fitted).transform(logs)
        else:
            z = cells.frozen[method]
        near = KNeighborsClassifier(5).fit(z[train], labels[train]).predict(z[test])
        expected["knn", "macro_f1"].append(f1_score(labels[test], near, average="macro"))
        expected["knn", "micro_f1"].append(f1_score(labels[test], near, average="micro"))
        scaled = (z - z[train].mean(axis=0)) / z[train].std(axis=0).mean()
        line = LogisticRegression(max_iter=5_000).fit(scaled[train], labels[train])
        expected["probe", "micro_f1"].append(np.mean(line.predict(scaled[test]) == labels[test]))
    for (readout, metric), values in expected.items():
        ours = values_of(found, method=method, readout=readout, metric=metric)
        # The probe's penalty depends a little on how embeddings are scaled; kNN has no freedom.
        np.testing.assert_allclose(ours, values, atol=1e-9 if readout == "knn" else 0.05)


def test_trivial_baselines_are_those_of_scikit_learn(cells, report):
    labels = cells.obs["cell_type"].to_numpy(str)
    dense = cells.counts.toarray()
    logs = np.log1p(dense / dense.sum(axis=1, keepdims=True) * 10_000)
    told = {
        "nearest_centroid": ("centroid", NearestCentroid()),
        "majority": ("majority", DummyClassifier()),
    }
    for method, (readout, classifier) in told.items():
        expected = [
            f1_score(
                labels[split.test],
                classifier.fit(logs[split.train], labels[split.train]).predict(logs[split.test]),
                average="macro",
            )
            for split in make_splits(labels, None, SPEC)
        ]
        ours = values_of(report, method=method, readout=readout, metric="macro_f1")
        np.testing.assert_allclose(ours, expected, atol=1e-9)
    assert values_of(report, method="majority", metric="ece").size == 0  # it has no confidence


def test_pca_never_sees_the_test_cells(cells):
    noise = np.random.default_rng(2).poisson(1.5, cells.counts.shape)
    noisy = replace(cells, counts=csr_matrix(noise))
    labels = cells.obs["cell_type"].to_numpy(str)
    logs = np.log1p(noise / noise.sum(axis=1, keepdims=True) * 10_000).astype(np.float32)
    scores = {"train": [], "all": []}
    for split in make_splits(labels, None, SPEC):
        for name, fitted in (("train", logs[split.train]), ("all", logs)):
            z = TruncatedSVD(50, random_state=0).fit(csr_matrix(fitted)).transform(logs)
            near = KNeighborsClassifier(5).fit(z[split.train], labels[split.train])
            scores[name].append(np.mean(near.predict(z[split.test]) == labels[split.test]))
    ours = values_of(annotation(noisy, SPEC), method="pca", readout="knn", metric="micro_f1")
    np.testing.assert_allclose(ours, scores["train"], atol=0.02)  # near ties fall either way
    assert np.abs(np.subtract(ours, scores["all"])).max() > 0.02


def test_the_table_holds_mean_and_standard_deviation_over_splits(report):
    values = values_of(report, method="pca", readout="probe", metric="macro_f1")
    row = report.table.set_index(["method", "readout"]).loc[("pca", "probe")]
    assert len(values) == 5
    assert row["macro_f1"] == pytest.approx(np.mean(values))
    assert row["macro_f1_std"] == pytest.approx(np.sqrt(np.mean((values - values.mean()) ** 2)))
    assert report.metrics["pca/probe/macro_f1"] == row["macro_f1"]
    assert len(report.table) == 4 * 2 + 2  # embeddings by classifiers, and what needs neither


def test_a_good_embedding_scores_and_permuted_labels_score_at_chance(cells, report):
    assert report.metrics["model/knn/macro_f1"] > 0.95
    rng = np.random.default_rng(1)
    labels = cells.obs["cell_type"].to_numpy(str)
    permuted = annotation(with_obs(cells, cell_type=rng.permutation(labels)), SPEC)
    shares = np.unique(labels, return_counts=True)[1] / len(labels)
    # Five neighbours' vote hits at most the largest class's share of cells, plus sampling noise.
    for method in ("model", "pca", "pca_all", "untrained"):
        assert permuted.metrics[f"{method}/knn/macro_f1"] < 0.33
        assert permuted.metrics[f"{method}/probe/micro_f1"] < shares.max() + 0.06


def test_the_same_input_gives_the_same_report(cells, report):
    again = annotation(cells, SPEC)
    pd.testing.assert_frame_equal(again.scores, report.scores)
    pd.testing.assert_frame_equal(again.tables["confusion"], report.tables["confusion"])
    assert again.figures == report.figures


def test_another_seed_gives_other_splits(cells, report):
    other = annotation(cells, SPEC.model_copy(update={"seed": 1}))
    assert not np.array_equal(other.scores["value"], report.scores["value"])


def test_classes_come_by_abundance_and_the_confusion_adds_up(cells, report):
    sizes = cells.obs["cell_type"].value_counts()
    assert report.tables["classes"]["cells"].is_monotonic_decreasing
    classes = report.tables["classes"]
    assert dict(zip(classes["class"], classes["cells"], strict=True)) == dict(sizes)
    confusion = report.tables["confusion"].set_index("true class")
    assert confusion.index.tolist() == report.tables["classes"]["class"].tolist()
    assert confusion.columns.tolist() == report.tables["classes"]["class"].tolist()
    tested = confusion.to_numpy().sum()
    micro = values_of(report, method="model", readout="knn", metric="micro_f1")
    assert np.trace(confusion.to_numpy()) / tested == pytest.approx(micro.mean())
    macro = values_of(report, method="model", readout="knn", metric="macro_f1")
    assert report.tables["classes"]["model"].mean() == pytest.approx(macro.mean())


def test_figures_are_those_that_are_promised(report, by_donor):
    names = ["scores", "classes", "confusion", "reliability", "umap_label"]
    assert [figure.name for figure in report.figures] == names
    assert [figure.name for figure in by_donor.figures] == [*names, "umap_split"]
    assert all(figure.alt and figure.svg.startswith("<?xml") for figure in by_donor.figures)


def test_cells_without_a_label_and_labels_of_one_cell_are_left_out_and_counted(cells):
    labels = cells.obs["cell_type"].to_numpy(object)
    labels[:7] = None
    labels[7] = "lonely"
    kept, notes = usable_cells(with_obs(cells, cell_type=labels).obs, SPEC)
    np.testing.assert_array_equal(kept, np.arange(8, len(labels)))
    assert notes == [
        "7 cells have no 'cell_type' and were left out.",
        "1 values of 'cell_type' with a single cell were left out: 'lonely'.",
    ]


def test_cells_without_a_group_are_left_out_when_split_by_it(cells):
    donors = cells.obs["donor"].to_numpy(object)
    donors[[3, 5]] = None
    obs = with_obs(cells, donor=donors).obs
    kept, notes = usable_cells(obs, BY_DONOR)
    assert not {3, 5} & set(kept)
    assert notes == ["2 cells have no 'donor' and were left out."]
    assert len(usable_cells(obs, SPEC)[0]) == len(obs)


def test_a_label_that_training_cells_lack_counts_as_wrong(cells):
    labels = cells.obs["cell_type"].to_numpy(object)
    only = np.flatnonzero(cells.obs["donor"] == "anna")[:6]
    labels[only] = "of anna"
    report = annotation(with_obs(cells, cell_type=labels), BY_DONOR)
    assert report.tables["confusion"].set_index("true class").loc["of anna", "of anna"] == 0
    assert report.tables["classes"].set_index("class").loc["of anna", "model"] == 0
    assert any("test cells have a label that their training cells lack" in n for n in report.notes)


@pytest.mark.parametrize(
    ("columns", "spec", "message"),
    [
        ({"cell_type": "same"}, SPEC, "'cell_type' has one value only"),
        ({"cell_type": [str(i) for i in range(420)]}, SPEC, "no value that two cells share"),
        ({"cell_type": [None] * 420}, SPEC, "no value that two cells share"),
        ({"donor": "anna"}, BY_DONOR, "'donor' has one value only, so none can be held out"),
        ({"cell_type": [str(i // 2) for i in range(420)]}, SPEC, "too few for a stratified split"),
    ],
)
def test_what_cannot_be_scored_is_refused(cells, columns, spec, message):
    with pytest.raises(CellrayError, match=message):
        annotation(with_obs(cells, **columns), spec)


def test_embeddings_that_are_not_finite_are_refused(cells):
    broken = np.full_like(cells.frozen["model"], np.nan)
    with pytest.raises(CellrayError, match="NaN"):
        annotation(replace(cells, frozen=cells.frozen | {"model": broken}), SPEC)


def test_a_handful_of_cells_is_enough(cells):
    few = cells.take(np.flatnonzero(np.isin(cells.obs["cell_type"], ["type 0", "type 1"]))[:8])
    report = annotation(few, SPEC.model_copy(update={"splits": 1}))
    assert report.protocol.startswith("8 cells of 2 types were split 70/30 once")


def test_the_task_is_in_the_table():
    assert TASKS["annotation"].run is annotation
