"""Tasks on cells whose types one embedding knows, another does not; and tasks of other packages."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, silhouette_score

from cellray.core.errors import CellrayError
from cellray.score.integration import integration as scib
from cellray.tasks.annotation import annotation
from cellray.tasks.clustering import clustering
from cellray.tasks.integration import integration
from cellray.tasks.table import find_task
from cellray.tasks.task import Spec, bounds_of

LABEL = Spec(label="cell_type", splits=2)
MIXED = Spec(label="cell_type", batch="donor")

DOCUMENTED = Path("docs/evaluation.md").read_text()
PACKAGE = re.search(r"```python\n(.*?)```", DOCUMENTED, re.DOTALL)[1] + "\nNO_TASK = norms\n"
ENTRY_POINT = re.search(r"```toml\n(.*?)```", DOCUMENTED, re.DOTALL)[1]
PROJECT = f"""
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "own-tasks"
version = "1.0"
{ENTRY_POINT}
function = "own_tasks:NO_TASK"
gone = "own_tasks:GONE"
annotation = "own_tasks:TASK"
[tool.setuptools]
py-modules = ["own_tasks"]
"""


def value(report, method, readout, metric):
    return report.metrics[f"{method}/{readout}/{metric}"]


def with_champion(cells, z):
    return replace(cells, frozen={**cells.frozen, "champion": z})


@pytest.fixture(scope="module")
def clustered(cells):
    return clustering(cells, LABEL)


def test_clusters_agree_with_labels_where_the_embedding_knows_them(clustered):
    assert value(clustered, "model", "kmeans", "ari") > 0.9
    assert value(clustered, "model", "leiden", "nmi") > 0.6
    assert abs(value(clustered, "untrained", "kmeans", "ari")) < 0.05
    assert value(clustered, "model", "labels", "asw") > value(
        clustered, "untrained", "labels", "asw"
    )
    assert clustered.scores["split"].nunique() == 2


def test_clustering_scores_equal_scikit_learn(cells, clustered):
    labels = cells.obs["cell_type"].astype(str).to_numpy()
    for method in ("model", "untrained"):
        z = cells.frozen[method]
        found = KMeans(4, n_init=10, random_state=0).fit_predict(z)
        row = clustered.scores.query(
            f"method == '{method}' and readout == 'kmeans' and metric == 'ari' and split == 0"
        )
        expected = adjusted_rand_score(labels, found)
        assert row["value"].item() == pytest.approx(expected, abs=0.02)  # other starts
        width = (silhouette_score(z, labels) + 1) / 2
        assert value(clustered, method, "labels", "asw") == pytest.approx(width, abs=1e-5)


def test_permuted_labels_cluster_at_chance(cells):
    order = np.random.default_rng(0).permutation(len(cells.obs))
    obs = cells.obs.assign(cell_type=cells.obs["cell_type"].to_numpy()[order])
    found = clustering(replace(cells, obs=obs), LABEL)
    assert abs(value(found, "model", "leiden", "ari")) < 0.05


def test_permuted_labels_are_annotated_at_chance(cells):
    order = np.random.default_rng(0).permutation(len(cells.obs))
    labels = cells.obs["cell_type"].to_numpy()[order]
    found = annotation(replace(cells, obs=cells.obs.assign(cell_type=labels)), LABEL)
    most = pd.Series(labels).value_counts(normalize=True).max()
    assert value(found, "model", "knn", "micro_f1") < most + 0.05


def test_integration_is_scib_on_these_cells(cells):
    found = integration(cells, MIXED)
    labels = cells.obs["cell_type"].astype(str).to_numpy()
    donors = cells.obs["donor"].astype(str).to_numpy()
    expected = scib(cells.frozen["untrained"], donors, labels, seed=0)
    for metric in ("clisi", "ilisi", "graph_connectivity", "bras"):
        assert value(found, "untrained", "scib", metric) == pytest.approx(expected[metric])
    total = 0.4 * value(found, "model", "scib", "batch") + 0.6 * value(
        found, "model", "scib", "bio"
    )
    assert value(found, "model", "scib", "total") == pytest.approx(total)
    assert value(found, "model", "scib", "bio") > value(found, "untrained", "scib", "bio")


def test_integration_needs_two_batches(cells):
    one = replace(cells, obs=cells.obs.assign(donor="anna"))
    with pytest.raises(CellrayError, match="'donor' has one value only, so there is nothing to"):
        integration(one, MIXED)


@pytest.mark.parametrize("split_by", [None, "donor"])
def test_intervals_hold_the_means(cells, split_by):
    report = annotation(cells, Spec(label="cell_type", split_by=split_by))
    bounds = bounds_of(report.intervals)
    assert len(bounds) == 2 * len(report.table)
    for (method, readout, metric), (low, high) in bounds.items():
        assert low <= value(report, method, readout, metric) <= high
    if split_by is None:
        low, high = bounds["untrained", "knn", "micro_f1"]
        assert 0.02 < high - low < 0.2  # of 126 test cells in five splits


def test_one_group_a_split_gives_no_interval_and_says_so(cells):
    halves = np.where(np.arange(len(cells.obs)) % 2 == 0, "left", "right")
    obs = cells.obs.assign(donor=halves)
    report = annotation(replace(cells, obs=obs), Spec(label="cell_type", split_by="donor"))
    assert report.intervals.empty
    assert any("so there are no intervals" in note for note in report.notes)


def test_a_model_is_no_better_than_itself(cells):
    report = annotation(with_champion(cells, cells.frozen["model"]), LABEL)
    table = report.tables["against_champion"]
    assert (table[["difference", "low", "high"]] == 0).all(axis=None)
    assert (table["p"] == 1).all()


def test_a_worse_champion_is_told_from_the_model(cells):
    report = annotation(with_champion(cells, cells.frozen["untrained"]), LABEL)
    for row in report.tables["against_champion"].to_dict("records"):
        ours, theirs = (
            value(report, method, row["readout"], row["metric"]) for method in ("model", "champion")
        )
        assert row["difference"] == pytest.approx(ours - theirs)
        assert 0 < row["low"] <= row["difference"] <= row["high"]
        assert row["p"] < 0.02


def test_rare_classes_are_scored_where_there_are_any(cells):
    assert "rare_f1" not in set(annotation(cells, LABEL).scores["metric"])
    labels = cells.obs["cell_type"].astype(str).to_numpy().copy()
    labels[[3, 50, 200]] = "rare"
    z = cells.frozen["model"].copy()
    z[[3, 50, 200]] = 100
    odd = replace(
        cells,
        obs=cells.obs.assign(cell_type=labels),
        frozen={**cells.frozen, "model": z},
    )
    report = annotation(odd, LABEL)
    assert value(report, "model", "probe", "rare_f1") == 1
    assert value(report, "untrained", "knn", "rare_f1") == 0


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A package with tasks of its own, installed as any other."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    (source / "own_tasks.py").write_text(PACKAGE)
    (source / "pyproject.toml").write_text(PROJECT)
    words = ["install", "--quiet", "--no-index", "--no-build-isolation", "--no-deps"]
    subprocess.run(
        [sys.executable, "-m", "pip", *words, "--target", target, source],
        check=True,
        capture_output=True,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(target)
        yield


def test_an_installed_package_brings_a_task(installed, cells):
    found = find_task("norms").run(cells, Spec())
    length = np.sqrt((cells.frozen["model"] ** 2).sum(axis=1).mean())
    assert value(found, "model", "length", "mean_length") == pytest.approx(length, rel=1e-6)
    assert find_task("annotation").run is annotation  # its name is taken


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("function", "task 'function' is a function, not a cellray.tasks.task.Task"),
        ("gone", "task 'gone' cannot be loaded from own_tasks:GONE"),
        ("normz", "unknown task 'normz'; did you mean 'norms'"),
    ],
)
def test_entry_points_that_give_no_task_are_named(installed, name, said):
    with pytest.raises(CellrayError, match=said):
        find_task(name)


def test_more_splits_do_not_make_intervals_narrower_than_the_cells_allow(cells):
    noisy = replace(cells, frozen={**cells.frozen, "model": cells.frozen["untrained"]})
    widths = []
    for splits in (1, 12):
        bounds = bounds_of(annotation(noisy, LABEL.model_copy(update={"splits": splits})).intervals)
        low, high = bounds["model", "knn", "micro_f1"]
        widths.append(high - low)
    # A split tests 30 % of the cells, twelve of them nearly all: at most sqrt(0.3) times as wide.
    assert 0.4 * widths[0] < widths[1] < widths[0]
