"""The search finds the best masking ratio of docs/benchmarks/surface.md, sooner than chance does.

The surface is that of real runs, recorded; sampler, space and drawing are a sweep's own.
"""

import json

import numpy as np
import pytest
import surface
from scipy.stats import wilcoxon

from cellray.tuning.search import open_study

SEEDS, TRIALS = range(50), 30
RATIOS = surface.GRID[surface.RATIO]
NEAREST = (RATIOS[1] - RATIOS[0]) / 2  # no ratio that was trained with is closer than the best one


@pytest.fixture(scope="module")
def recorded():
    return surface.Surface.load()


@pytest.fixture(scope="module")
def found(recorded):
    """Give the regrets and the ratios of every search's best trial, by sampler."""
    ends = {
        sampler: [surface.search(recorded, sampler, seed, TRIALS) for seed in SEEDS]
        for sampler in ("tpe", "random")
    }
    return {
        sampler: np.array([(regrets[-1], ratios[-1]) for regrets, ratios in each]).T
        for sampler, each in ends.items()
    }


def test_what_is_recorded_is_what_the_command_trains():
    facts = json.loads(surface.RECORDED.read_text())
    assert facts["grid"] == surface.GRID
    assert facts["sweep"] == surface.SWEEP
    assert tuple(facts["seeds"]) == surface.SEEDS


def test_the_surface_is_linear_between_the_runs(recorded):
    scores = np.array(json.loads(surface.RECORDED.read_text())["macro_f1"])
    ratios, rates, epochs = surface.GRID.values()
    middles = np.mean(ratios[2:4]), np.sqrt(rates[1] * rates[2]), np.sqrt(epochs[1] * epochs[2])
    assert recorded.at(*middles) == pytest.approx(scores[:, 2:4, 1:3, 1:3].mean())
    assert recorded.at(ratios[4], rates[-1], epochs[0]) == pytest.approx(scores[:, 4, -1, 0].mean())
    at_best = recorded.at(recorded.best_ratio, *np.meshgrid(rates, epochs))
    assert at_best.max() == pytest.approx(scores.mean(axis=0).max()) == recorded.best


def test_the_search_finds_the_best_masking_ratio(recorded, found):
    _, ratios = found["tpe"]
    assert np.median(np.abs(ratios - recorded.best_ratio)) <= NEAREST


def test_the_search_beats_random_search(found):
    (tpe, _), (random, _) = found["tpe"], found["random"]
    assert tpe.mean() < random.mean()
    assert wilcoxon(tpe, random, alternative="less").pvalue < 0.01


def test_a_study_on_disk_draws_the_same_points(recorded, tmp_path):
    def on_disk(sweep):
        return open_study(sweep, "surface", f"sqlite:///{tmp_path}/study.db")

    there, here = (
        surface.search(recorded, "tpe", 0, TRIALS, study=study)
        for study in (on_disk, surface.in_memory)
    )
    np.testing.assert_array_equal(there, here)
