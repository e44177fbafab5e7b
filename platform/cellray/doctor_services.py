"""What `cellray doctor` asks of Ray, MLflow and object storage; none of it waits for minutes."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

from cellray.cluster.address import NoClusterError, find_address
from cellray.core.errors import CellrayError

State = Literal["ok", "warning", "fail"]

PATIENCE = 30.0
"""Seconds after which a cluster that takes a connection and says nothing has failed."""

SECONDS = 5
"""How long one request to MLflow or to an object store may take."""

JOIN = """
import sys
from cellray.core.errors import CellrayError
from cellray.feed.session import ray_session
try:
    with ray_session():
        import ray
        nodes = [node for node in ray.nodes() if node["Alive"]]
        have = ray.cluster_resources()
        print(f"{len(nodes)} nodes, {have.get('CPU', 0):g} CPUs, {have.get('GPU', 0):g} GPUs")
except CellrayError as error:
    print(error.what, error.mend, sep="\\n")
    sys.exit(2)
"""
"""Joins a cluster as a run's driver does, in a process that may be ended."""

JOBS = """
import sys
from cellray.cluster.address import find_address
from cellray.core.errors import CellrayError
try:
    from cellray.cluster.jobs import Jobs
    print(f"takes jobs; {len(Jobs(find_address()).list())} so far")
except CellrayError as error:
    print(error.what, error.mend, sep="\\n")
    sys.exit(2)
"""
"""Knocks where jobs are submitted, as `cellray submit` does."""


@dataclass(frozen=True)
class Finding:
    """What one check has found.

    Attributes
    ----------
    state
        ``ok``; ``warning`` for what works and may disappoint; ``fail`` for what does not work.
    found
        What there is.
    mend
        What to do about it; empty where all is well.
    """

    state: State
    found: str
    mend: str = ""


def ray() -> Finding:
    """Join the cluster that ``RAY_ADDRESS`` names, or else ask for jobs where ``submit`` would."""
    have = f"Ray {version('ray')}"
    address = os.environ.get("RAY_ADDRESS", "local") or "local"
    alone = address == "local"
    join = not alone and not address.startswith(("http://", "https://"))
    if not join:
        try:
            where = find_address()
        except NoClusterError:
            return Finding("ok", f"{have}, in this process; nothing names a cluster")
        except CellrayError as error:
            return Finding("fail", f"{have}; {error.what}", error.mend)
        address = where.url
        have += ", in this process" if alone else ""
    try:
        # What Ray prints is kept away, and one that hangs can be ended.
        done = subprocess.run(
            [sys.executable, "-c", JOIN if join else JOBS],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Finding(
            "fail",
            f"{have}; {address} says nothing for {PATIENCE:.0f} s",
            "check the address: HOST:6379 to join a cluster, http://HOST:8265 to submit jobs",
        )
    said = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    if done.returncode == 0 and said:
        return Finding("ok", f"{have}; the cluster at {address}: {said[-1]}")
    if done.returncode == 2 and len(said) >= 2:
        return Finding("fail", f"{have}; {said[-2]}", said[-1])
    last = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
    return Finding("fail", f"{have}; cannot join {address}: {last}", "check the address")


def mlflow() -> Finding:
    """Reach the tracking store; one that would have to be made is not made."""
    from cellray.core.secrets import scrub
    from cellray.track.store import client, store_errors
    from cellray.track.uri import sqlite_file, tracking_uri

    have, uri = f"MLflow {version('mlflow')}", tracking_uri()
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        return Finding("ok", f"{have}; no store yet, the first run makes {file}")
    hurried = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(SECONDS),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }
    try:
        with environment(hurried), store_errors():
            models = len(client().search_registered_models(max_results=1_000))
    except CellrayError as error:
        return Finding("fail", f"{have}; {error.what}", error.mend)
    there = _server_version(uri)
    served = f" (MLflow {there})" if there else ""
    found = f"{have}; {scrub(uri)}{served}: {models:,} registered models"
    if there and there.split(".")[0] != version("mlflow").split(".")[0]:
        return Finding("warning", found, "run the server on the client's major version of MLflow")
    return Finding("ok", found)


