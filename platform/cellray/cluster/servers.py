"""The servers of a local cluster: with which words and in which environment each is started."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from cellray.cluster.processes import HOST, free_ports
from cellray.cluster.state import MLFLOW_USER, S3_KEY, Credentials, State
from cellray.cluster.swift import Login

BUCKET = "cellray"
"""The bucket that is there from the start; MLflow keeps artifacts under its ``mlflow/``."""

FOREIGN = ("AWS_", "MLFLOW_", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_")
"""What names and opens other clusters, stores and servers: none of it is a local cluster's."""

QUEUE_SECONDS = "86400"
"""How long a job may wait in the queue before it fails; Ray's own patience is 15 minutes."""

_PORTS = (
    *("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port"),
    *("metrics-export-port", "node-manager-port", "object-manager-port"),
)


def client_env(state: State, credentials: Credentials) -> dict[str, str]:
    """Give the variables with which a shell reaches the cluster, its MLflow and its S3 server."""
    return {
        "RAY_ADDRESS": state.ray_address,
        "RAY_API_SERVER_ADDRESS": state.dashboard,
        **_ray_auth(state),
        **job_env(state, credentials),
    }


def job_env(state: State, credentials: Credentials) -> dict[str, str]:
    """Give what every job of the cluster has in its environment, and no job needs to ship."""
    login = Login(S3_KEY, credentials.s3_secret)
    return {
        "MLFLOW_TRACKING_URI": state.mlflow,
        "MLFLOW_TRACKING_USERNAME": MLFLOW_USER,
        "MLFLOW_TRACKING_PASSWORD": credentials.mlflow_password,
        **(login.env(state.s3) if state.s3 else {}),
    }


def _ray_auth(state: State) -> dict[str, str]:
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": state.token}


def bare_env(given: Mapping[str, str]) -> dict[str, str]:
    """Give an environment without what reaches other stores, and with this Python first."""
    kept = {name: value for name, value in given.items() if not name.startswith(FOREIGN)}
    # Jobs start with a bare `python`, which must be the one that has cellray.
    here = str(Path(sys.executable).parent)
    return kept | {"PATH": os.pathsep.join([here, kept.get("PATH", os.defpath)])}


def ray_env(given: Mapping[str, str], state: State, credentials: Credentials) -> dict[str, str]:
    """Give the environment of a node; jobs inherit it."""
    queue = {"RAY_JOB_START_TIMEOUT_SECONDS": QUEUE_SECONDS}
    return {**bare_env(given), **queue, **_ray_auth(state), **job_env(state, credentials)}


def head_command(state: State, *, store: int) -> list[str]:
    """Give the words that start the head: it offers no CPU, as on a cluster of many machines."""
    dashboard = state.dashboard.rpartition(":")[2]
    return [
        *_node(f"{state.scratch}/h", store=store, cpus=0, gpus=0),
        "--head",
        f"--port={state.ray_address.rpartition(':')[2]}",
        f"--ray-client-server-port={free_ports(1)[0]}",
        "--include-dashboard=true",
        f"--dashboard-host={HOST}",
        f"--dashboard-port={dashboard}",
    ]


def worker_command(state: State, number: int, *, store: int) -> list[str]:
    """Give the words that start a worker node; the first one has the machine's GPUs."""
    folder, gpus = f"{state.scratch}/w{number}", None if number == 1 else 0
    return [
        *_node(folder, store=store, cpus=state.cpus, gpus=gpus),
        f"--address={state.ray_address}",
    ]


def _node(folder: str, *, store: int, cpus: int, gpus: int | None) -> list[str]:
    """Give what all nodes have in common; a folder that two share, each would tidy up."""
    return [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block"),
        f"--node-ip-address={HOST}",
        f"--num-cpus={cpus}",
        *([] if gpus is None else [f"--num-gpus={gpus}"]),
        f"--object-store-memory={store}",
        f"--temp-dir={folder}",
        "--disable-usage-stats",
        *(f"--{name}={port}" for name, port in zip(_PORTS, free_ports(len(_PORTS)), strict=True)),
    ]


def mlflow_command(state: State, folder: Path) -> list[str]:
    """Give the words that start the MLflow server, which hands artifacts through."""
    host, _, port = state.mlflow.partition("//")[2].partition(":")
    names = [f"{name}:{port}" for name in (host, "localhost")]
    artifacts = f"s3://{BUCKET}/mlflow" if state.s3 else str(folder / "artifacts")
    return [
        *(sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth"),
        *("--host", host, "--port", port, "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
        *("--artifacts-destination", artifacts, "--serve-artifacts"),
        *("--allowed-hosts", ",".join(names)),
        *("--cors-allowed-origins", ",".join(f"http://{name}" for name in names)),
    ]


def mlflow_settings(folder: Path) -> str:
    """Give the file of the MLflow server's authentication; its passwords are not in it."""
    return (
        "[mlflow]\n"
        "default_permission = NO_PERMISSIONS\n"
        f"database_uri = sqlite:///{folder / 'users.db'}\n"
    )


def mlflow_env(
    given: Mapping[str, str], state: State, credentials: Credentials, settings: Path
) -> dict[str, str]:
    """Give the environment of the MLflow server, where its passwords are."""
    login = Login(S3_KEY, credentials.s3_secret)
    return {
        **bare_env(given),
        **(login.env(state.s3) if state.s3 else {}),
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_AUTH_ADMIN_USERNAME": MLFLOW_USER,
        "MLFLOW_AUTH_ADMIN_PASSWORD": credentials.mlflow_password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": credentials.mlflow_secret,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # workers for language models' traces
    }
