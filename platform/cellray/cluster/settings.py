"""What a submission is told beside the verb's words: environment, resources, packages."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from cellray.core.errors import CellrayError
from cellray.core.ports import is_loopback
from cellray.core.secrets import scrub
from cellray.track.uri import tracking_uri

SECRET = re.compile(
    # What ends a word, whatever is before it: AUTHTOKEN, PGPASSWORD, OPENAI_APIKEY.
    r"(SECRETS?|TOKEN|PASSWORDS?|PASSWD|PASSPHRASE|CREDENTIALS?"
    r"|(API|AUTH|ACCESS|ACCOUNT|PRIVATE|SIGNING|MASTER|ENCRYPTION)KEYS?|(SSH|PG|DB)PASS"
    # What is a word of its own: MONKEY, COMPAT and BYPASS are none.
    r"|(^|_)(PASS|PASSCODE|KEY|API_KEYS|PAT|JWT)|_PWD)\d*(_|$)",
    re.IGNORECASE,
)
"""Names of variables that hold secrets; `PWD` alone is a shell's working folder."""
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
UNITS |= {f"{unit}i": 2 ** (10 * power) for power, unit in enumerate("kmgt", 1)}

MLFLOW = "MLFLOW_TRACKING_URI"
SERVER = re.compile(r"(https?|postgresql|mysql|mssql|databricks)\b")
"""How an address of MLflow begins that is no file."""

STOP_SECONDS = "60"
"""How long a job that is stopped may take to write a checkpoint; Ray's own patience is 3 s."""


def environment(given: Sequence[str]) -> dict[str, str]:
    """Read ``KEY=VALUE`` words.

    Raises
    ------
    CellrayError
        A word without ``=``, or a secret, which all who see jobs would see.
    """
    found = _pairs("--env", given)
    for name, value in found.items():
        if SECRET.search(name) or scrub(value) != value:
            raise CellrayError(
                f"--env {name} looks like a secret, and all who see the cluster's jobs see it",
                f"set {name} in the environment of the cluster's nodes: jobs inherit it",
            )
    return found


def refuse_secrets(words: Sequence[str]) -> None:
    """Refuse words that hold a password.

    Raises
    ------
    CellrayError
        One does.
    """
    for word in words:
        if scrub(word) != word:
            raise CellrayError(
                f"{scrub(word)} holds a password, which all who see the cluster's jobs see",
                "leave it out, and set it in the environment of the cluster's nodes",
            )


def resources(given: Sequence[str]) -> dict[str, Any]:
    """Read what the job's own process takes of the cluster, for Ray's ``submit_job``.

    Parameters
    ----------
    given
        ``CPU=1``, ``GPU=1``, ``memory=4GiB``, a resource of the cluster's own with a number, or a
        label of its nodes with a word; several stand between commas.

    Raises
    ------
    CellrayError
        Not of this form.
    """
    words = [word for text in given for word in text.split(",") if word]
    found: dict[str, Any] = {}
    for name, value in _pairs("--resources", words).items():
        if name.lower() == "memory":
            found["entrypoint_memory"] = _bytes(value)
            continue
        try:
            number = float(value)
        except ValueError:
            found.setdefault("entrypoint_label_selector", {})[name] = value
            continue
        if not 0 <= number < float("inf"):
            raise CellrayError(
                f"--resources {name}={value} is no amount of {name}", "give a number from 0 on"
            )
        if name.upper() in {"CPU", "GPU"}:
            found[f"entrypoint_num_{name.lower()}s"] = number
        else:
            found.setdefault("entrypoint_resources", {})[name] = number
    return found


def tracking(env: Mapping[str, str], clusters: Mapping[str, str], *, here: bool) -> str | None:
    """Give the address of MLflow for a job.

    Parameters
    ----------
    env
        What the job is told anyway; comes before this process's environment. An empty address
        there leaves it to the nodes.
    clusters
        What the cluster itself says; comes after it.
    here
        Whether the cluster is this machine.

    Returns
    -------
    str or None
        None where nothing names one and the cluster is elsewhere, or where it is left to the nodes:
        their own counts.

    Raises
    ------
    CellrayError
        It holds a password, or the cluster's nodes do not reach it: a file, or a server that this
        machine's environment names by a loopback address.
    """
    uri, left = env.get(MLFLOW), env.get(MLFLOW) == ""
    mine = None if uri or left else os.environ.get(MLFLOW)
    if not uri and not mine:
        uri = clusters.get(MLFLOW)
        if not uri and (left or not here):
            return None
    uri = uri or tracking_uri()
    refuse_password(uri)
    if not here and (not SERVER.match(uri) or (mine and on_loopback(uri))):
        raise CellrayError(
            f"runs and models would go to {uri}, which is on this machine and not on the cluster's",
            f"give --env {MLFLOW}=http://HOST:5000 as the nodes reach it, or --env {MLFLOW}= to "
            "take theirs",
        )
    return uri


def on_loopback(uri: str) -> bool:
    """Say whether an address of MLflow names another server on each machine."""
    return is_loopback(urlsplit(uri).hostname or "")


def refuse_password(uri: str) -> None:
    """Refuse an address of MLflow that a job would show to all who see it.

    Raises
    ------
    CellrayError
        It holds a password.
    """
    if scrub(uri) != uri:
        raise CellrayError(
            "MLFLOW_TRACKING_URI holds a password, which everyone who sees the cluster's jobs sees",
            "leave it out of the address, and set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD on the cluster",
        )


def _pairs(option: str, words: Sequence[str]) -> dict[str, str]:
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.strip():
            raise CellrayError(f"{option} {word} is no KEY=VALUE", f"give it as {option} KEY=VALUE")
        found[name.strip()] = value
    return found


def _bytes(text: str) -> int:
    match = re.fullmatch(r"([0-9.]+)\s*([kmgt]?i?)b?", text.strip().lower())
    try:
        return int(float(match[1]) * UNITS[match[2]])  # type: ignore[index] # KeyError, TypeError
    except (TypeError, KeyError, ValueError) as error:
        raise CellrayError(
            f"--resources memory={text} is no amount of memory", "give it as 4GiB or 500MB"
        ) from error
