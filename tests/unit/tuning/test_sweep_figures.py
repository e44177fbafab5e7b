"""What a sweep draws, whatever its trials were."""

import csv
import io

import matplotlib.image
import optuna
import pytest

from cellray.tuning.figures import DPI, HEIGHT, PANEL, WIDTH, sweep_files
from cellray.tuning.points import draw

NAMES = ["history", "importance", "parallel", "slices"]
BRANCHES = {
    "method": {
        "branches": {
            "a": {"optim.lr": {"loguniform": [1e-4, 1e-2]}},
            "b": {"optim.weight_decay": {"uniform": [0, 1]}},
        }
    }
}
TYPES = {
    "optim.clip": {"choice": [None, 1, 0.5]},
    "train.compile": {"choice": [True, False]},
    "encoder.widths": {"choice": [[16], [32, 16]]},
    "train.epochs": {"logint": [1, 50]},
}


@pytest.fixture
def drawn(searched):
    """Give a function that draws a sweep whose trials had some values: PRUNED, FAIL, or numbers."""

    def make(space, values, **settings):
        sweep = searched(space, **settings)
        study = optuna.create_study(
            directions=["minimize" if mode == "min" else "maximize" for mode in sweep.modes],
            sampler=optuna.samplers.RandomSampler(seed=0),
        )
        for value in values:
            trial = study.ask()
            draw(trial, sweep.space)
            if value == "RUNNING":
                continue
            if value == "PRUNED":
                trial.report(0.5, 1)
            ways = {word: optuna.trial.TrialState[word] for word in ("PRUNED", "FAIL")}
            study.tell(trial, *([] if value in ways else [value]), state=ways.get(value))
        return study, sweep_files(study, sweep)

    return make


def check(files, wanted, keys=1):
    """Assert that files are figures; slices have a panel a key."""
    assert sorted(files) == sorted([*wanted, "trials.csv"])
    for name in wanted:
        image = matplotlib.image.imread(io.BytesIO(files[name]), format="png")
        height, width = image.shape[:2]
        inches = max(WIDTH, PANEL * keys) if "slices" in name else WIDTH
        assert 0.7 < width / (inches * DPI) < 1.2, name
        assert 0.8 < height / (HEIGHT * DPI) < 1.2, name
        assert image[..., :3].std() > 0.01, name  # something is drawn


@pytest.mark.parametrize(
    ("space", "values"),
    [
        ({"optim.lr": {"loguniform": [1e-4, 1e-2]}}, [1.0, 2.0]),
        (BRANCHES, [3.0, 1.0, 2.0, 5.0, 4.0, 6.0]),
        (BRANCHES | TYPES, [3.0, "PRUNED", "FAIL", 2.0, "RUNNING", "PRUNED", 4.0]),
        ({"train.keep": {"choice": [3]}}, [1.0, 2.0, 3.0]),
        ({"optim.lr": {"uniform": [0.1, 0.1]}}, [1.0, 2.0, 3.0]),
        (TYPES, ["FAIL", "PRUNED", 1e30, 2.0, 3.0]),
    ],
    ids=["two", "conditional", "mixed", "one category", "one number", "failed first"],
)
def test_four_figures_where_trials_differ(space, values, drawn):
    study, files = drawn(space, values)
    keys = {key for one in study.trials for key in one.params}
    check(files, [f"validation_loss_{name}.png" for name in NAMES], len(keys))
    rows = list(csv.DictReader(io.StringIO(files["trials.csv"].decode())))
    assert [row["state"] for row in rows] == [one.state.name for one in study.trials]
    for row, trial in zip(rows, study.trials, strict=True):
        assert row["value"] == ("" if trial.value is None else str(trial.value))
        assert {k for k in row if k.startswith("params_") and row[k] != ""} == {
            f"params_{key}" for key, value in trial.params.items() if value is not None
        }


@pytest.mark.parametrize("values", [[1.0], [1.0, 1.0, "FAIL", 1.0]], ids=str)
def test_only_the_history_where_they_do_not(values, drawn):
    check(drawn(BRANCHES, values)[1], ["validation_loss_history.png"])


def test_two_metrics_have_figures_of_their_own_and_a_front(drawn):
    values = [(1.0, 0.5), (2.0, 0.75), "FAIL", (0.5, 0.5), (0.75, 0.25)]
    _, files = drawn(BRANCHES, values, two=True)
    names = [f"{m}_{name}.png" for m in ("validation_loss", "knn_macro_f1") for name in NAMES]
    check(files, [*names, "pareto.png"])
    assert len({files[name] for name in names}) == len(names)
    _, files = drawn(BRANCHES, [(1.0, 0.5), (2.0, 0.5)], two=True)
    alike = ["knn_macro_f1_history.png", "pareto.png"]
    check(files, [*(f"validation_loss_{name}.png" for name in NAMES), *alike])


def test_figures_are_closed_and_the_fonts_left_alone(drawn):
    import matplotlib.pyplot as plt

    before = plt.rcParams["font.family"]
    drawn(BRANCHES, [1.0, 2.0])
    assert plt.get_fignums() == []
    assert plt.rcParams["font.family"] == before
