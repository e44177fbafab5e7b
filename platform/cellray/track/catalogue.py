"""What the Model Registry holds: finding versions, listing and showing them."""

import re
from datetime import UTC, datetime
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException

from cellray.core.errors import CellrayError, suggest
from cellray.track.store import client, store_errors

PAGE = 1000
FORMS = "give models:/NAME@ALIAS, models:/NAME/VERSION, models:/NAME or runs:/RUN_ID"
MODEL_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[^/@]+))?")
RUN_URI = re.compile(r"runs:/(?P<run>\w+)")


@store_errors()
def list_models() -> list[dict[str, Any]]:
    """List the registered models by name.

    Returns
    -------
    list of dict
        ``name``, ``versions`` (how many), ``latest`` (version or None), ``aliases`` (to versions),
        ``tags`` (by which MLflow's list is searched), ``updated`` (ISO 8601, UTC).
    """
    api = client()
    listed = []
    for model in _models(api):
        versions = _versions(api, model.name)
        listed.append(
            {
                "name": model.name,
                "versions": len(versions),
                "latest": int(versions[0].version) if versions else None,
                "aliases": aliases_of(model),
                "tags": dict(sorted(model.tags.items())),
                "updated": _iso(model.last_updated_timestamp),
            }
        )
    return sorted(listed, key=lambda row: str(row["name"]))


@store_errors()
def show_model(name: str) -> dict[str, Any]:
    """Show a registered model and its versions, the newest first.

    Returns
    -------
    dict
        ``name`` and ``versions``, each a dict of ``version``, ``uri``, ``aliases``, ``metrics``
        (the last value of each, by name), ``tags``, ``created`` (ISO 8601, UTC), ``run_id`` and
        ``description``.

    Raises
    ------
    CellrayError
        No such model; those that exist are named.
    """
    api = client()
    aliases = aliases_of(find_model(api, name))
    return {
        "name": name,
        "versions": [
            {
                "version": int(found.version),
                "uri": f"models:/{name}/{found.version}",
                "aliases": sorted(a for a, v in aliases.items() if v == int(found.version)),
                "metrics": {metric.key: metric.value for metric in tied_metrics(api, found)},
                "tags": dict(sorted(found.tags.items())),
                "created": _iso(found.creation_timestamp),
                "run_id": found.run_id,
                "description": found.description,
            }
            for found in _versions(api, name)
        ],
    }


def models(name: str | None = None) -> list[dict[str, Any]] | dict[str, Any]:
    """List the registered models, or show the versions of one.

    Parameters
    ----------
    name
        Which; None lists all.

    Returns
    -------
    list of dict, or dict
        As of `list_models`, or of `show_model`.

    Raises
    ------
    CellrayError
        No such model; those that exist are named.
    """
    return list_models() if name is None else show_model(name)


def find_model(api: MlflowClient, name: str) -> RegisteredModel:
    """Find a registered model.

    Raises
    ------
    CellrayError
        No such model; those that exist are named.
    """
    try:
        return api.get_registered_model(name)
    except MlflowException as error:
        if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            raise
        raise CellrayError(
            f"no registered model '{name}'", suggest(name, [one.name for one in _models(api)])
        ) from error


def aliases_of(model: RegisteredModel) -> dict[str, int]:
    """Give the versions that a model's aliases point at."""
    return {alias: int(version) for alias, version in sorted(model.aliases.items())}


def tied_metrics(api: MlflowClient, found: ModelVersion) -> list[Metric]:
    """List the metrics tied to a version's model, by training and by evaluations, oldest first.

    There are none where cellray did not register the version, or its model was deleted since.
    """
    model_id = found.tags.get("model_id")
    try:
        tied = (api.get_logged_model(model_id).metrics or []) if model_id else []
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        tied = []
    return sorted(tied, key=lambda metric: (metric.timestamp, metric.step))


def find_version(api: MlflowClient, uri: str) -> ModelVersion:
    """Find the version that a URI names.

    Raises
    ------
    CellrayError
        Another form of URI, or nothing of that name; those that exist are named.
    """
    if run := RUN_URI.fullmatch(uri):
        return _of_run(api, run["run"])
    parts = MODEL_URI.fullmatch(uri)
    if parts is None:
        raise CellrayError(f"'{uri}' is no model URI", FORMS)
    name = parts["name"]
    model = find_model(api, name)
    versions = {str(found.version): found for found in _versions(api, name)}
    if not versions:
        raise CellrayError(f"model '{name}' has no versions", "make one with 'cellray pretrain'")
    wanted = parts["version"]
    if parts["alias"]:
        aliases = aliases_of(model)
        if parts["alias"] not in aliases:
            raise CellrayError(
                f"model '{name}' has no alias '{parts['alias']}'", suggest(parts["alias"], aliases)
            )
        wanted = str(aliases[parts["alias"]])
    elif wanted in {None, "latest"}:
        wanted = next(iter(versions))
    if wanted not in versions:
        raise CellrayError(
            f"model '{name}' has no version '{wanted}'", f"it has {', '.join(reversed(versions))}"
        )
    return versions[wanted]


@store_errors()
def version_of(uri: str) -> str:
    """Give ``models:/NAME/VERSION`` for any URI of `find_version`, without loading anything."""
    found = find_version(client(), uri)
    return f"models:/{found.name}/{found.version}"


@store_errors()
def version_of_run(run_id: str) -> int | None:
    """Give the last version that a run registered; None if it has not registered one."""
    found = _versions_of_run(client(), run_id)
    return int(found[-1].version) if found else None


def _versions_of_run(api: MlflowClient, run_id: str) -> list[ModelVersion]:
    """List what a run registered, the last one last."""
    found = api.search_model_versions(f"run_id='{run_id}'")
    return sorted(found, key=lambda one: int(one.creation_timestamp))


def _of_run(api: MlflowClient, run_id: str) -> ModelVersion:
    try:
        api.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise CellrayError(
            f"no run '{run_id}'", "see the runs with 'cellray ui', or give a models:/ URI"
        ) from error
    found = _versions_of_run(api, run_id)
    if not found:
        raise CellrayError(
            f"run '{run_id}' registered no model", "give the run of a finished 'cellray pretrain'"
        )
    return found[-1]


def _models(api: MlflowClient) -> list[RegisteredModel]:
    found: list[RegisteredModel] = []
    token: str | None = None
    while True:
        page = api.search_registered_models(max_results=PAGE, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _versions(api: MlflowClient, name: str) -> list[ModelVersion]:
    """List a model's versions, the newest first."""
    quoted = name.replace("'", "''")
    found: list[ModelVersion] = []
    token: str | None = None
    while True:
        page = api.search_model_versions(f"name='{quoted}'", max_results=PAGE, page_token=token)
        found += page
        token = page.token
        if not token:
            return sorted(found, key=lambda one: -int(one.version))


def newest_version(api: MlflowClient, name: str) -> ModelVersion | None:
    """Give the newest version of a model that cellray registered; None while there is none."""
    ours = (one for one in _versions(api, name) if one.run_id and "digest" in one.tags)
    return next(ours, None)


def _iso(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
