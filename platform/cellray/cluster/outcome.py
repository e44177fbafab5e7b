"""What has come of a job: its runs in MLflow, and the versions of models that they registered."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mlflow.exceptions import MlflowException

from cellray.cluster.address import Address
from cellray.cluster.settings import MLFLOW
from cellray.core.errors import CellrayError
from cellray.core.secrets import scrub
from cellray.track.runs import JOB
from cellray.track.store import client, store_errors
from cellray.track.uri import run_page, sqlite_file

PARENT = "mlflow.parentRunId"


@dataclass(frozen=True)
class Outcome:
    """What MLflow holds of a job.

    Attributes
    ----------
    runs
        Ids of its runs, the first one first; a sweep's trials are left out.
    links
        Their pages in MLflow; where the store is a file there are none.
    models
        ``models:/NAME/VERSION`` of what they registered.
    """

    runs: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    models: tuple[str, ...] = ()


def outcome(job: Any, address: Address) -> Outcome:  # noqa: ANN401 - Ray's JobDetails
    """Look for a job's id in MLflow; a store that does not let one in holds nothing.

    Parameters
    ----------
    job
        The job.
    address
        Its cluster.
    """
    told = ((job.runtime_env or {}).get("env_vars") or {}).get(MLFLOW)
    # This shell's address comes first: the nodes' own may have no meaning here.
    uri = os.environ.get(MLFLOW) or told or address.env.get(MLFLOW)
    file = sqlite_file(uri) if uri else None
    if not uri or (file is not None and not file.exists()):
        return Outcome()
    try:
        with _let_in(uri, address), store_errors():
            return _found(uri, str(job.submission_id))
    except CellrayError:  # away, or it wants a password: what Ray knows is still an answer
        return Outcome()


@contextmanager
def _let_in(uri: str, address: Address) -> Iterator[None]:
    """Give MLflow the local cluster's password, which it reads from the environment.

    Only while the block runs, for that cluster's server, and where this shell has none of its own.
    """
    own = any(os.environ.get(name) for name in (*address.login, "MLFLOW_TRACKING_TOKEN"))
    login = {} if own or uri != address.env.get(MLFLOW) else address.login
    os.environ.update(login)
    try:
        yield
    finally:
        for name in login:
            del os.environ[name]


def run_name(run_id: str, uri: str | None, address: Address, *, must: bool) -> str | None:
    """Give the name of a run, where a store says it at once.

    Raises
    ------
    CellrayError
        The store has no such run, and it `must` be there.
    """
    file = sqlite_file(uri) if uri else None
    if not uri or (file is not None and not file.exists()):
        return None
    try:
        with _let_in(uri, address), store_errors():
            name: str | None = client(uri).get_run(run_id).info.run_name
    except CellrayError:  # it does not answer, or does not let one in
        return None
    except MlflowException as error:
        if must and error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise CellrayError(
                f"no run '{run_id}' at {scrub(uri)}", "see the runs with 'cellray ui'"
            ) from error
        return None
    return name


def _found(uri: str, job: str) -> Outcome:
    api = client(uri)
    experiments = {one.experiment_id for one in api.search_experiments()}
    runs = api.search_runs([*experiments], f"tags.{JOB} = '{job}'", order_by=["start_time ASC"])
    if not runs:
        return Outcome()
    ids = ", ".join(f"'{run.info.run_id}'" for run in runs)
    versions = api.search_model_versions(f"run_id IN ({ids})")
    shown = [run for run in runs if PARENT not in run.data.tags]
    pages = [run_page(uri, run.info.experiment_id, run.info.run_id) for run in shown]
    return Outcome(
        tuple(run.info.run_id for run in shown),
        tuple(page for page in pages if page is not None),
        tuple(f"models:/{one.name}/{one.version}" for one in versions),
    )
