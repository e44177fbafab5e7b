"""Which trial's model is registered."""

import numpy as np
import optuna
import pytest

from cellray.core.errors import CellrayError
from cellray.tuning.result import best_trial
from cellray.tuning.search import EARLIER, FAILED


def ended(session, *values):
    for one in values:
        session.end(session.begin(), *one)


def test_the_least_loss_wins_and_of_equal_ones_the_first(searched, tune):
    sweep = searched()
    session = tune(sweep)
    ended(session, [0.5], [0.25], [0.25], [0.75])
    session.end(session.begin(), error=True)
    session.begin()  # still under way
    assert best_trial(sweep, session.study).number == 1


def test_the_highest_f1_wins(searched, tune):
    sweep = searched(metric="knn_macro_f1")
    session = tune(sweep)
    for value in (0.25, 0.75, 0.5):
        session.end(session.begin(), knn_macro_f1=value, ended=True)
    assert best_trial(sweep, session.study).number == 1


def test_of_two_metrics_the_first_chooses_from_the_front(searched, tune):
    sweep = searched(two=True)
    session = tune(sweep)
    ended(session, [0.5, 0.9], [0.25, 0.1], [0.25, 0.8], [0.3, 0.85])
    assert best_trial(sweep, session.study).number == 2
    front = {one.number for one in session.study.best_trials}
    assert 2 in front
    assert 1 not in front
    swapped = searched(metric=["knn_macro_f1", "validation_loss"])
    assert swapped.modes == ("max", "min")


def test_two_metrics_agree_with_optunas_front(searched, tune):
    sweep, rng = searched(two=True), np.random.default_rng(0)
    session = tune(sweep)
    ended(session, *rng.integers(0, 5, (12, 2)).astype(float).tolist())
    best = best_trial(sweep, session.study)
    front = session.study.best_trials
    assert best.number in {one.number for one in front}
    assert best.values[0] == min(one.values[0] for one in front)


def test_an_earlier_sweeps_trial_never_wins(searched, tune):
    sweep = searched()
    session = tune(sweep)
    session.study.add_trial(optuna.trial.create_trial(value=0.0, user_attrs={EARLIER: True}))
    with pytest.raises(CellrayError, match="none of 0 trials has trained to its end"):
        best_trial(sweep, session.study)
    ended(session, [0.5])
    assert best_trial(sweep, session.study).number == 1


def test_where_none_has_succeeded_the_first_failure_is_named(searched, tune):
    sweep = searched()
    session = tune(sweep)
    session.end(session.begin(), value=0.5, tenth=1)
    with pytest.raises(CellrayError, match=r"none of 1 trials has trained to its end.*budget"):
        best_trial(sweep, session.study)
    session.end(session.begin(), **{FAILED: "a batch does not fit"})
    session.end(session.begin(), **{FAILED: "another reason"})
    wanted = "none of 3 trials has succeeded; trial 1: a batch does not fit; mend that"
    with pytest.raises(CellrayError, match=wanted):
        best_trial(sweep, session.study)


def test_a_process_that_was_lost_is_a_failure_without_words(searched, tune):
    sweep = searched()
    session = tune(sweep)
    session.end(session.begin(), error=True)
    with pytest.raises(CellrayError, match="trial 0: its process was lost"):
        best_trial(sweep, session.study)
