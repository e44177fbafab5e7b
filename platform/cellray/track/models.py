"""The Model Registry: putting learners in, and getting them back by name.

What a version stands for is sealed when it is registered: its tag ``digest`` is taken over all
files, lives in MLflow's database, and is compared with what the artifact store gives before
anything is read. Nothing is ever unpickled, and no module that a file names is imported.
"""

import json
import re
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    LoggedModel,
    LoggedModelInput,
    LoggedModelOutput,
    Metric,
)
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

import cellray
from cellray.core.errors import CellrayError
from cellray.learn.learner import Learner
from cellray.track.catalogue import find_version, list_models, promote, show_model
from cellray.track.folder import load_model, read_facts, save_model
from cellray.track.pyfunc import check_flavour, save_flavour
from cellray.track.runs import git_commit, run
from cellray.track.store import client, store_errors, tracking_uri

__all__ = [
    "Resolved",
    "check_name",
    "list_models",
    "load_model",
    "log_evaluation",
    "promote",
    "register",
    "resolve",
    "save_model",
    "show_model",
]


@dataclass(frozen=True)
class Resolved:
    """A registered model, loaded.

    Attributes
    ----------
    learner
        On the CPU, in evaluation mode.
    facts
        What ``model.json`` says: atlas, digests, seed, commit, metrics.
    uri
        ``models:/NAME/VERSION``, whatever form was asked for.
    name, version
        The registered model and its version.
    run_id
        The run that trained it.
    model_id
        MLflow's id of the logged model, to which metrics are tied.
    """

    learner: Learner
    facts: dict[str, Any]
    uri: str
    name: str
    version: int
    run_id: str
    model_id: str


