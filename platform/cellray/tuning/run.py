"""A sweep as one call: study, trials, MLflow's parent run, and the best model registered."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from sqlalchemy.engine import make_url

from cellray.atlas.storage import check_writable
from cellray.atlas.store import Atlas
from cellray.atlas.urls import is_remote
from cellray.core.errors import CellrayError
from cellray.core.logs import resume_command
from cellray.core.types import Progress
from cellray.evaluation.export import check_folder
from cellray.feed.session import ray_session
from cellray.track import models, runs
from cellray.track.life import signs_of_life
from cellray.track.outbox import Outbox
from cellray.track.uri import tracking_uri
from cellray.train.budget import Budget
from cellray.train.launch import DRIVER, driver
from cellray.train.limits import checked_budget
from cellray.train.run import DELIVERY_SECONDS
from cellray.train.setup import prepare
from cellray.train.storage import outbox_file, run_storage
from cellray.tuning.figures import sweep_files
from cellray.tuning.launch import (
    SweepLaunch,
    close_trials,
    earlier_trials,
    find_sweep,
    load_study,
    settle,
)
from cellray.tuning.result import SweepRef, best_trial, registered
from cellray.tuning.search import QUEUED, choose_sampler, open_study, study_errors
from cellray.tuning.settings import Sweep
from cellray.tuning.space import searched
from cellray.tuning.study import StudyFile
from cellray.tuning.trial import Job
from cellray.tuning.tuner import needs_dashboard, run_trials, shared_tracking
from cellray.tuning.watch import Watch, budget_left


def sweep(
    wanted: Sweep,
    atlas: str,
    name: str,
    *,
    experiment: str = "cellray",
    storage: str | None = None,
    warm_start: Sequence[str] = (),
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> SweepRef:
    """Search a space of recipes, and register the best model as ``@challenger``.

    Parameters
    ----------
    wanted
        What is searched, and how.
    atlas
        The atlas's URL.
    name
        The registered model's name.
    experiment, storage
        As of `cellray.pretrain`.
    warm_start
        Ids of sweeps whose trials this one begins with, as far as it knows their parameters.
    progress
        Called with ("sweep", trials that have ended, trials).
    say
        Called with a line for every trial that ends.

    Raises
    ------
    CellrayError
        The space, the atlas, the storage or a server cannot be used; an earlier sweep of another
        metric; no trial has succeeded.
    """
    models.check_name(name)
    opened = Atlas.open(atlas)
    where = run_storage(storage)
    check_writable(where)
    _check(wanted, opened, where)
    earlier = [earlier_trials(one, find_sweep(one), wanted, opened.digest) for one in warm_start]
    params = shown_params(wanted) | {"atlas": opened.url, "atlas_digest": opened.digest}
    with (
        runs.run(
            experiment=experiment,
            run_name=f"{name} sweep",
            params=params,
            tags={"task": "sweep", DRIVER: driver()},
        ) as run_id,
        signs_of_life(run_id),
    ):
        launch = SweepLaunch(
            wanted.document(),
            opened.url,
            opened.digest,
            name,
            where,
            experiment,
        )
        launch.store(run_id)
        StudyFile.of(where, run_id).make_room()
        study = open_study(wanted, run_id, launch.study(run_id))
        for one in earlier:
            study.add_trials(one)
        for point in wanted.first:
            study.enqueue_trial(point)
        study.set_user_attr(QUEUED, True)  # noqa: FBT003 - a value
        choose_sampler(study, wanted.settings.search)  # by how many they are
        return _search(launch, wanted, run_id, study, progress, say)


def resume_sweep(
    run_id: str,
    *,
    budget: Mapping[str, float] | None = None,
    concurrent: int | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> SweepRef:
    """Go on with a sweep whose driver is gone, or with one that has ended and gets more budget.

    No trial that has ended is repeated; those that were under way go on from their checkpoints.

    Parameters
    ----------
    run_id
        MLflow's run of the sweep.
    budget
        Changes of ``trials``, ``hours`` and ``cells``, counted from the sweep's beginning.
    concurrent
        Trials at a time; None is as before.
    progress, say
        As of `sweep`.

    Raises
    ------
    CellrayError
        No such sweep, one that is going on, or whose study is not here; an atlas that has changed;
        and as `sweep`.
    """
    launch = find_sweep(run_id)
    changes = {f"budget.{key}": value for key, value in (budget or {}).items()}
    if concurrent is not None:
        changes["concurrent"] = concurrent
    launch = launch.changed(changes)
    wanted = launch.sweep()
    launch.open_atlas(run_id)
    was = settle(run_id)
    known = load_study(launch.study(run_id), run_id)
    if QUEUED not in known.user_attrs:
        raise CellrayError(
            f"sweep {run_id} was ended while it took in its first points", "start a new one"
        )
    under_way = known.get_trials(deepcopy=False, states=[TrialState.RUNNING])
    if was == "FINISHED" and not under_way and not budget_left(known, wanted.settings.budget):
        raise CellrayError(
            f"sweep {run_id} has spent its budget: no trial is left to begin",
            "give it more with --trials, --hours or --cells, counted from its beginning",
        )
    with runs.reopened(run_id, tags={DRIVER: driver()}), signs_of_life(run_id):
        launch.store(run_id)
        study = open_study(wanted, run_id, launch.study(run_id))
        return _search(launch, wanted, run_id, study, progress, say)


def shown_params(wanted: Sweep) -> dict[str, str]:
    """Give what the parent run shows of how the sweep searches."""
    document = wanted.document()
    flat = {f"search.{key}": value for key, value in document["search"].items()}
    flat |= {f"budget.{key}": value for key, value in document["budget"].items()}
    flat |= {f"space.{key}": value for key, value in document["space"].items()}
    return {key: str(value) for key, value in flat.items()} | {"metric": ", ".join(wanted.metrics)}


def dry_run(
    wanted: Sweep,
    atlas: str,
    name: str,
    *,
    storage: str | None = None,
    warm_start: Sequence[str] = (),
) -> dict[str, Any]:
    """Say what `sweep` would search, and what a trial takes; nothing is started or written.

    Raises
    ------
    CellrayError
        What it refuses before its first trial.
    """
    models.check_name(name)
    opened = Atlas.open(atlas)
    where = run_storage(storage)
    if not is_remote(where):
        check_folder(Path(where))
    trial = _check(wanted, opened, where).document()
    earlier = [earlier_trials(one, find_sweep(one), wanted, opened.digest) for one in warm_start]
    settings = wanted.settings
    at_most = settings.budget.trials
    return {
        "name": name,
        "atlas": opened.url,
        "searched": [*searched(wanted.space)],
        "metric": wanted.measured,
        **settings.budget.model_dump(),
        "trials_known": sum(map(len, earlier)),
        "concurrent": settings.concurrent,
        "steps_of_a_trial": trial["steps"],
        "steps": None if at_most is None else at_most * trial["steps"],
        "bytes_of_memory_of_a_trial": trial["memory"]["host"],
        "bytes_read_at_most": None if at_most is None else at_most * trial["read"],
        "storage": where,
    }


def _check(wanted: Sweep, atlas: Atlas, storage: str) -> Budget:
    """Refuse before the first trial what would fail in all of them; give what one takes."""
    example = wanted.example
    setup = prepare(example, atlas)
    if "validation_loss" in wanted.metrics and not len(setup.validation_cells):
        raise CellrayError(
            "the metric is validation_loss, and no cells are held out for validation",
            "set data.validation above zero, or name a data.split",
        )
    if "knn_macro_f1" in wanted.metrics and example.probe.label is None:
        raise CellrayError(
            "the metric is knn_macro_f1, and no label is named to predict",
            "give --label COLUMN, or set probe.label in the sweep's recipe",
        )
    shared = wanted.settings.search.storage
    if shared is not None and _holds_password(shared):
        raise CellrayError(
            "search.storage holds a password, which MLflow would show",
            "leave it out of the URL, and give it by the database's own means, such as PGPASSFILE",
        )
    return checked_budget(example, atlas, setup, storage)


def _holds_password(url: str) -> bool:
    with study_errors(url):
        parts = make_url(url)
    return parts.password is not None or any("pass" in key.lower() for key in parts.query)


def _search(
    launch: SweepLaunch,
    wanted: Sweep,
    run_id: str,
    study: optuna.Study,
    progress: Progress | None,
    say: Callable[[str], None],
) -> SweepRef:
    """Run trials until the budget is spent, and put the result away."""
    outbox = Outbox(run_id, outbox_file(launch.storage, run_id), uri=tracking_uri())
    file = None if wanted.settings.search.storage else StudyFile.of(launch.storage, run_id)
    watch = Watch(wanted, study, outbox, file, progress, say)
    job = Job(
        wanted,
        run_id,
        launch.atlas,
        launch.name,
        launch.storage,
        launch.experiment,
        folder=str(Path.cwd()),
        tracking=shared_tracking(),
    )
    try:
        if watch.may_begin() or study.get_trials(states=[TrialState.RUNNING]):
            with ray_session(dashboard=needs_dashboard(wanted)):
                run_trials(wanted, run_id, study, job, watch)
        outbox.close(DELIVERY_SECONDS)
    except BaseException:
        with suppress(CellrayError):  # what has ended the sweep says more
            close_trials(run_id)
        say(f"to go on with this sweep: {resume_command('sweep', run_id)}")
        raise
    close_trials(run_id)
    best = best_trial(wanted, study)
    ref = registered(launch, wanted, run_id, study, best)
    runs.log_files(run_id, sweep_files(study, wanted))
    runs.tag_run(run_id, "cellray.best_trial", str(best.number))
    return ref
