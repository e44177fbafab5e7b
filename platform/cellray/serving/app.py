"""The Ray Serve application: a deployment that embeds counts sent over HTTP.

``cellray serve`` runs it, and so does KubeRay's RayService by its import path,
``cellray.serving.app:build``.
"""

import asyncio
import hashlib
import hmac
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve
from ray.serve import Application
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from cellray.core import logs
from cellray.core.errors import CellrayError
from cellray.core.ports import is_loopback
from cellray.core.secrets import scrub
from cellray.serving import gauges
from cellray.serving.bodies import ARROW, JSON, RequestError, hear_out, parse, taken, to_arrow
from cellray.serving.model import Served
from cellray.track.catalogue import version_of
from cellray.track.uri import tracking_uri

TOKEN = "CELLRAY_SERVE_TOKEN"
TOKEN_LENGTH = 16
ROUTES = {"/healthz": "GET", "/model": "GET", "/embed": "POST"}
"""Each path and its method."""
LOOK_SECONDS = 10.0
"""Between two looks at drift, and at an alias that is followed."""

logger = logging.getLogger(__name__)


class Settings(BaseModel):
    """What is served, and to whom.

    Attributes
    ----------
    model
        ``models:/NAME@ALIAS``, ``models:/NAME/VERSION`` or another URI of a registered model.
    host
        Where Serve listens. Without a token only a loopback address will do.
    replicas
        Copies of the model that answer.
    gpus
        GPUs of a replica; a fraction lets several share one.
    follow
        Whether replicas load another version when the alias comes to name it.
    min_genes
        Share of the model's genes that a request must have.
    max_mib
        Largest body.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    host: str = "0.0.0.0"
    replicas: Annotated[int, Field(ge=1)] = 1
    gpus: Annotated[float, Field(ge=0)] = 0.0
    follow: bool = False
    min_genes: Annotated[float, Field(ge=0, le=1)] = 0.5
    max_mib: Annotated[int, Field(ge=1)] = 64


def build(args: Mapping[str, Any]) -> Application:
    """Build the application; Serve calls it with the ``args`` of its config.

    Parameters
    ----------
    args
        Of `Settings`.

    Raises
    ------
    CellrayError
        A setting that is not known, no such model, or no token where one is needed.
    """
    try:
        settings = Settings(**args)
    except ValidationError as error:
        first = error.errors()[0]
        raise CellrayError(
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
            f"the arguments are {', '.join(Settings.model_fields)}",
        ) from error
    token = token_digest(settings.host)
    # Replicas that start later must serve what the first serve, wherever the alias points then.
    model = settings.model if settings.follow else version_of(settings.model)
    deployment = serve.deployment(
        name="embedding",
        num_replicas=settings.replicas,
        ray_actor_options={"num_gpus": settings.gpus} if settings.gpus else {},
        max_ongoing_requests=16,
    )(Embedding)
    store = tracking_uri()
    if store != scrub(store):  # no credentials leave this process: replicas have their own
        store = ""
    found: Application = deployment.bind(model, settings, token, store, logs.context())
    return found


def token_digest(host: str) -> str | None:
    """Give the digest of the token that clients must show; the token itself goes nowhere.

    Raises
    ------
    CellrayError
        There is none, and others than this machine reach the host; or it is short.
    """
    token = os.environ.get(TOKEN)
    if not token:
        if is_loopback(host):
            return None
        raise CellrayError(
            f"{host} is open to other machines, and {TOKEN} is not set",
            f"set {TOKEN} to a secret that clients must send, or take --host 127.0.0.1",
        )
    if len(token) < TOKEN_LENGTH:
        raise CellrayError(
            f"{TOKEN} is shorter than {TOKEN_LENGTH} characters",
            "make one with 'openssl rand -hex 32'",
        )
    return hashlib.sha256(token.encode()).hexdigest()


class Embedding:
    """A replica.

    Parameters
    ----------
    model
        What it loads.
    settings
        How it answers.
    token
        Digest of the token that clients must show; None lets in everyone.
    store
        MLflow's tracking store; empty where the replica's environment says it.
    log
        What stands in every log line.
    """

    def __init__(
        self,
        model: str,
        settings: Settings,
        token: str | None,
        store: str,
        log: Mapping[str, Any],
    ) -> None:
        logs.set_up(**log, replica=serve.get_replica_context().replica_tag)
        if store:
            os.environ["MLFLOW_TRACKING_URI"] = store
        self._model, self._settings, self._token = model, settings, token
        self._served = Served.of(model)
        logger.info("serves %s", self._served.resolved.uri)
        self._turn = threading.Lock()  # two embeddings at once take each other's caches
        threading.Thread(target=self._look, daemon=True, name="cellray-look").start()

    async def __call__(self, request: Request) -> Response:
        """Answer a request, count it, and let no traceback out."""
        began, served, path = time.monotonic(), self._served, request.url.path
        body = request.stream()
        try:
            response = await self._answer(served, request, body)
        except RequestError as refusal:
            await hear_out(body)
            response = _refusal(refusal)
        except ClientDisconnect:  # nobody reads the answer
            left = "the client left before its body was whole", "send it again"
            response = _refusal(RequestError(400, *left))
        except Exception:
            logger.exception("%s failed", path)
            bug = "this request has met a bug", "its traceback is in the replica's log"
            response = _refusal(RequestError(500, *bug))
        uri = served.resolved.uri
        response.headers["X-Cellray-Model"] = uri
        if path in ROUTES:
            seconds = time.monotonic() - began
            gauges.answered(path, response.status_code, seconds, model=uri)
        return response

    async def _answer(
        self, served: Served, request: Request, stream: AsyncIterator[bytes]
    ) -> Response:
        path = request.url.path
        if path not in ROUTES:
            raise RequestError(404, f"there is no {path}", f"ask for {', '.join(ROUTES)}")
        if request.method != ROUTES[path]:
            raise RequestError(
                405, f"{path} takes no {request.method}", f"send it a {ROUTES[path]}"
            )
        if path == "/healthz":
            return JSONResponse({"status": "ok", "model": served.resolved.uri})
        self._admit(request)
        if path == "/model":
            return JSONResponse(served.describe())
        limit = self._settings.max_mib << 20
        body = await taken(stream, request.headers.get("content-length"), limit)
        kind = request.headers.get("content-type", JSON)
        layer, accept = request.query_params.get("layer"), request.headers.get("accept", "")
        return await asyncio.to_thread(self._embedded, served, body, kind, layer, accept)

    def _embedded(
        self, served: Served, body: bytes, kind: str, layer: str | None, accept: str
    ) -> Response:
        cells = parse(body, kind, layer=layer)
        with self._turn:
            z_ND, share = served.embed(cells, min_genes=self._settings.min_genes)
        uri = served.resolved.uri
        gauges.embedded(len(z_ND), share, model=uri)
        if ARROW in accept:
            facts = {"model": uri, "genes_matched": f"{share:.6g}"}
            return Response(to_arrow(z_ND, cells.names, facts), media_type=ARROW)
        return JSONResponse(
            {
                "model": uri,
                "genes_matched": share,
                "cells": list(cells.names),
                "embeddings": z_ND.tolist(),
            }
        )

    def _admit(self, request: Request) -> None:
        if self._token is None:
            return
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(given.strip().encode()).hexdigest()
        if kind.lower() != "bearer" or not hmac.compare_digest(digest, self._token):
            raise RequestError(
                401, "the token is missing or wrong", "send 'Authorization: Bearer TOKEN'"
            )

    def _look(self) -> None:
        """Tell drift, and follow the alias, for as long as the replica lives."""
        while True:
            time.sleep(LOOK_SECONDS)
            self._look_once()

    def _look_once(self) -> None:
        try:
            served = self._served
            gauges.drifted(served.drift(), model=served.resolved.uri)
            if self._settings.follow and version_of(self._model) != served.resolved.uri:
                self._served = Served.of(self._model)
                logger.warning("%s is %s now", self._model, self._served.resolved.uri)
        except CellrayError as error:  # the registry is away: what is loaded serves on
            logger.warning("%s cannot be looked up: %s", self._model, error)
        except Exception:  # it would end the thread, and the alias would be followed no more
            logger.exception("a look at %s has met a bug; the next follows", self._model)


def _refusal(refusal: RequestError) -> Response:
    headers = {"WWW-Authenticate": "Bearer"} if refusal.status == 401 else None
    document = {"error": refusal.what, "mend": refusal.mend}
    return JSONResponse(document, status_code=refusal.status, headers=headers)
