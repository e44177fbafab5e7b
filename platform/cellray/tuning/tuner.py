"""Ray Tune's part of a sweep: which trials run where, and what Tune must be told."""

import os
import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import optuna
import ray
from ray import tune

from cellray.core.errors import CellrayError
from cellray.core.secrets import scrub
from cellray.track.uri import tracking_uri
from cellray.train.fit import wants_gpu
from cellray.train.stopping import Interrupt
from cellray.train.ticker import opened
from cellray.tuning.groups import GroupKeeper
from cellray.tuning.search import StudyScheduler, StudySearch
from cellray.tuning.settings import Sweep
from cellray.tuning.trial import Job, trainable
from cellray.tuning.watch import Watch

READ_CPUS = 0.5  # for Ray Data, beside the workers of a trial
CONTROLLER_CPUS = 0.01  # of a trial that only waits for its workers

# What Tune reads while it runs: Watch does what its loggers would, and Ctrl-C ends the sweep.
QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def run_trials(wanted: Sweep, run_id: str, study: optuna.Study, job: Job, watch: Watch) -> None:
    """Run a study's trials until the budget is spent.

    At Ctrl-C and SIGTERM those that run end in checkpoints, and stay under way in the study.

    Raises
    ------
    CellrayError
        No node has room for one.
    KeyboardInterrupt
        They were stopped.
    """
    settings = wanted.settings
    resources = _resources(wanted)
    _check_room(resources)
    _check_store()
    with (
        opened() as ticker,
        Interrupt(ticker) as interrupt,
        tempfile.TemporaryDirectory(prefix="cellray-tune-") as scratch,
    ):
        trial = trainable(replace(job, stop=ticker))
        tuner = tune.Tuner(
            tune.with_resources(trial, _placed(resources, wanted)),
            tune_config=tune.TuneConfig(
                search_alg=StudySearch(
                    wanted, study, left=watch.may_begin, stopped=lambda: interrupt.stopped
                ),
                scheduler=StudyScheduler(study),
                num_samples=-1,  # until the searcher has no more
                max_concurrent_trials=_at_once(wanted),
                reuse_actors=wanted.alone,  # one that waits for workers is ended with them
            ),
            run_config=tune.RunConfig(
                name=run_id,
                storage_path=scratch,
                failure_config=tune.FailureConfig(max_failures=settings.retries),
                callbacks=[watch, GroupKeeper()],
                verbose=0,
            ),
        )
        interrupt.heed(signal.default_int_handler)
        with _quiet():
            tuner.fit()
    if watch.error is not None:
        raise watch.error
    if interrupt.stopped:
        raise KeyboardInterrupt


def _resources(wanted: Sweep) -> dict[str, float]:
    """Say what a trial's process asks of Ray; workers of its own ask for themselves."""
    if not wanted.alone:
        return {"CPU": CONTROLLER_CPUS}
    settings, train = wanted.settings, wanted.example.train
    gpus = settings.gpus_per_trial
    if gpus is None:
        gpus = float(wants_gpu(wanted.example, _ray_resources()))
    elif not gpus and train.accelerator == "gpu":
        raise CellrayError(
            "train.accelerator is gpu, and gpus_per_trial is 0",
            "set gpus_per_trial to 1, to a part of one, or leave it out",
        )
    gpu = {"GPU": gpus} if gpus else {}
    return {"CPU": settings.cpus_per_trial, **gpu, **train.resources_per_worker}


def _placed(
    resources: dict[str, float], wanted: Sweep
) -> dict[str, float] | tune.PlacementGroupFactory:
    """Ask for nodes with the recipe's labels too, for a trial that trains in its own process."""
    labels = wanted.example.train.labels
    if not (wanted.alone and labels):
        return resources
    return tune.PlacementGroupFactory([resources], bundle_label_selector=[dict(labels)])


def _ray_resources() -> dict[str, float]:
    """Give what all nodes have together."""
    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return found


def _at_once(wanted: Sweep) -> int | None:
    """Say how many trials may run at a time; None leaves it to what they ask of Ray."""
    if wanted.alone or wanted.settings.concurrent is not None:
        return wanted.settings.concurrent
    # A trial that waits for workers asks for next to nothing: all of them would begin at once.
    train = wanted.example.train
    each = train.worlds[-1] * train.cpus_per_worker + READ_CPUS
    return max(1, int(_ray_resources().get("CPU", 0) // each))


def _check_room(resources: Mapping[str, float]) -> None:
    """Refuse trials that no node has room for: they would wait for ever."""
    nodes = [
        node["Resources"]
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]
    if not any(all(node.get(k, 0) >= v for k, v in resources.items()) for node in nodes):
        words = ", ".join(f"{value:g} {key}" for key, value in resources.items())
        raise CellrayError(
            f"no node of this Ray has room for a trial of {words}",
            "set cpus_per_trial and gpus_per_trial in the sweep file, or join a larger cluster",
        )


def _check_store() -> None:
    """Refuse trials on nodes that cannot reach MLflow."""
    nodes = sum(node["Alive"] for node in ray.nodes())  # type: ignore[no-untyped-call]
    uri = tracking_uri()
    if nodes > 1 and uri.startswith("sqlite"):
        raise CellrayError(
            f"trials would run on {nodes} nodes, which do not all reach {uri}",
            "set MLFLOW_TRACKING_URI to a server",
        )


def needs_dashboard(wanted: Sweep) -> bool:
    """Say whether Ray's dashboard is needed: Train's watchers of stopped trials end by it."""
    return not wanted.alone and wanted.settings.search.pruner != "none"


def shared_tracking() -> str | None:
    """Give the tracking store for the trials' processes; one with credentials stays here."""
    uri = tracking_uri()
    return uri if uri == scrub(uri) else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Set what Tune reads from the environment, as long as the block runs."""
    before = {key: os.environ.get(key) for key in QUIET}
    os.environ.update(QUIET)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key)
            else:
                os.environ[key] = value
