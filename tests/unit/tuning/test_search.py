"""The study as Tune sees it: what is handed out, what is told, and who is pruned."""

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from cellray.core.errors import CellrayError
from cellray.tuning.cmaes import PlainCmaEsSampler
from cellray.tuning.points import draw
from cellray.tuning.search import (
    CELLS,
    EARLIER,
    FAILED,
    PRUNERS,
    RUN,
    SAMPLERS,
    SECONDS,
    STOPPED,
    StudyScheduler,
    ended,
    open_study,
    own,
)
from cellray.tuning.sections import Search

SPACE = {
    "optim.lr": {"loguniform": [1e-4, 1e-2]},
    "train.epochs": {"logint": [1, 64]},
    "encoder.widths": {"choice": [[16], [32, 16]]},
    "m": {"branches": {"a": {"optim.weight_decay": {"uniform": [0, 1]}}, "b": {}}},
}
STATES = TrialState


def points(sweep, url, count):
    """Draw points whose value is their learning rate's distance from 0.003."""
    study, found = open_study(sweep, "s", url), []
    for _ in range(count):
        trial = study.ask()
        found.append(draw(trial, sweep.space))
        study.tell(trial, abs(np.log(found[-1]["optim.lr"] / 3e-3)))
    return found


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("tpe", optuna.samplers.TPESampler),
        ("gp", optuna.samplers.GPSampler),
        ("cmaes", PlainCmaEsSampler),
        ("random", optuna.samplers.RandomSampler),
        ("nsga2", optuna.samplers.NSGAIISampler),
    ],
)
def test_a_sampler_by_its_name_draws_by_its_seed(name, made, searched, tmp_path):
    assert type(SAMPLERS[name](Search())) is made

    def drawn(seed, file):
        sweep = searched(SPACE, search={"sampler": name, "seed": seed, "startup": 2})
        return points(sweep, f"sqlite:///{tmp_path}/{file}.db", 4)

    assert drawn(1, "one") == drawn(1, "again") != drawn(2, "other")


def test_there_is_a_sampler_and_a_pruner_for_every_name():
    fields = Search.model_fields
    assert {*SAMPLERS} == {*fields["sampler"].annotation.__args__}
    assert {*PRUNERS} == {*fields["pruner"].annotation.__args__}
    made = {name: type(make(Search())) for name, make in PRUNERS.items()}
    assert made == {
        "asha": optuna.pruners.SuccessiveHalvingPruner,
        "median": optuna.pruners.MedianPruner,
        "none": optuna.pruners.NopPruner,
    }


@pytest.mark.parametrize("name", ["tpe", "gp", "random", "nsga2"])
def test_two_metrics_are_searched_by_all_samplers_that_are_allowed_them(name, searched, tune):
    session = tune(searched(SPACE, two=True, search={"sampler": name, "startup": 0}))
    prune = StudyScheduler(session.study)
    for count in range(4):
        trial = session.begin()
        report = {"value": 0.5, "tenth": 1}
        assert prune.on_trial_result(None, trial, report) == TrialScheduler.CONTINUE
        session.end(trial, count, -count)
    assert [one.values for one in session.study.trials] == [[n, -n] for n in range(4)]
    assert session.study.directions == [
        optuna.study.StudyDirection.MINIMIZE,
        optuna.study.StudyDirection.MAXIMIZE,
    ]


def test_a_config_is_a_number_and_the_recipes_values(searched, tune):
    space = {"train.epochs": {"int": [2, 4]}, "optim.clip": 2.0} | {
        "n/o: %": {"branches": {"a/b": {"encoder.widths": {"choice": [[16]]}}}}
    }
    (config,) = {str(tune(searched(space)).begin().config) for _ in range(1)}
    assert config in {
        str({"number": 0, "values": {"train.epochs": n, "optim.clip": 2.0, "encoder.widths": [16]}})
        for n in (2, 3, 4)
    }


