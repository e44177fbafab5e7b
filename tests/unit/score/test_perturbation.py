"""Effects of perturbations: against SciPy, scikit-learn and loops."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.stats import pearsonr
from sklearn.linear_model import Ridge

from cellray.core.errors import CellrayError
from cellray.score.perturbation import (
    discrimination,
    effect_scores,
    mean_profiles,
    predict_unseen,
)

NO_GENE = np.full(7, -1)


@pytest.fixture
def effects():
    rng = np.random.default_rng(0)
    true = rng.normal(size=(7, 40))
    return true, true + rng.normal(size=(7, 40)), true + rng.normal(size=(7, 40))


def test_profiles_are_the_means_of_their_cells():
    rng = np.random.default_rng(1)
    values, labels = rng.poisson(1.0, (50, 6)).astype(np.float32), rng.choice(["a", "b", "c"], 50)
    expected = [values[labels == "c"].mean(axis=0), values[labels == "a"].mean(axis=0)]
    for matrix in (values, csr_matrix(values)):
        np.testing.assert_allclose(mean_profiles(matrix, labels, ["c", "a"]), expected, rtol=1e-6)


def test_scores_equal_scipy_without_the_perturbed_gene(effects):
    true, predicted, changes = effects
    own = np.array([3, -1, 0, 39, 5, 5, -1])
    found = effect_scores(true, predicted, changes, own)
    for p in range(7):
        genes = np.array([g for g in range(40) if g != own[p]])
        top = sorted(genes, key=lambda g: -abs(changes[p, g]))[:20]
        assert found["pearson_delta"][p] == pytest.approx(
            pearsonr(true[p, genes], predicted[p, genes])[0]
        )
        assert found["pearson_top20"][p] == pytest.approx(
            pearsonr(true[p, top], predicted[p, top])[0]
        )
        assert found["mse"][p] == pytest.approx(
            np.mean((true[p, genes] - predicted[p, genes]) ** 2)
        )
        apart = [np.abs(predicted[p, genes] - true[q, genes]).sum() for q in range(7)]
        farther = sum(apart[q] > apart[p] for q in range(7))
        assert found["discrimination"][p] == farther / 6


def test_a_perfect_prediction_and_one_of_no_change(effects):
    true, _, changes = effects
    best = effect_scores(true, true, changes, NO_GENE)
    assert {name: value.mean() for name, value in best.items()} == {
        "pearson_delta": pytest.approx(1),
        "pearson_top20": pytest.approx(1),
        "discrimination": 1,
        "mse": 0,
    }
    none = effect_scores(true, 0 * true, changes, NO_GENE)
    assert none["pearson_delta"].tolist() == none["pearson_top20"].tolist() == [0] * 7
    assert none["mse"].mean() == pytest.approx(np.mean(true**2))


def test_one_prediction_for_all_discriminates_at_chance(effects):
    true, predicted, _ = effects
    same = np.tile(predicted[0], (7, 1))
    assert discrimination(true, same, NO_GENE).mean() == pytest.approx(0.5)
    tied = np.zeros_like(true)  # all true effects the same: nothing can be told apart
    assert discrimination(tied, predicted, NO_GENE).tolist() == [0.5] * 7


def linear_effects(n=12, *, noise=0.05):
    """Effects that follow the genes' embeddings, and a mean far from zero."""
    rng = np.random.default_rng(2)
    genes = rng.normal(size=(n, 3))
    effects = 2 + genes @ rng.normal(size=(3, 30)) + noise * rng.normal(size=(n, 30))
    return genes, effects


def test_embeddings_that_know_the_effects_predict_unseen_ones_and_shuffled_ones_do_not():
    genes, effects = linear_effects()
    shuffled = np.random.default_rng(0).permutation(genes)
    found = predict_unseen(effects, np.arange(12), {"known": genes, "other": shuffled}, seed=0)
    errors = {name: np.mean((effects - told) ** 2) for name, told in found.items()}
    assert errors["known"] < 0.05 * errors["mean_effect"]
    assert errors["other"] > 0.7 * errors["mean_effect"]


def test_nothing_of_a_held_out_effect_is_used():
    genes, effects = linear_effects(8)
    places = np.arange(8)
    one = predict_unseen(effects, places, {"known": genes}, seed=0)
    changed = effects.copy()
    changed[5] = 1e3
    two = predict_unseen(changed, places, {"known": genes}, seed=0)
    for name in ("known", "mean_effect"):
        np.testing.assert_array_equal(one[name][5], two[name][5])
        assert not np.allclose(one[name][4], two[name][4])
    np.testing.assert_allclose(one["mean_effect"][5], np.delete(effects, 5, axis=0).mean(axis=0))


def test_the_penalty_is_the_best_of_leaving_one_out():
    genes, effects = linear_effects(7, noise=2.0)
    told = predict_unseen(effects, np.arange(7), {"known": genes}, seed=0)["known"][2]
    kept = np.delete(np.arange(7), 2)
    mean = effects[kept].mean(axis=0)
    inputs = genes - genes[kept].mean(axis=0)
    inputs /= np.sqrt(np.mean(inputs[kept] ** 2))

    def ridge(alpha, rows):
        return Ridge(alpha=alpha, fit_intercept=False).fit(inputs[rows], effects[rows] - mean)

    def error(alpha):
        return np.mean(
            [
                (effects[v] - mean - ridge(alpha, kept[kept != v]).predict(inputs[[v]])[0]) ** 2
                for v in kept
            ]
        )

    best = min((10.0**power for power in range(-2, 6)), key=error)
    np.testing.assert_allclose(told, mean + ridge(best, kept).predict(inputs[[2]])[0], rtol=1e-6)


def test_perturbations_whose_gene_is_not_measured_train_the_mean_alone():
    genes, effects = linear_effects()
    places = np.array([0, 4, 7, 9])
    found = predict_unseen(effects, places, {"known": genes[places]}, seed=0)
    np.testing.assert_allclose(found["mean_effect"][1], np.delete(effects, 4, axis=0).mean(axis=0))
    constant = predict_unseen(effects, places, {"flat": np.ones((4, 3))}, seed=0)
    np.testing.assert_allclose(constant["flat"], constant["mean_effect"])


def test_two_genes_are_too_few():
    with pytest.raises(CellrayError, match="need three genes with an embedding, not 2"):
        predict_unseen(np.ones((5, 4)), np.array([0, 1]), {}, seed=0)
