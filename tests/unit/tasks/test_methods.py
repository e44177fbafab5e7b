"""What tasks compare is made once, and the seeds that are asked for are those that are used."""

from dataclasses import replace

import numpy as np
import pytest

from cellray.score.clustering import agreement, kmeans
from cellray.tasks import methods
from cellray.tasks import transfer as few
from cellray.tasks.annotation import annotation
from cellray.tasks.cross_modality import cross_modality
from cellray.tasks.integration import integration
from cellray.tasks.task import Spec
from cellray.tasks.transfer import transfer


@pytest.fixture
def fitted(monkeypatch):
    """Which cells each PCA was fitted on; None for all."""
    found, fit = [], methods.pca_embedding

    def counted(counts, **settings):
        train = settings.get("train")
        found.append(None if train is None else len(train))
        return fit(counts, **settings)

    monkeypatch.setattr(methods, "pca_embedding", counted)
    return found


@pytest.mark.parametrize("task", [annotation, cross_modality])
def test_the_pca_of_all_cells_is_fitted_once(cells, fitted, task):
    proteins = {"obsm/protein": cells.frozen["model"]}
    spec = Spec(label="cell_type", matrix="obsm/protein", splits=2)
    task(replace(cells, matrices=proteins), spec)
    assert fitted == [None, 294, 294]


def test_a_pca_that_is_not_shown_is_not_fitted(cells, fitted, monkeypatch):
    monkeypatch.setattr(few, "FRACTIONS", (0.5, 1.0))
    report = transfer(cells, Spec(label="cell_type", splits=2))
    assert {*report.scores["method"]} == {"model", "untrained", "pca", "nearest_centroid"}
    assert fitted == [294, 294]


def test_integration_starts_k_means_from_every_seed(cells):
    report = integration(cells, Spec(label="cell_type", batch="donor", splits=3, seed=5))
    rows = report.scores.query("method == 'untrained'").pivot_table(
        index="split", columns="metric", values="value"
    )
    labels = cells.column("cell_type")
    z = cells.frozen["untrained"]
    expected = [agreement(labels, kmeans(z, 4, seed=seed))["nmi"] for seed in (5, 6, 7)]
    np.testing.assert_allclose(rows["kmeans_nmi"], expected)
    assert len({*expected}) == 3
    assert rows["clisi"].nunique() == 1
    np.testing.assert_allclose(rows["total"], 0.4 * rows["batch"] + 0.6 * rows["bio"])
    assert "from 3 seeds" in report.protocol
