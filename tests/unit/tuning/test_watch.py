"""The driver's view: the budget, the line a trial, and the sweep's own curve."""

from types import SimpleNamespace

import optuna
import pytest
from ray.exceptions import RayActorError, RayTaskError

from cellray.core.errors import CellrayError
from cellray.tuning.result import best_trial
from cellray.tuning.search import CELLS, EARLIER, FAILED, SECONDS, STOPPED, StudyScheduler
from cellray.tuning.sections import Budget
from cellray.tuning.watch import Watch, budget_left


def attributes(study, **values):
    for name, value in values.items():
        study.set_user_attr(name, value)


def earlier(*values):
    return optuna.trial.create_trial(values=values, user_attrs={EARLIER: True})


def test_a_budget_in_trials_counts_those_that_were_begun_by_this_sweep(searched, tune):
    session = tune(searched())
    session.study.add_trial(earlier(9.0))
    session.study.enqueue_trial({"optim.lr": 1e-3})
    session.study.enqueue_trial({"optim.lr": 2e-3})
    budget = Budget(trials=3)
    assert budget_left(session.study, budget)
    session.end(session.begin(), 0.5)
    failed = session.begin()
    session.end(failed, error=True)
    assert budget_left(session.study, budget)
    session.begin()  # still under way
    assert not budget_left(session.study, budget)
    assert budget_left(session.study, Budget(trials=4))


@pytest.mark.parametrize(
    ("budget", "left"),
    [
        ({"hours": 1}, False),
        ({"hours": 1.1}, True),
        ({"cells": 1000}, False),
        ({"cells": 1001}, True),
        ({"hours": 2, "cells": 1000}, False),
        ({"hours": 2, "cells": 2000}, True),
    ],
    ids=str,
)
def test_a_budget_in_hours_and_cells(budget, left, searched, tune):
    session = tune(searched())
    study = session.study
    attributes(study, **{SECONDS: 3000.0})
    for cells in (400, 600):
        session.end(session.begin(), 0.5, **{CELLS: cells})
    assert budget_left(study, Budget(trials=None, **budget), 600.0) == left


@pytest.fixture
def watched(searched, tune):
    """Give a function that makes a session and its watch, which keeps what it puts and says."""

    def make(space=None, **settings):
        sweep = searched(space, **settings)
        session, seen = tune(sweep), SimpleNamespace(records=[], lines=[], shown=[])
        outbox = SimpleNamespace(put=seen.records.extend)
        watch = Watch(
            sweep,
            session.study,
            outbox,
            None,
            lambda *told: seen.shown.append(told),
            seen.lines.append,
        )
        return session, watch, seen

    return make


def test_a_line_says_how_a_trial_ended_and_where_it_was(watched):
    space = {"encoder.widths": {"choice": [[32, 16]]}, "optim.clip": {"uniform": [0.25, 0.25]}}
    session, watch, seen = watched(space, search={"pruner": "median"}, budget={"trials": 5})
    where = "; encoder.widths=[32, 16], optim.clip=0.25"
    trials = [session.begin() for _ in range(4)]
    session.end(trials[0], **{FAILED: "a batch does not fit"})
    watch.on_trial_complete(0, [], trials[0])
    session.end(trials[1], 0.5, **{CELLS: 100})
    watch.on_trial_complete(0, [], trials[1])
    report = {"value": 0.75, "tenth": 3}
    StudyScheduler(session.study).on_trial_result(None, trials[2], report)
    session.end(trials[2], **report, **{CELLS: 30})
    watch.on_trial_complete(0, [], trials[2])
    session.lose(trials[3], RayActorError())
    watch.on_trial_error(0, [], trials[3])
    best = " (best 0.5 of trial 1)"
    assert seen.lines == [
        f"trial 0 failed: a batch does not fit{where}",
        f"trial 1 validation_loss 0.5{best}{where}",
        f"trial 2 pruned at 30 % with validation_loss 0.75{best}{where}",
        f"trial 3 failed: its process was lost{best}{where}",
    ]
    assert [(one["step"], one["cells"]) for one in seen.records] == [
        (1, 0),
        (2, 100),
        (3, 130),
        (4, 130),
    ]
    assert [one.get("best_validation_loss") for one in seen.records] == [None, 0.5, 0.5, 0.5]
    assert seen.shown == [("sweep", done, 5) for done in range(5)]
    spent = session.study.user_attrs
    assert 0 < spent[SECONDS] < 60
    assert watch.may_begin()


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (KeyError("gene"), "KeyError: 'gene'"),
        (CellrayError("the bucket is away", "mend it"), "the bucket is away"),
        (RuntimeError("one line\nand more"), "RuntimeError: one line"),
    ],
    ids=["any", "cellray", "lines"],
)
def test_what_a_process_raised_is_said_and_kept(cause, said, watched):
    session, watch, seen = watched()
    trial = session.begin()
    error = RayTaskError("train", "a traceback", cause).as_instanceof_cause()
    trial.get_pickled_error = lambda: error
    watch.on_trial_recover(0, [], trial)
    assert seen.lines == [f"trial 0 is tried again: {said}"]
    session.lose(trial, error)
    watch.on_trial_error(0, [], trial)
    assert seen.lines[-1].startswith(f"trial 0 failed: {said};")
    with pytest.raises(CellrayError, match=f"trial 0: {said}"):
        best_trial(session.sweep, session.study)