def test_what_was_under_way_comes_first_then_what_is_waiting_then_no_more(searched, tune):
    sweep = searched(SPACE)
    before = tune(sweep)
    begun = [before.begin() for _ in range(3)]
    before.end(begun[1], 0.5)
    before.study.ask()  # its process was lost before it had drawn
    before.study.enqueue_trial({"optim.lr": 5e-3, "m": "b"})
    budget = iter([True, False, False])
    after = tune(sweep, left=lambda: next(budget))
    again = [after.begin() for _ in range(5)]
    assert [one.config for one in again[:2]] == [begun[0].config, begun[2].config]
    assert again[2].config["number"] == 3
    assert again[2].config["values"].keys() >= {"optim.lr", "train.epochs", "encoder.widths"}
    assert again[3].config["number"] == 4
    assert again[3].config["values"]["optim.lr"] == 5e-3
    assert "optim.weight_decay" not in again[3].config["values"]
    assert again[4] == Searcher.FINISHED == after.begin()
    assert len(after.study.trials) == 5
    for trial in again[:4]:
        after.end(trial, 1.0)
    assert [one.state for one in after.study.trials] == [STATES.COMPLETE] * 5


COST = {CELLS: 640, SECONDS: 1.5, RUN: "run"}


@pytest.mark.parametrize(
    ("values", "told", "state", "failed"),
    [
        ((0.25,), {}, STATES.COMPLETE, None),
        ((), {"value": 0.5, "tenth": 3}, STATES.PRUNED, None),
        ((), {FAILED: "it is too large"}, STATES.FAIL, "it is too large"),
        ((), {"error": True, "value": 0.5, "tenth": 3}, STATES.FAIL, None),
        ((), {}, STATES.FAIL, None),
        ((float("nan"),), {}, STATES.FAIL, "its validation_loss is no finite number"),
        ((float("inf"),), {}, STATES.FAIL, "its validation_loss is no finite number"),
    ],
    ids=str,
)
def test_a_trial_is_told_as_it_ended_and_once(values, told, state, failed, searched, tune):
    session = tune(searched())
    trial = session.begin()
    session.end(trial, *values, **COST, **told)
    known = session.known(trial)
    assert known.state is state
    assert known.values == (list(values) if state is STATES.COMPLETE else known.values)
    assert known.user_attrs == COST | ({FAILED: failed} if failed else {})
    session.end(trial, 99.0)
    session.end(trial, error=True)
    assert session.known(trial) == known
    assert ended(session.study.trials) == session.study.trials


def test_a_sweep_that_is_stopped_begins_nothing_and_its_trials_stay_under_way(searched, tune):
    stop = []
    session = tune(searched(), stopped=lambda: bool(stop))
    first, second = session.begin(), session.begin()
    stop.append(True)
    session.end(first, **{STOPPED: True, RUN: "run"})
    assert session.known(first).state is STATES.RUNNING
    assert session.begin() == Searcher.FINISHED
    session.end(second, 0.5)  # its last step was done
    assert session.known(second).state is STATES.COMPLETE
    # Another session would go on with the first one, unless it is stopped too.
    assert tune(session.sweep, stopped=lambda: True).begin() == Searcher.FINISHED
    assert tune(session.sweep).begin().config == first.config


def test_one_of_two_metrics_that_is_no_number_fails_the_trial(searched, tune):
    session = tune(searched(two=True))
    trial = session.begin()
    session.end(trial, 0.5, float("nan"))
    assert session.known(trial).state is STATES.FAIL
    assert session.known(trial).user_attrs[FAILED] == "its knn_macro_f1 is no finite number"


def test_own_trials_are_those_that_no_earlier_sweep_has_made(searched, tune):
    session = tune(searched())
    session.study.add_trial(optuna.trial.create_trial(value=1.0, user_attrs={EARLIER: True}))
    trial = session.begin()
    assert trial.config["number"] == 1
    assert [one.number for one in own(session.study.trials)] == [1]
    assert ended(own(session.study.trials)) == []


def report(prune, trial, value, tenth):
    """Tell the scheduler what a trial tells Tune; say whether it is stopped."""
    answer = prune.on_trial_result(None, trial, {"value": value, "tenth": tenth})
    return answer == TrialScheduler.STOP


