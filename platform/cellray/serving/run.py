"""Serving from a command line: Ray, Serve's proxy and the application, until the block ends."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import serve
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig

from cellray.core import logs
from cellray.core.errors import CellrayError
from cellray.core.ports import require_free
from cellray.core.secrets import first_line
from cellray.feed.session import ray_session
from cellray.serving.app import Settings, build
from cellray.track.catalogue import version_of

APPLICATION = "cellray"


def dry_run(settings: Settings, port: int) -> dict[str, Any]:
    """Say what `serving` would serve, and where; nothing is started.

    Raises
    ------
    CellrayError
        No such model, no token where one is needed, or a port that is taken. Whether the replicas
        find room shows when they start.
    """
    build(settings.model_dump())
    require_free(settings.host, port)
    return {
        "model": version_of(settings.model),
        "url": f"http://{settings.host}:{port}",
        "ray": os.environ.get("RAY_ADDRESS") or "local",
        "replicas": settings.replicas,
        "cpus": float(settings.replicas),
        "gpus": settings.gpus * settings.replicas,
        "follows": settings.model if settings.follow else None,
    }


@contextmanager
def serving(settings: Settings, port: int) -> Iterator[dict[str, str]]:
    """Serve a model while the block runs.

    Parameters
    ----------
    settings
        What is served, and where.
    port
        Where Serve listens.

    Yields
    ------
    dict
        ``url`` and ``model``, the version that is served.

    Raises
    ------
    CellrayError
        No such model, no token where one is needed, a port that is taken, too few CPUs or GPUs, or
        a replica that does not start.
    """
    application = build(settings.model_dump())
    model = version_of(settings.model)
    with ray_session():
        _require_room(settings)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        _require_first()
        require_free(settings.host, port)
        serve.start(
            http_options=HTTPOptions(host=settings.host, port=port),
            logging_config=LoggingConfig(encoding="JSON" if logs.as_json() else "TEXT"),
        )
        try:
            serve.run(application, name=APPLICATION)
            yield {"url": f"http://{settings.host}:{port}", "model": model}
        except RuntimeError as error:
            raise CellrayError(
                f"no replica of {model} starts: {_reason() or first_line(error)}",
                "see the replica's log in Ray's session folder, under logs/serve",
            ) from error
        finally:
            serve.shutdown()  # type: ignore[no-untyped-call]


def _reason() -> str:
    """Give what a replica's user must mend; empty where that is not known."""
    found = serve.status().applications.get(APPLICATION)
    deployments = found.deployments.values() if found else ()
    lines = "\n".join(one.message for one in deployments).splitlines()
    named = [line.partition(f"{CellrayError.__name__}: ")[2] for line in lines]
    return next(filter(None, reversed(named)), "")


def _require_first() -> None:
    """Raise where the cluster serves already: its proxies listen where they were told to."""
    try:
        ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    except ValueError:
        return
    raise CellrayError(
        f"Ray Serve runs already on {os.environ.get('RAY_ADDRESS', 'this Ray')}",
        "deploy cellray.serving.app:build beside what it serves, with 'serve deploy', or end it",
    )


def _require_room(settings: Settings) -> None:
    """Raise where the replicas do not fit: Serve would wait for a machine that never comes."""
    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for kind, each in (("CPU", 1.0), ("GPU", settings.gpus)):
        wanted, found = each * settings.replicas, there.get(kind, 0.0)
        if wanted > found:
            raise CellrayError(
                f"{settings.replicas} replicas take {wanted:g} {kind}s, and Ray has {found:g}",
                "ask for fewer with --replicas, or name a larger cluster in RAY_ADDRESS",
            )