def _server_version(uri: str) -> str | None:
    """Ask a tracking server for its version; None for a file, or where it is not told."""
    import requests

    from cellray.core.secrets import HIDDEN, scrub

    if not uri.startswith(("http://", "https://")):
        return None
    address = scrub(uri).replace(HIDDEN, "", 1).rstrip("/")
    try:
        answer = requests.get(f"{address}/version", timeout=SECONDS)
    except requests.RequestException:
        return None
    return answer.text.strip()[:20] if answer.ok else None


def s3_credentials() -> Finding:
    """Say which credentials the environment or a profile has, and whether they are taken."""
    from cellray.atlas.aws import access
    from cellray.core.secrets import scrub

    key, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    if bool(key) != bool(secret):
        name, other = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")[:: 1 if key else -1]
        return Finding("fail", f"{name} is set, and {other} is not", f"set {other} too")
    try:
        found = access()
    except CellrayError as error:
        return Finding("fail", scrub(error.what), error.mend)
    have = bool(key) or found.profile is not None
    named = "no AWS_* credentials"
    if have:
        names = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are set"
        named = names if key else f"credentials of the AWS profile '{found.profile}'"
    if not found.endpoint:
        if have:
            return Finding("ok", f"{named}; no AWS_ENDPOINT_URL, so they are Amazon's")
        return Finding("ok", f"{named}: atlases in folders, or where the machine has a role")
    endpoint = scrub(found.endpoint)
    refused = _refusal(found.endpoint, found.region)
    if refused:
        return Finding(
            "fail",
            f"{named}; {endpoint} {refused}",
            "check AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
        )
    return Finding("ok", f"{named}; {endpoint} takes them" if have else f"{endpoint} answers")


def _refusal(endpoint: str, region: str) -> str | None:
    """List buckets once, and say in what words that was refused; None if it was not."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    once = Config(connect_timeout=SECONDS, read_timeout=SECONDS, retries={"total_max_attempts": 1})
    try:
        with environment({"AWS_EC2_METADATA_DISABLED": "true"}):
            client = boto3.Session().client(
                "s3", endpoint_url=endpoint, region_name=region, config=once
            )
            client.list_buckets()
    except ClientError as error:
        code = error.response["Error"]["Code"]
        # Who may read one bucket need not be allowed to list them all.
        return None if code == "AccessDenied" else f"refuses these credentials: {code}"
    except NoCredentialsError:
        return "cannot be asked: there are no credentials"
    except (BotoCoreError, ValueError) as error:
        return f"does not answer ({type(error).__name__})"
    return None


def s3_round_trip(url: str) -> Finding:
    """Put a small object below a URL, read it, and delete it.

    Parameters
    ----------
    url
        ``s3://bucket/path``.
    """
    import obstore

    from cellray.atlas.storage import object_store, storage_errors
    from cellray.atlas.urls import is_remote, normalise
    from cellray.core.secrets import scrub

    if not is_remote(url):
        return Finding(
            "fail", f"--s3 is '{url}', which is no object store", "give s3://bucket/path"
        )
    try:
        with storage_errors(url):
            store, name = object_store(normalise(url)), f".cellray-{uuid.uuid4().hex}"
            obstore.put(store, name, name.encode())
            body = bytes(obstore.get(store, name).bytes())
            obstore.delete(store, name)
    except CellrayError as error:
        return Finding("fail", scrub(error.what), error.mend)  # it may quote the endpoint
    if body != name.encode():
        return Finding(
            "fail", f"{url} gives back other bytes than were put", "ask the owner of the store"
        )
    return Finding("ok", f"{url}: an object was put, read and deleted")


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables for as long as the block runs."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
