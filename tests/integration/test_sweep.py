"""Sweeps for real: Ray Tune, Optuna's study on disk, MLflow's runs, processes that are killed."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import optuna
import psutil
import pytest
from optuna.trial import TrialState
from tests.integration.driver import RECIPE, history, start

from cellray.atlas.simulate import Simulation, simulate_anndata
from cellray.atlas.write import ingest
from cellray.core.errors import CellrayError
from cellray.track import catalogue
from cellray.track.life import ALIVE, Sign
from cellray.track.models import resolve
from cellray.track.store import client
from cellray.train.checkpoint import whole_checkpoints
from cellray.train.launch import DRIVER
from cellray.train.run import pretrain
from cellray.train.storage import file_system
from cellray.tuning.run import resume_sweep, sweep
from cellray.tuning.settings import Sweep
from cellray.tuning.trial import NUMBER, PARENT, SWEEP

LABEL = "cell_type"
SPACE = {
    "optim.lr": {"loguniform": [1e-4, 1e-2]},
    "train.epochs": {"int": [3, 5]},
    "objective.widths": {"choice": [[16], [32, 16]]},
}


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    folder = tmp_path_factory.mktemp("atlas")
    cells = simulate_anndata(Simulation(n_cells=800, n_genes=120, seed=5))
    assert LABEL in cells.obs
    cells.write_h5ad(folder / "cells.h5ad")
    return ingest([folder / "cells.h5ad"], folder / "cells.zarr").url


@pytest.fixture
def store(tmp_path, monkeypatch):
    where = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", where)
    monkeypatch.chdir(tmp_path)
    return where


def wanted(space=None, **settings):
    return Sweep.of({"recipe": RECIPE, "space": space or SPACE} | settings)


def children(run_id):
    experiment = client().get_run(run_id).info.experiment_id
    found = client().search_runs([experiment], f"tags.`{SWEEP}` = '{run_id}'")
    return sorted(found, key=lambda run: int(run.data.tags[NUMBER]))


def test_a_sweep_is_a_run_with_a_child_a_trial(atlas, store, ray_local):
    lines = []
    first = {"optim.lr": 0.005, "train.epochs": 4, "objective.widths": [32, 16]}
    searched = wanted(budget={"trials": 4}, first=[first], concurrent=2)
    ref = sweep(searched, atlas, "swept", say=lines.append)
    assert ref.trials == {"complete": 4, "pruned": 0, "failed": 0}
    trials = children(ref.run_id)
    assert [int(run.data.tags[NUMBER]) for run in trials] == [0, 1, 2, 3]
    assert all(run.info.status == "FINISHED" for run in trials)
    assert all(run.data.tags[PARENT] == ref.run_id for run in trials)
    params = trials[0].data.params
    assert [params["optim.lr"], params["train.epochs"], params["objective.widths"]] == [
        "0.005",
        "4",
        "[32, 16]",
    ]
    losses = [run.data.metrics["best_validation_loss"] for run in trials]
    assert ref.values == {"validation_loss": min(losses)}
    assert ref.trial == int(np.argmin(losses))
    assert len(lines) == 4
    assert all(f"trial {n} " in "\n".join(lines) for n in range(4))

    parent = client().get_run(ref.run_id)
    assert parent.info.status == "FINISHED"
    assert Sign.read(parent.data.tags[ALIVE]).here
    best = history(client(), ref.run_id, "best_validation_loss")
    assert [step for step, _ in best] == [1, 2, 3, 4]
    assert best[-1][1] == min(losses)
    files = {found.path for found in client().list_artifacts(ref.run_id)}
    figures = {f"validation_loss_{n}.png" for n in ("history", "parallel", "slices", "importance")}
    assert figures | {"trials.csv", "sweep.json"} <= files

    shown = catalogue.show_model("swept")["versions"]
    assert [one["aliases"] for one in shown] == [["challenger"]]
    assert (shown[0]["tags"]["sweep"], shown[0]["tags"]["trial"]) == (ref.run_id, str(ref.trial))
    assert shown[0]["run_id"] == trials[ref.trial].info.run_id
    assert resolve("models:/swept@challenger").learner.recipe.objective.settings["widths"]


@pytest.mark.slow
def test_a_trial_is_what_pretrain_does(atlas, store, ray_local):
    searched = wanted({"optim.lr": {"loguniform": [1e-4, 1e-2]}}, budget={"trials": 1})
    ref = sweep(searched, atlas, "swept")
    (trial,) = children(ref.run_id)
    alone = pretrain(searched.recipe(ref.params), atlas, "alone")
    found = history(client(), trial.info.run_id)
    assert found == history(client(), alone.run_id)
    assert len(found) > 20
    for name in ("validation_loss", "cells_seen", "embedding_std"):
        assert history(client(), trial.info.run_id, name) == history(client(), alone.run_id, name)
    swept, single = (resolve(f"models:/{name}").learner.state_dict() for name in ("swept", "alone"))
    assert all(np.array_equal(swept[key], single[key]) for key in single)


@pytest.mark.slow
def test_a_trial_that_fails_is_recorded_and_the_others_go_on(atlas, store, ray_local):
    space = {"data.batch_size": {"choice": [64, 100_000]}, "optim.lr": {"uniform": [1e-3, 2e-3]}}
    first = [{"data.batch_size": 100_000, "optim.lr": 1e-3}, {"data.batch_size": 64}]
    searched = Sweep.of(
        {
            "recipe": RECIPE | {"probe": {"label": LABEL, "every": 4}},
            "space": space,
            "metric": "knn_macro_f1",
            "first": first,
            "budget": {"trials": 2},
        }
    )
    lines = []
    ref = sweep(searched, atlas, "swept", say=lines.append)
    assert ref.trials == {"complete": 1, "pruned": 0, "failed": 1}
    assert any(line.startswith("trial 0 failed: ") and "100000" in line for line in lines), lines
    assert 0.3 < ref.values["knn_macro_f1"] <= 1


@pytest.mark.slow
def test_hopeless_trials_end_early_and_make_room(atlas, store, ray_local):
    rates = [3e-3, 3e-3, 3e-3, 1e-7, 1e-7, 1e-7]
    searched = wanted(
        {"optim.lr": {"loguniform": [1e-7, 1e-2]}},
        recipe=RECIPE | {"train": RECIPE["train"] | {"epochs": 10}},
        search={"pruner": "median", "startup": 3},
        first=[{"optim.lr": rate} for rate in rates],
        budget={"trials": 6},
        concurrent=1,
    )
    ref = sweep(searched, atlas, "swept")
    assert ref.trials == {"complete": 3, "pruned": 3, "failed": 0}
    runs = children(ref.run_id)
    epochs = [max(step for step, _ in history(client(), run.info.run_id, "epoch")) for run in runs]
    assert len({*epochs[:3]}) == 1
    assert max(epochs[3:]) < epochs[0] / 2
    assert {run.info.status for run in runs[3:]} == {"KILLED"}


@pytest.mark.slow
def test_two_metrics_are_a_front_and_the_first_chooses(atlas, store, ray_local):
    searched = wanted(
        {"encoder.dim": {"choice": [2, 16]}, "optim.lr": {"loguniform": [1e-4, 1e-2]}},
        recipe=RECIPE | {"probe": {"label": LABEL}},
        metric=["knn_macro_f1", "validation_loss"],
        search={"sampler": "nsga2"},
        budget={"trials": 3},
        concurrent=1,
    )
    ref = sweep(searched, atlas, "swept")
    trials = children(ref.run_id)
    scores = [run.data.metrics["best_knn_macro_f1"] for run in trials]
    assert ref.values["knn_macro_f1"] == max(scores)
    assert ref.values["validation_loss"] == trials[ref.trial].data.metrics["best_validation_loss"]
    files = {found.path for found in client().list_artifacts(ref.run_id)}
    assert {"pareto.png", "knn_macro_f1_history.png", "validation_loss_history.png"} <= files


@pytest.mark.slow
def test_a_sweep_that_ended_takes_more_budget_and_begins_another_one(atlas, store, ray_local):
    ref = sweep(wanted(budget={"trials": 2}), atlas, "swept")
    more = resume_sweep(ref.run_id, budget={"trials": 3})
    assert more.trials["complete"] == 3
    assert [run.data.tags[NUMBER] for run in children(ref.run_id)] == ["0", "1", "2"]
    warm = sweep(wanted(budget={"trials": 1}), atlas, "swept", warm_start=[ref.run_id])
    assert warm.trials["complete"] == 1
    assert len(children(warm.run_id)) == 1
    with pytest.raises(CellrayError, match="no trial is left"):
        resume_sweep(ref.run_id)


@pytest.fixture
def launch(atlas, tmp_path, store):
    """Give a function that starts ``cellray sweep`` in a process of its own."""
    started = []

    def launch(space, *words, **settings):
        document = {"recipe": RECIPE, "space": space} | settings
        (tmp_path / "sweep.yaml").write_text(json.dumps(document))
        options = ["--recipe", "sweep.yaml", "--atlas", atlas, "--name", "swept", *words]
        started.append(start(tmp_path, *options, store=store, verb="sweep"))
        return started[-1]

    yield launch
    for driver in started:
        if driver.process.poll() is None:
            driver.kill()


def sweep_run():
    """Find the store's sweep, and its trials' runs."""
    experiment = client().get_experiment_by_name("cellray")
    if experiment is None:
        return None, []
    found = client().search_runs([experiment.experiment_id], "tags.task = 'sweep'")
    return (found[0].info.run_id, children(found[0].info.run_id)) if found else (None, [])


def until(driver, condition, seconds=240):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        run_id, trials = sweep_run()
        if run_id is not None and condition(trials):
            return run_id, trials
        assert driver.process.poll() is None, driver.said()
        time.sleep(0.1)
    raise AssertionError(driver.said())


def under_way(trials, done):
    """Say whether so many trials have ended, and another one has trained beyond a checkpoint."""
    states = [run.info.status for run in trials]
    return states.count("FINISHED") >= done and any(
        run.data.metrics.get("epoch", 0) >= 2 for run in trials if run.info.status == "RUNNING"
    )


def check_once(run_id, epochs, steps):
    """Assert that every trial trained each of its steps once, and to the end."""
    for run in children(run_id):
        assert run.info.status == "FINISHED"
        found = [step for step, _ in history(client(), run.info.run_id)]
        assert found == list(range(1, epochs * steps + 1)), run.data.tags[NUMBER]


LONG = RECIPE | {"train": RECIPE["train"] | {"epochs": 25}}


@pytest.mark.slow
def test_a_sweep_whose_driver_is_killed_repeats_no_trial_and_loses_none(launch, store, tmp_path):
    driver = launch(
        {"optim.lr": {"loguniform": [1e-4, 1e-2]}},
        recipe=LONG,
        budget={"trials": 4},
        concurrent=1,
    )
    run_id, before = until(driver, lambda trials: under_way(trials, 2))
    ended = {run.info.run_id: run.info.end_time for run in before if run.info.status == "FINISHED"}
    driver.kill()
    again = start(tmp_path, "--resume", run_id, store=store, verb="sweep")
    assert again.ended() == 0, again.said()
    trials = children(run_id)
    assert [run.data.tags[NUMBER] for run in trials] == ["0", "1", "2", "3"]
    assert {
        run.info.run_id: run.info.end_time for run in trials if run.info.run_id in ended
    } == ended
    steps = int(trials[0].data.params["epoch_cells"]) // 64
    check_once(run_id, 25, steps)
    study = optuna.load_study(
        study_name=run_id, storage=f"sqlite:///{tmp_path}/.cellray/runs/{run_id}/study.db"
    )
    assert [one.state for one in study.trials] == [TrialState.COMPLETE] * 4
    assert client().get_run(run_id).info.status == "FINISHED"


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "steps"), [(1, 1_000), (2, 400)])
def test_trials_of_a_sweep_that_is_terminated_stop_in_checkpoints(
    launch, store, tmp_path, workers, steps
):
    # Epochs so long that a trial which is stopped in its second one is far from the ends of it.
    drawn = {"balance": LABEL, "replacement": True, "epoch_cells": 64 * steps}
    training = {"epochs": 2, "num_workers": workers, "log_every": 1}
    driver = launch(
        {"optim.lr": {"loguniform": [1e-4, 1e-2]}},
        recipe=RECIPE | {"data": RECIPE["data"] | drawn, "train": training},
        search={"pruner": "none"},
        budget={"trials": 2},
        concurrent=1,
    )
    run_id, _ = until(
        driver, lambda trials: any("epoch" in run.data.metrics for run in trials), 420
    )
    driver.process.send_signal(signal.SIGTERM)
    assert driver.ended(120) == 143, driver.said()
    said = driver.said().splitlines()
    assert "stopping in a checkpoint; Ctrl-C again ends at once" in said
    assert "trial 0 is stopped, and goes on when the sweep does" in said
    how = f"to go on with this sweep: cellray sweep --resume {run_id}"
    assert said[-2:] == [how, "terminated"]
    (trial,) = children(run_id)
    assert trial.info.status == "KILLED"
    study = f"sqlite:///{tmp_path}/.cellray/runs/{run_id}/study.db"
    (known,) = optuna.load_study(study_name=run_id, storage=study).trials
    assert known.state is TrialState.RUNNING

    system, folder = file_system(str(tmp_path / ".cellray" / "runs" / trial.info.run_id))
    first, last = (one.step for one in whole_checkpoints(system, folder))
    assert first == steps
    assert steps < last < 2 * steps
    found = [step for step, _ in history(client(), trial.info.run_id)]
    assert found == [*range(1, last + 1)]

    again = start(tmp_path, "--resume", run_id, "--trials", "1", store=store, verb="sweep")
    assert again.ended(420) == 0, again.said()
    goes = {int(path.name.split("-")[1]) for path in Path(folder).glob("from-*")}
    assert goes == {0, last}
    assert [run.info.run_id for run in children(run_id)] == [trial.info.run_id]
    check_once(run_id, 2, steps)


@pytest.mark.slow
def test_a_trial_whose_process_is_killed_goes_on_from_its_checkpoint(launch):
    driver = launch(
        {"optim.lr": {"loguniform": [1e-4, 1e-2]}},
        recipe=LONG,
        budget={"trials": 2},
        concurrent=1,
    )
    run_id, trials = until(driver, lambda trials: under_way(trials, 0))
    (mark,) = {run.data.tags[DRIVER] for run in trials if run.info.status == "RUNNING"}
    pid = int(mark.split()[1])
    assert pid in {
        process.pid for process in psutil.Process(driver.process.pid).children(recursive=True)
    }
    os.kill(pid, signal.SIGKILL)
    assert driver.ended() == 0, driver.said()
    assert len(children(run_id)) == 2
    check_once(run_id, 25, int(trials[0].data.params["epoch_cells"]) // 64)


@pytest.mark.slow
def test_trials_of_two_workers_that_are_pruned_or_killed_free_them(launch, ray_local):
    # A second Ray on this machine: Train's own watcher then does not find the one that it is of.
    driver = launch(
        {"optim.lr": {"loguniform": [1e-7, 1e-2]}},
        recipe=RECIPE | {"train": RECIPE["train"] | {"epochs": 10, "num_workers": 2}},
        search={"pruner": "median", "startup": 1},
        first=[{"optim.lr": rate} for rate in (3e-3, 1e-7, 3e-3)],
        budget={"trials": 3},
        concurrent=1,
    )
    run_id, trials = until(driver, lambda trials: len(trials) == 3 and under_way(trials, 1), 420)
    os.kill(int(trials[2].data.tags[DRIVER].split()[1]), signal.SIGKILL)
    assert driver.ended() == 0, driver.said()
    assert "trial 2 is tried again: its process was lost" in driver.said()
    assert "Traceback" not in driver.said()
    assert [run.info.status for run in children(run_id)] == ["FINISHED", "KILLED", "FINISHED"]
    assert client().get_run(run_id).data.params["budget.trials"] == "3"


@pytest.mark.slow
def test_trials_share_a_processor(atlas, store, ray_local):
    searched = wanted(
        {"optim.lr": {"loguniform": [1e-4, 1e-2]}},
        recipe=RECIPE | {"train": RECIPE["train"] | {"epochs": 300}},
        cpus_per_trial=0.5,
        budget={"trials": 4},
    )
    ref = sweep(searched, atlas, "swept")
    assert ref.trials["complete"] == 4
    spans = [(run.info.start_time, run.info.end_time) for run in children(ref.run_id)]
    at_once = [sum(begin <= now < end for begin, end in spans) for now, _ in spans]
    assert max(at_once) > 2  # and there are two processors


@pytest.mark.slow
def test_a_sweep_in_a_bucket_goes_on_where_its_first_machine_is_gone(launch, store, s3, tmp_path):
    words = ["--storage", f"s3://{s3.bucket()}/runs"]
    driver = launch(SPACE, *words, budget={"trials": 2}, concurrent=1)
    assert driver.ended() == 0, driver.said()
    run_id, _ = sweep_run()
    shutil.rmtree(tmp_path / ".cellray")
    again = start(tmp_path, "--resume", run_id, "--trials", "3", store=store, verb="sweep")
    assert again.ended() == 0, again.said()
    trials = children(run_id)
    assert [run.data.tags[NUMBER] for run in trials] == ["0", "1", "2"]
    assert [run.info.status for run in trials] == ["FINISHED"] * 3
    study = optuna.load_study(
        study_name=run_id,
        storage=f"sqlite:///{tmp_path}/.cellray/sweeps/{run_id}/study.db",
    )
    losses = [run.data.metrics["best_validation_loss"] for run in trials]
    assert [one.value for one in study.trials] == losses
