"""Registering a learner: its files, its version, and taking both back when a step fails."""

import json
import logging
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

import cellray
from cellray.core.errors import CellrayError
from cellray.core.secrets import scrub
from cellray.core.versions import git_commit
from cellray.learn.learner import Learner
from cellray.track.cards import PICTURE, note_run, searched, tag_run, write_cards, write_model_card
from cellray.track.curve import curve_png
from cellray.track.pyfunc import save_flavour
from cellray.track.store import client, store_errors
from cellray.track.uri import tracking_uri

logger = logging.getLogger(__name__)


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
    tags: Mapping[str, str] | None = None,
) -> int:
    """Log a learner as a model of its run and register it; all of it or nothing.

    Its cards come after, and what keeps them from being written is a warning.

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
    tags
        Of the version, beside those that one searches a registry by.

    Returns
    -------
    int
        The new version.

    Raises
    ------
    CellrayError
        A name that no URI can carry, or a store that refuses, fails or is full.
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
    step = int(metrics.get("best_step", 0))
    try:
        with tempfile.TemporaryDirectory(prefix="cellray-") as scratch:
            folder = Path(scratch) / "model"
            digest = save_flavour(learner, folder, facts=facts, model=model)
            with _storing(model.artifact_location):
                api.log_model_artifacts(model.model_id, str(folder))
        tags = {**(tags or {}), **_tags(learner, facts, digest)}
        api.set_logged_model_tags(model.model_id, tags)
        api.finalize_logged_model(model.model_id, "READY")
        api.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
        now = time.time_ns() // 1_000_000
        api.log_batch(
            run_id,
            metrics=[Metric(k, v, now, step, model_id=model.model_id) for k, v in metrics.items()],
        )
        _ensure_registered(api, name, tags)
        made = api.create_model_version(
            name,
            source=model.artifact_location,
            run_id=run_id,
            # MLflow's database does not keep a version's model_id.
            tags={**tags, "model_id": model.model_id},
            model_id=model.model_id,
        )
        link = json.dumps([{"name": name, "version": made.version}])
        api.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": link})
    except BaseException:
        _discard(api, model, made)
        raise
    _adorn(api, run_id, made, step)
    return int(made.version)


def _adorn(api: MlflowClient, run_id: str, made: ModelVersion, step: int) -> None:
    """Write what MLflow's pages say of a version; it is whole without."""
    try:
        with store_errors():
            _log_picture(api, run_id, step)
            write_cards(api, made.name, made.version)
            note_run(api, run_id, made)
    except (CellrayError, MlflowException, OSError) as error:
        uri = f"models:/{made.name}/{made.version}"
        logger.warning("%s is registered, but its page does not say all: %s", uri, error)


def _tags(learner: Learner, facts: Mapping[str, Any], digest: str) -> dict[str, str]:
    """Give what one searches a registry by; absent facts are left out."""
    tags = {
        "objective": learner.recipe.objective.name,
        "encoder": learner.recipe.encoder.name,
        "genes": len(learner.genes),
        "dimensions": learner.encoder.dim,
        "epochs": learner.recipe.train.epochs,
        "cells": facts.get("cells"),
        "atlas": facts.get("atlas"),
        "atlas_digest": facts.get("atlas_digest"),
        "git_commit": facts.get("git_commit"),
        "cellray_version": cellray.__version__,
        "digest": digest,
    }
    return {name: str(value) for name, value in tags.items() if value}


def _log_picture(api: MlflowClient, run_id: str, step: int) -> None:
    """Keep the run's losses as a picture, for the cards to show."""
    drawn = curve_png(api, run_id, step)
    if drawn is not None:
        with tempfile.TemporaryDirectory(prefix="cellray-") as scratch:
            (Path(scratch) / "curve.png").write_bytes(drawn)
            api.log_artifact(run_id, str(Path(scratch) / "curve.png"))
        tag_run(api, run_id, {PICTURE: "curve.png"})


@contextmanager
def _storing(location: str) -> Iterator[None]:
    try:
        yield
    except (MlflowException, OSError) as error:
        raise CellrayError(
            scrub(f"the model cannot be stored in {location}: {error}"),
            "check that there is room and that you may write there",
        ) from error


def _ensure_registered(api: MlflowClient, name: str, tags: Mapping[str, str]) -> None:
    try:
        # With its tags: where several set one for the first time at once, MLflow fails.
        api.create_registered_model(name, searched(tags))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _discard(api: MlflowClient, model: LoggedModel, made: ModelVersion | None) -> None:
    """Take back what a failed `register` left; what cannot be taken back hides no first error."""
    with suppress(MlflowException):
        if made is not None:
            api.delete_model_version(made.name, made.version)
            write_model_card(api, made.name)
    with suppress(MlflowException):
        api.delete_logged_model(model.model_id)
    with suppress(MlflowException, OSError):
        store = get_artifact_repository(model.artifact_location, tracking_uri=tracking_uri())
        store.delete_artifacts()  # type: ignore[no-untyped-call]
