"""Where jobs go: the cluster's dashboard, and what lets one in."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cellray.cluster.state import MLFLOW_USER, read_credentials
from cellray.core.errors import CellrayError
from cellray.core.ports import is_loopback

LOCAL = Path(".cellray") / "cluster" / "state.json"
"""What ``cellray cluster up`` leaves in the working folder."""

TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
"""What gives the token, and comes before the local cluster's own; in Ray's order."""
VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS")
MEND = "give --address http://HOST:8265, set RAY_API_SERVER_ADDRESS, or run 'cellray cluster up'"


class ClusterError(CellrayError):
    """The cluster is away, or refuses; it may be back later."""


class NoClusterError(CellrayError):
    """Nothing names a cluster."""


@dataclass(frozen=True)
class Address:
    """Where a cluster takes jobs.

    Attributes
    ----------
    url
        Of its dashboard; or what Ray itself makes one of, such as ``HOST:6379``.
    source
        What has named it.
    headers
        What lets one in, where the environment does not say it.
    env
        What jobs are told on this cluster, and no secret.
    login
        Variables that let this process into the MLflow server of a local cluster; never sent.
    token
        The variable that gives the token, where it takes the place of the local cluster's own.
    """

    url: str
    source: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    env: Mapping[str, str] = field(default_factory=dict)
    login: Mapping[str, str] = field(default_factory=dict, repr=False)
    token: str | None = None


def find_address(given: str | None = None) -> Address:
    """Choose the cluster.

    Parameters
    ----------
    given
        The value of ``--address``. Without it the environment names the cluster; or else it is the
        one that ``cellray cluster up`` has started from this folder.

    Raises
    ------
    NoClusterError
        Nothing names one.
    CellrayError
        What is named is no address of a dashboard, or a token that cannot be read.
    """
    if given is not None:
        return _known(_checked(given, "--address"))
    for name in VARIABLES:
        if value := os.environ.get(name):
            return _known(_checked(value, name))
    ray = os.environ.get("RAY_ADDRESS", "")
    if ray.startswith(("http://", "https://")):
        return _known(_checked(ray, "RAY_ADDRESS"))
    found = _local()
    if found is not None:
        return _let_in(found)
    raise NoClusterError("no cluster is named", MEND)


def _checked(url: str, source: str) -> Address:
    """Refuse what cannot be a dashboard's address."""
    text = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(text)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none
        good = False
    if not good:
        raise CellrayError(
            f"{source} is {url!r}, and no address of a Ray dashboard",
            "give one such as http://127.0.0.1:8265; jobs go to the dashboard's port",
        )
    if parts.username or parts.password:
        raise CellrayError(
            f"{source} holds a user or a password",
            "leave them out; Ray's token is taken from RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN",
        )
    return Address(text.rstrip("/"), source)


def _known(address: Address) -> Address:
    """Let one into the local cluster when it is the one that is named, by any name of loopback."""
    local = _local()
    if local is not None and _place(local.url) == _place(address.url):
        return _let_in(local)
    return address


def _place(url: str) -> str:
    """Spell an address in one way, where it is this machine's."""
    parts = urlsplit(url)
    here = is_loopback(parts.hostname or "")
    return parts._replace(netloc=f"127.0.0.1:{parts.port}").geturl() if here else url


def _local() -> Address | None:
    """Give the cluster that was started from this folder."""
    try:
        state = json.loads(LOCAL.read_text())
        url, token = str(state["dashboard"]), Path(state["token"])
        env = {"MLFLOW_TRACKING_URI": str(state["mlflow"])} if state.get("mlflow") else {}
        headers = {"Authorization": f"Bearer {token.read_text().strip()}"}
    except (OSError, ValueError, KeyError, TypeError):
        return None  # there is none, or one that is gone
    return Address(url.rstrip("/"), str(LOCAL), headers, env, _login(state))


def _login(state: Mapping[str, Any]) -> dict[str, str]:
    """Give what lets one into the local cluster's MLflow; nothing where its file is gone."""
    try:
        password = read_credentials(Path(state["credentials"])).mlflow_password
    except (CellrayError, KeyError, TypeError):
        return {}
    return {"MLFLOW_TRACKING_USERNAME": MLFLOW_USER, "MLFLOW_TRACKING_PASSWORD": password}


def _let_in(local: Address) -> Address:
    """Give the local cluster with the token that the environment gives, if it gives one."""
    for name in TOKENS:
        if not (value := os.environ.get(name)):
            continue
        try:
            token = value if name == TOKENS[0] else Path(value).read_text().strip()
        except (OSError, ValueError) as error:
            raise CellrayError(
                f"{name} names {value}, which cannot be read as a token",
                "let it name the token's file, or unset it where the local cluster is meant",
            ) from error
        return replace(local, headers={"Authorization": f"Bearer {token}"}, token=name)
    return local