def check_name(name: str) -> None:
    """Raise unless a model can be registered under this name; ask before a long training."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise CellrayError(
            f"'{name}' cannot name a model", "use letters, digits, '-' and '_', a letter first"
        )


@store_errors()
def register(
    learner: Learner,
    *,
    run_id: str,
    name: str,
    facts: Mapping[str, Any],
    metrics: Mapping[str, float],
) -> int:
    """Log a learner as a model of its run and register it; all of it or nothing.

    Parameters
    ----------
    learner
        The model.
    run_id
        The run that trained it.
    name
        The registered model, made when it is not there.
    facts
        Atlas, atlas digest, cells and seed; they go into the model's files, and the atlas digest
        into the version's tags.
    metrics
        Tied to the model, at the step ``best_step`` when that is among them.

    Returns
    -------
    int
        The new version.
    """
    check_name(name)
    api = client()
    facts = {**facts, "git_commit": git_commit(), "metrics": dict(metrics)}
    model = api.create_logged_model(
        api.get_run(run_id).info.experiment_id,
        name=name,
        source_run_id=run_id,
        params=learner.recipe.flat(),
        model_type="encoder",
    )
    made: ModelVersion | None = None
    try:
        with tempfile.TemporaryDirectory(prefix="cellray-") as scratch:
            folder = Path(scratch) / "model"
            digest = save_flavour(learner, folder, facts=facts, model=model)
            api.log_model_artifacts(model.model_id, str(folder))
        tags = _tags(learner, facts, digest)
        api.set_logged_model_tags(model.model_id, tags)
        api.finalize_logged_model(model.model_id, "READY")
        step = int(metrics.get("best_step", 0))
        api.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
        now = time.time_ns() // 1_000_000
        api.log_batch(
            run_id,
            metrics=[Metric(k, v, now, step, model_id=model.model_id) for k, v in metrics.items()],
        )
        _ensure_registered(api, name)
        made = api.create_model_version(
            name,
            source=model.artifact_location,
            run_id=run_id,
            # MLflow's database does not keep a version's model_id.
            tags={**tags, "model_id": model.model_id},
            description=_describe(learner, facts, model),
            model_id=model.model_id,
        )
        link = json.dumps([{"name": name, "version": made.version}])
        api.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": link})
    except BaseException:
        _discard(api, model, made)
        raise
    return int(made.version)


@store_errors()
def resolve(uri: str) -> Resolved:
    """Find a registered model, check its files against its digest, and load it.

    Parameters
    ----------
    uri
        ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, ``models:/NAME`` (the latest version)
        or ``runs:/RUN_ID`` (the model that the run registered).

    Raises
    ------
    CellrayError
        No such model, alias, version or run (those that exist are named); a model that cellray
        did not register; files that are gone or are not those that were registered.
    """
    api = client()
    found = find_version(api, uri)
    canonical = f"models:/{found.name}/{found.version}"
    model_id = found.tags.get("model_id")
    if not model_id or not found.run_id or "digest" not in found.tags:
        raise CellrayError(
            f"cellray did not register {canonical}", "make one with 'cellray pretrain'"
        )
    location = api.get_logged_model(model_id).artifact_location
    with tempfile.TemporaryDirectory(prefix="cellray-") as scratch:
        try:
            folder = Path(
                mlflow.artifacts.download_artifacts(
                    artifact_uri=location, dst_path=scratch, tracking_uri=tracking_uri()
                )
            )
        except (MlflowException, OSError) as error:
            raise CellrayError(
                f"the files of {canonical} cannot be read from {location}: "
                f"{str(error).splitlines()[0]}",
                "check that the artifact store is reachable, or take another version",
            ) from error
        data = check_flavour(folder, found.tags["digest"], canonical)
        learner, facts = load_model(data), read_facts(data)
    return Resolved(
        learner, facts, canonical, found.name, int(found.version), found.run_id, model_id
    )


def log_evaluation(
    resolved: Resolved,
    *,
    metrics: Mapping[str, float],
    dataset_name: str,
    dataset_digest: str,
    dataset_url: str,
    artifacts: str | Path | None = None,
    params: Mapping[str, str] | None = None,
    task: str = "annotation",
    experiment: str = "cellray",
) -> str:
    """Log an evaluation as a run of its own, its metrics tied to the model and to the data.

    Parameters
    ----------
    resolved
        The model that was evaluated.
    metrics
        Values by name; the registry shows them at the model's version.
    dataset_name, dataset_digest, dataset_url
        The atlas it was evaluated on.
    artifacts
        A folder whose files are kept with the run.
    params
        The protocol, as text.
    task
        What was evaluated.
    experiment
        MLflow experiment.

    Returns
    -------
    str
        The evaluation's run id.

    Raises
    ------
    CellrayError
        The tracking store does not answer or refuses.
    """
    api = client()
    # MLflow stores 36 characters of a digest at most.
    data = Dataset(dataset_name, dataset_digest[:32], "atlas", json.dumps({"uri": dataset_url}))
    tags = {"task": task, "model": resolved.uri, "training_run": resolved.run_id}
    name = f"{task} {resolved.name} v{resolved.version}"
    with (
        store_errors(),
        run(experiment=experiment, run_name=name, params=params or {}, tags=tags) as run_id,
    ):
        api.log_inputs(run_id, [DatasetInput(data)], [LoggedModelInput(resolved.model_id)])
        now = time.time_ns() // 1_000_000
        tied = [
            Metric(key, float(value), now, 0, resolved.model_id, data.name, data.digest)
            for key, value in metrics.items()
        ]
        api.log_batch(run_id, metrics=tied)
        if artifacts is not None:
            api.log_artifacts(run_id, str(artifacts))
    return run_id


def _tags(learner: Learner, facts: Mapping[str, Any], digest: str) -> dict[str, str]:
    """Give what one searches a registry by; absent facts are left out."""
    tags = {
        "objective": learner.recipe.objective.name,
        "encoder": learner.recipe.encoder.name,
        "genes": str(len(learner.genes)),
        "atlas": facts.get("atlas"),
        "atlas_digest": facts.get("atlas_digest"),
        "git_commit": facts.get("git_commit"),
        "cellray_version": cellray.__version__,
        "digest": digest,
    }
    return {name: str(value) for name, value in tags.items() if value}


def _describe(learner: Learner, facts: Mapping[str, Any], model: LoggedModel) -> str:
    """Write the Markdown that the registry shows of a version."""
    recipe = learner.recipe
    made = (
        f"`{recipe.encoder.name}` encoder of {len(learner.genes):,} genes into "
        f"{learner.encoder.dim} dimensions, pre-trained with the `{recipe.objective.name}` "
        "objective"
    )
    if "cells" in facts:
        made += f" on {facts['cells']:,} cells"
    if "atlas" in facts:
        made += f" of `{facts['atlas']}`"
    link = f"#/experiments/{model.experiment_id}/runs/{model.source_run_id}"
    return f"{made}.\n\n[The run that made it]({link})"


def _ensure_registered(api: MlflowClient, name: str) -> None:
    try:
        api.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _discard(api: MlflowClient, model: LoggedModel, made: ModelVersion | None) -> None:
    """Take back what a failed `register` left; what cannot be taken back hides no first error."""
    with suppress(MlflowException):
        if made is not None:
            api.delete_model_version(made.name, made.version)
    with suppress(MlflowException):
        api.delete_logged_model(model.model_id)
    with suppress(MlflowException, OSError):
        store = get_artifact_repository(model.artifact_location, tracking_uri=tracking_uri())
        store.delete_artifacts()  # type: ignore[no-untyped-call]
