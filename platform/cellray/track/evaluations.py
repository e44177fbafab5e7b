"""What the store holds of a version's evaluations, and how one is repeated for another version."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities import Dataset, Run
from mlflow.entities.model_registry import ModelVersion

from cellray.track.catalogue import tied_metrics

DIGEST_LENGTH = 32
"""Characters of an atlas's digest that are kept; MLflow stores 36 at most."""

DIGEST = "_digest"
"""End of the parameters that hold digests: ``ontology_digest`` is that of the file ``ontology``."""

DEFAULTS = {"task": "annotation", "splits": "5", "seed": "0", "max_cells": "50000"}
"""The protocol of a ``cellray evaluate`` without options."""

Protocol = tuple[str, str, tuple[tuple[str, str], ...]]
"""Task, digest of the atlas, and the parameters: what makes two evaluations the same."""


@dataclass(frozen=True)
class Evaluation:
    """What `cellray.track.models.log_evaluation` logged of a version.

    Attributes
    ----------
    task, params
        What was evaluated, and how.
    dataset, digest, url
        The atlas: its name, what MLflow keeps of its digest, and where it is.
    metrics
        Values by name.
    tags
        Of the run.
    run_id, experiment_id
        The run that holds it, and where that is.
    started
        In milliseconds since 1970.
    """

    task: str
    params: Mapping[str, str]
    dataset: str
    digest: str
    url: str
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    run_id: str
    experiment_id: str
    started: int

    @property
    def protocol(self) -> Protocol:
        """What another evaluation must share to be comparable."""
        return protocol_of(self.task, self.digest, self.params)

    @property
    def scores(self) -> dict[str, float]:
        """The metrics by which a version is judged: neither spreads nor those of baselines."""
        return {name: value for name, value in self.metrics.items() if says_worth(name)}


def protocol_of(task: str, digest: str, params: Mapping[str, str]) -> Protocol:
    """Give what makes two evaluations the same."""
    return task, digest[:DIGEST_LENGTH], tuple(sorted(by_content(params).items()))


def by_content(params: Mapping[str, str]) -> dict[str, str]:
    """Leave out where a file or another atlas lies, of which the digest is known."""
    return {name: value for name, value in params.items() if f"{name}{DIGEST}" not in params}


def says_worth(metric: str) -> bool:
    """Leave out spreads, and of METHOD/READOUT/METRIC the methods that are baselines."""
    baseline = metric.count("/") == 2 and not metric.startswith("model/")
    return not baseline and not metric.endswith(("_std", "_low", "_high"))


def evaluations_of(api: MlflowClient, version: ModelVersion) -> list[Evaluation]:
    """List a version's finished evaluations, the oldest first."""
    found = []
    for run_id in {metric.run_id for metric in tied_metrics(api, version) if metric.run_id}:
        run = api.get_run(run_id)
        task, atlases = run.data.tags.get("task"), _atlases(run)
        finished = run.info.lifecycle_stage == "active" and run.info.status == "FINISHED"
        if not finished or task is None or len(atlases) != 1:
            continue
        data = atlases[0]
        found.append(
            Evaluation(
                task=task,
                params=run.data.params,
                dataset=data.name,
                digest=data.digest,
                url=json.loads(data.source)["uri"],
                metrics=run.data.metrics,
                tags=run.data.tags,
                run_id=run_id,
                experiment_id=run.info.experiment_id,
                started=run.info.start_time,
            )
        )
    return sorted(found, key=lambda one: one.started)


def options(asked: Mapping[str, object]) -> list[str]:
    """Write what was asked of ``cellray evaluate`` as its options."""
    found = []
    for name, value in asked.items():
        found.append("--seeds" if name == "splits" else f"--{name.replace('_', '-')}")
        # A flag has no value: True, or what MLflow made of it.
        found += [] if str(value) == "True" else [str(value)]
    return found


def setting(task: str, url: str, params: Mapping[str, str]) -> str:
    """Say in a few words what was evaluated, on which atlas, and how."""
    how = ", ".join(f"{name}={value}" for name, value in sorted(params.items()))
    return f"{task} of {url}" + (f" ({how})" if how else "")


def command(uri: str, url: str, task: str, params: Mapping[str, str]) -> str:
    """Write the command that evaluates a version on an atlas by a task, with these parameters."""
    asked = {"task": task, **params}
    other = {name: value for name, value in asked.items() if DEFAULTS.get(name) != value}
    told = {name: value for name, value in other.items() if not name.endswith(DIGEST)}
    return shlex.join(["cellray", "evaluate", uri, "--atlas", url, *options(told)])


def how_to(evaluation: Evaluation, uri: str) -> str:
    """Say how to evaluate another version in the same way."""
    return f"run '{command(uri, evaluation.url, evaluation.task, evaluation.params)}'"


def _atlases(run: Run) -> list[Dataset]:
    given = run.inputs.dataset_inputs if run.inputs else []
    return [one.dataset for one in given if one.dataset.source_type == "atlas"]
