"""The Model Registry: putting learners in, and getting them back by name.

What a version stands for is sealed when it is registered: its tag ``digest`` is taken over all
files, lives in MLflow's database, and is compared with what the artifact store gives before
anything is read. Nothing is ever unpickled, and no module that a file names is imported.
"""

import json
import logging
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow.artifacts
from mlflow.entities import Dataset, DatasetInput, LoggedModelInput, Metric
from mlflow.exceptions import MlflowException

from cellray.core.errors import CellrayError
from cellray.core.secrets import first_line, scrub
from cellray.learn.learner import Learner
from cellray.track.cards import SCORE, note_evaluation, write_cards
from cellray.track.catalogue import aliases_of, find_model, find_version
from cellray.track.evaluations import DIGEST_LENGTH
from cellray.track.folder import load_model, read_facts
from cellray.track.pyfunc import check_flavour
from cellray.track.register import check_name, register
from cellray.track.runs import run
from cellray.track.store import client, store_errors
from cellray.track.uri import tracking_uri

__all__ = ["Resolved", "champion_of", "check_name", "log_evaluation", "register", "resolve"]

logger = logging.getLogger(__name__)


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
    try:
        location = api.get_logged_model(model_id).artifact_location
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise CellrayError(
            f"the model of {canonical} was deleted", "take another version"
        ) from error
    with tempfile.TemporaryDirectory(prefix="cellray-") as scratch:
        try:
            folder = Path(
                mlflow.artifacts.download_artifacts(
                    artifact_uri=location, dst_path=scratch, tracking_uri=tracking_uri()
                )
            )
        except (MlflowException, OSError) as error:
            raise CellrayError(
                scrub(
                    f"the files of {canonical} cannot be read from {location}: {first_line(error)}"
                ),
                "check that the artifact store is reachable, or take another version",
            ) from error
        data = check_flavour(folder, found.tags["digest"], canonical)
        learner, facts = load_model(data), read_facts(data)
    return Resolved(
        learner, facts, canonical, found.name, int(found.version), found.run_id, model_id
    )


@store_errors()
def champion_of(resolved: Resolved) -> Resolved | None:
    """Load the version that is ``@champion``, unless there is none or it is this one."""
    version = aliases_of(find_model(client(), resolved.name)).get("champion")
    if version is None or version == resolved.version:
        return None
    return resolve(f"models:/{resolved.name}/{version}")


def log_evaluation(
    resolved: Resolved,
    *,
    metrics: Mapping[str, float],
    dataset_name: str,
    dataset_digest: str,
    dataset_url: str,
    artifacts: str | Path | None = None,
    params: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
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
    tags
        What else is known of the evaluation.
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
    digest, source = dataset_digest[:DIGEST_LENGTH], json.dumps({"uri": dataset_url})
    data = Dataset(dataset_name, digest, "atlas", source)
    known = {"task": task, "model": resolved.uri, "training_run": resolved.run_id}
    if metrics:
        known[SCORE] = next(iter(metrics))
    tags = {**(tags or {}), **known}
    name = f"{task} {resolved.name} v{resolved.version}"
    with (
        store_errors(),
        run(experiment=experiment, run_name=name, params=params or {}, tags=tags) as run_id,
    ):
        inputs = [DatasetInput(data)], [LoggedModelInput(resolved.model_id)]
        try:
            api.log_inputs(run_id, *inputs)
        except MlflowException as error:
            if error.error_code != "BAD_REQUEST":
                raise
            # Of two runs that are the first with a dataset, MLflow fails one; now it knows it.
            api.log_inputs(run_id, *inputs)
        now = time.time_ns() // 1_000_000
        tied = [
            Metric(key, float(value), now, 0, resolved.model_id, data.name, data.digest)
            for key, value in metrics.items()
        ]
        api.log_batch(run_id, metrics=tied)
        if artifacts is not None:
            api.log_artifacts(run_id, str(artifacts))
    version = (resolved.name, resolved.version)
    files = None if artifacts is None else Path(artifacts)
    try:
        with store_errors():
            note_evaluation(api, run_id, resolved.run_id, version, files)
            write_cards(api, resolved.name, str(resolved.version))
    except (CellrayError, MlflowException) as error:  # the evaluation is whole without it
        logger.warning("%s is evaluated, but its page does not say so: %s", resolved.uri, error)
    return run_id
