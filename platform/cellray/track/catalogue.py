"""What the Model Registry holds: finding versions, listing, showing and promoting them."""

import re
from datetime import UTC, datetime
from typing import Any

from mlflow import MlflowClient
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
        ``updated`` (ISO 8601, UTC).
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
                "aliases": _aliases(model),
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
    aliases = _aliases(_model(api, name))
    return {
        "name": name,
        "versions": [
            {
                "version": int(found.version),
                "uri": f"models:/{name}/{found.version}",
                "aliases": sorted(a for a, v in aliases.items() if v == int(found.version)),
                "metrics": _metrics(api, found),
                "tags": dict(sorted(found.tags.items())),
                "created": _iso(found.creation_timestamp),
                "run_id": found.run_id,
                "description": found.description,
            }
            for found in _versions(api, name)
        ],
    }


@store_errors()
def promote(
    name: str,
    *,
    version: int | None = None,
    from_alias: str | None = None,
    to: str = "champion",
) -> dict[str, Any]:
    """Point an alias at a version.

    Parameters
    ----------
    name
        The registered model.
    version, from_alias
        Which version: one of the two.
    to
        The alias.

    Returns
    -------
    dict
        ``name``, ``alias``, ``old`` (version or None) and ``new``.

    Raises
    ------
    CellrayError
        No such model, version or alias (those that exist are named), or an alias that MLflow
        does not take.
    """
    if (version is None) == (from_alias is None):
        raise CellrayError(
            f"which version of '{name}' to promote is not clear",
            "give either a version or an alias that it has",
        )
    api = client()
    old = _aliases(_model(api, name)).get(to)
    word = f"@{from_alias}" if version is None else f"/{version}"
    found = find_version(api, f"models:/{name}{word}")
    try:
        api.set_registered_model_alias(name, to, found.version)
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        raise CellrayError(
            f"'{to}' cannot be an alias", "take letters, digits, '-' and '_'; not 'latest' or 'v1'"
        ) from error
    return {"name": name, "alias": to, "old": old, "new": int(found.version)}


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
    model = _model(api, name)
    versions = {str(found.version): found for found in _versions(api, name)}
    if not versions:
        raise CellrayError(f"model '{name}' has no versions", "make one with 'cellray pretrain'")
    wanted = parts["version"]
    if parts["alias"]:
        aliases = _aliases(model)
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


def _of_run(api: MlflowClient, run_id: str) -> ModelVersion:
    try:
        api.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise CellrayError(
            f"no run '{run_id}'", "see the runs with 'cellray ui', or give a models:/ URI"
        ) from error
    found = api.search_model_versions(f"run_id='{run_id}'")
    if not found:
        raise CellrayError(
            f"run '{run_id}' registered no model", "give the run of a finished 'cellray pretrain'"
        )
    return max(found, key=lambda one: int(one.creation_timestamp))


def _model(api: MlflowClient, name: str) -> RegisteredModel:
    try:
        return api.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise CellrayError(
            f"no registered model '{name}'", suggest(name, [one.name for one in _models(api)])
        ) from error


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


def _aliases(model: RegisteredModel) -> dict[str, int]:
    return {alias: int(version) for alias, version in sorted(model.aliases.items())}


def _metrics(api: MlflowClient, found: ModelVersion) -> dict[str, float]:
    model_id = found.tags.get("model_id")
    logged = (api.get_logged_model(model_id).metrics or []) if model_id else []
    ordered = sorted(logged, key=lambda metric: (metric.timestamp, metric.step))
    return {metric.key: metric.value for metric in ordered}


def _iso(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
