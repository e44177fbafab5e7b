"""What a trial tells Tune on its way: once a tenth of its own epochs, the best value so far."""

from types import SimpleNamespace

import pytest

from cellray.tuning.search import CELLS, RUN
from cellray.tuning.trial import Follower


@pytest.fixture
def follow(searched):
    """Give a function that makes a follower of a trial of so many steps, and what it tells."""

    def make(steps, metric="validation_loss"):
        plan = SimpleNamespace(steps=steps, batch_size=32)
        setup = SimpleNamespace(choice=SimpleNamespace(plan=plan))
        run = SimpleNamespace(run_id="run", setup=setup)
        return Follower(searched(metric=metric), run), []

    return make


@pytest.mark.parametrize("steps", [10, 30, 100])
def test_every_tenth_but_the_last_is_told_once_at_the_same_share_of_any_length(steps, follow):
    follower, told = follow(steps)
    for step in range(1, steps + 1):
        follower.tell(told.append, [{"step": float(step), "validation_loss": step / steps}])
        follower.tell(told.append, [{"step": float(step), "train_loss": 0.0}])
    assert [one["tenth"] for one in told] == list(range(1, 10))
    assert {one["value"] for one in told} == {1 / steps}
    at = [tenth * steps // 10 for tenth in range(1, 10)]
    assert [one[CELLS] for one in told] == [32 * step for step in at]
    assert {one[RUN] for one in told} == {"run"}


def test_a_trial_of_few_epochs_is_asked_as_often_as_it_has_some(follow):
    follower, told = follow(9)
    for step in (3, 6, 9):
        follower.tell(told.append, [{"step": step, "validation_loss": 1 / step}])
    assert [(one["tenth"], one["value"]) for one in told] == [(3, 1 / 3), (6, 1 / 6)]


@pytest.mark.parametrize(
    ("metric", "best"), [("validation_loss", [3, 3, 2, 2, 1]), ("knn_macro_f1", [3, 5, 5, 5, 5])]
)
def test_it_tells_the_best_so_far(metric, best, follow):
    follower, told = follow(50, metric)
    for place, value in enumerate((3, 5, 2, 4, 1)):
        records = [{"step": 5.0 * place + 3, metric: value}, {"step": 5.0 * place + 5, "x": 1.0}]
        follower.tell(told.append, records)
    assert [one["value"] for one in told] == best


def test_it_tells_nothing_before_the_metric_exists(follow):
    follower, told = follow(20, "knn_macro_f1")
    follower.tell(told.append, [])
    follower.tell(told.append, [{"step": 8.0, "validation_loss": 0.5}])
    follower.tell(told.append, [{"step": 9.0, "knn_macro_f1": float("nan")}])
    assert told == []
    follower.tell(told.append, [{"step": 10.0, "knn_macro_f1": 0.25}])
    assert [(one["tenth"], one["value"]) for one in told] == [(5, 0.25)]


def test_several_records_and_tenths_at_once_are_one_report(follow):
    follower, told = follow(10)
    follower.tell(told.append, [{"step": n, "validation_loss": 1 / n} for n in range(1, 5)])
    assert [(one["tenth"], one["value"]) for one in told] == [(4, 0.25)]
