"""What the documents of ``cellray cluster`` look like to people."""

import shlex
from collections.abc import Mapping
from typing import Any

from cellray.answers import facts, table

FORGOTTEN = ("RAY_AUTH_TOKEN", "MLFLOW_TRACKING_TOKEN")
FORGOTTEN_S3 = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3")
"""Variables of other clusters and accounts, which would come before the cluster's own."""


def status_text(document: Mapping[str, Any]) -> str:
    """Lay out what `cellray.cluster.local.status` found."""
    lines = {
        "cluster": document["folder"] + ("" if document["complete"] else " (not all of it runs)"),
        "started": document["started"],
        "Ray nodes": f"{document['nodes']} of {document['workers'] + 1}: the head, and workers of "
        f"{document['cpus']} CPUs",
        "dashboard": document["dashboard"],
        "Ray address": document["ray_address"],
        "MLflow": document["mlflow"],
        "S3": document["s3"] or "none",
        "token": document["token"],
        "passwords": document["credentials"],
    }
    rows = [
        [one["name"], one["pid"], "runs" if one["running"] else "has ended", one["log"]]
        for one in document["processes"]
    ]
    return f"{facts(lines)}\n\n{table(['process', 'pid', '', 'log'], rows)}"


def up_text(document: Mapping[str, Any], words: str) -> str:
    """Say where a started cluster is, and what to type next.

    Parameters
    ----------
    document
        As `status_text` takes it.
    words
        What the commands need to find the cluster, such as ``--dir``.
    """
    where = {
        name: document[key] for name, key in (("dashboard", "dashboard"), ("MLflow", "mlflow"))
    }
    where |= {"S3": f"{document['s3']} (bucket cellray)"} if document["s3"] else {}
    atlas = "s3://cellray/atlas" if document["s3"] else "atlas.zarr"
    steps = [
        f'eval "$(cellray cluster env{words})"',
        f"cellray ingest counts.h5ad --out {atlas}",
        f"cellray submit pretrain --atlas {atlas} --name cells",
        f"cellray cluster down{words}",
    ]
    return f"{facts(where)}\n\nnext\n" + "\n".join(f"  {step}" for step in steps)


def env_text(variables: Mapping[str, str]) -> str:
    """Lay variables out for ``eval`` by a shell."""
    others = FORGOTTEN + (FORGOTTEN_S3 if "AWS_ENDPOINT_URL" in variables else ())
    lines = [f"unset {' '.join(others)}"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    return "\n".join(lines)