def test_a_tenth_is_reported_once_though_a_trial_goes_on_from_a_checkpoint(searched, tune):
    session = tune(searched(search={"pruner": "median", "startup": 1}))
    prune = StudyScheduler(session.study)
    first, second, third = (session.begin() for _ in range(3))
    assert not report(prune, first, 0.5, 2)
    session.end(first, 0.4)
    assert not report(prune, second, 0.3, 2)
    assert not report(prune, second, 99.0, 2)
    assert not report(StudyScheduler(session.study), second, 99.0, 2)  # in another session, too
    assert session.known(second).intermediate_values == {2: 0.3}
    assert report(prune, third, 99.0, 2)


def test_a_trial_that_goes_on_is_judged_by_what_it_reached_before(searched, tune):
    session = tune(searched(search={"pruner": "median", "startup": 1}))
    first, second = (session.begin() for _ in range(2))
    prune = StudyScheduler(session.study)
    for tenth in (2, 3):
        assert not report(prune, first, 0.5, tenth)
    session.end(first, 0.5)
    assert not report(prune, second, 0.4, 2)
    assert not report(StudyScheduler(session.study), second, 0.6, 3)  # 0.4 is its best
    assert session.known(second).intermediate_values == {2: 0.4, 3: 0.4}


def test_the_end_of_a_trial_is_not_a_place_to_prune(searched, tune):
    session = tune(searched(search={"pruner": "median", "startup": 0}))
    prune, trial = StudyScheduler(session.study), session.begin()
    for result in ({"ended": True, "validation_loss": 9.0}, {FAILED: "it is too large"}):
        assert prune.on_trial_result(None, trial, result) == TrialScheduler.CONTINUE
    assert session.known(trial).intermediate_values == {}


@pytest.mark.parametrize(
    ("metric", "good", "bad"), [("validation_loss", 0.1, 0.9), ("knn_macro_f1", 0.9, 0.1)]
)
def test_the_median_prunes_what_is_behind_at_the_same_share(metric, good, bad, searched, tune):
    sweep = searched(search={"pruner": "median", "startup": 3}, metric=metric)
    session = tune(sweep)
    prune = StudyScheduler(session.study)
    for value in (0.4, 0.5, 0.6):
        trial = session.begin()
        assert not any(report(prune, trial, value, tenth) for tenth in range(1, 10))
        session.end(trial, **{metric: value, "ended": True})
    trial = session.begin()
    assert report(prune, trial, bad, 1)
    trial = session.begin()
    assert not any(report(prune, trial, good, tenth) for tenth in range(1, 10))


def test_successive_halving_lets_a_third_go_on_from_its_tenths(searched, tune):
    session = tune(searched(search={"pruner": "asha"}))
    prune = StudyScheduler(session.study)
    trials = [session.begin() for _ in range(9)]
    left = []
    for trial in trials:
        value = trial.config["number"] / 10  # each is worse than all before it
        stopped_at = next((n for n in range(1, 10) if report(prune, trial, value, n)), None)
        left.append(stopped_at)
    assert left[0] is None
    assert set(left[1:]) <= {1, 3}
    assert left.count(1) >= 6


def test_a_study_that_cannot_be_opened_is_named_without_its_password(searched):
    for url, said in {
        "nonsense": "nonsense cannot be used",
        "sqlite:////nowhere/at/all/study.db": "nowhere.*unable to open",
        "postgresql://ada:secret@localhost:1/x": r"//\*\*\*@localhost",
    }.items():
        with pytest.raises(CellrayError, match=said) as caught:
            open_study(searched(), "s", url)
        assert "secret" not in str(caught.value)
        assert "search.storage" in caught.value.mend


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2"])
def test_a_study_that_is_opened_again_draws_other_points(sampler, searched, tmp_path):
    sweep = searched({"optim.lr": {"uniform": [0.1, 0.9]}}, search={"sampler": sampler})
    drawn = []
    for _ in range(2):
        study = open_study(sweep, "again", f"sqlite:///{tmp_path}/study.db")
        for _ in range(3):
            trial = study.ask()
            drawn.append(trial.suggest_float("optim.lr", 0.1, 0.9))
            study.tell(trial, 0.5)
    assert len({*drawn}) == 6