def test_a_trial_that_is_stopped_has_not_ended(watched):
    session, watch, seen = watched()
    trial = session.begin()
    session.end(trial, **{STOPPED: True})
    watch.on_trial_complete(0, [], trial)
    assert watch.error is None
    assert seen.lines == ["trial 0 is stopped, and goes on when the sweep does"]
    assert seen.records == []


def test_what_goes_wrong_in_counting_ends_the_sweep(watched):
    session, watch, _ = watched()
    watch._outbox.put = None
    trial = session.begin()
    session.end(trial, 0.5)
    watch.on_trial_complete(0, [], trial)
    assert isinstance(watch.error, TypeError)
    assert not watch.may_begin()


def test_trials_that_all_fail_are_not_begun_for_ever(searched, tune):
    session = tune(searched())
    budget = Budget(trials=None, cells=1e9)
    for _ in range(10):
        assert budget_left(session.study, budget)
        session.end(session.begin(), error=True)
    assert not budget_left(session.study, budget)


def test_the_best_is_the_highest_f1_and_never_an_earlier_sweeps(watched):
    session, watch, seen = watched(metric="knn_macro_f1")
    session.study.add_trial(earlier(0.99))
    for value in (0.25, 0.75, 0.5):
        trial = session.begin()
        session.end(trial, knn_macro_f1=value, ended=True)
        watch.on_trial_complete(0, [], trial)
    assert [one["best_knn_macro_f1"] for one in seen.records] == [0.25, 0.75, 0.75]
    assert [one["step"] for one in seen.records] == [1, 2, 3]
    assert "(best 0.75 of trial 2)" in seen.lines[-1]


def test_two_metrics_are_both_said_and_the_first_is_the_curve(watched):
    session, watch, seen = watched(two=True)
    trial = session.begin()
    session.end(trial, 0.5, 0.25)
    watch.on_trial_complete(0, [], trial)
    assert seen.lines[0].startswith("trial 0 validation_loss 0.5, knn_macro_f1 0.25 (best 0.5 of")
    assert seen.records[0]["best_validation_loss"] == 0.5


def test_time_of_all_sessions_is_counted(watched, monkeypatch):
    clock = iter([100.0, 130.0, 135.0])
    monkeypatch.setattr("cellray.tuning.watch.time.monotonic", lambda: next(clock))
    session, watch, _ = watched(budget={"trials": None, "hours": 40 / 3600})
    attributes(session.study, **{SECONDS: 10.0})
    trial = session.begin()
    session.end(trial, 0.5)
    watch.on_trial_complete(0, [], trial)
    assert session.study.user_attrs[SECONDS] == 40.0
    assert not watch.may_begin()


def test_the_studys_file_is_kept_as_trials_begin_and_end(searched, tune):
    sweep = searched()
    session, kept = tune(sweep), []
    file = SimpleNamespace(keep=lambda: kept.append(session.study.trials[0].state.name))
    outbox = SimpleNamespace(put=lambda records: None)
    watch = Watch(sweep, session.study, outbox, file, None, lambda line: None)
    trial = session.begin()
    watch.on_trial_start(0, [], trial)
    session.end(trial, 0.5)
    watch.on_trial_complete(0, [], trial)
    assert kept == ["RUNNING", "COMPLETE"]
