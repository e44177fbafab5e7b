"""The four steps of a pipeline: each does its verb's work, or goes on with what it had begun."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cellray.atlas.store import Atlas
from cellray.atlas.write import ingest
from cellray.core.errors import CellrayError
from cellray.core.types import Progress
from cellray.evaluation.gates import (
    CHAMPION,
    FailedGatesError,
    promote_gated,
    protocols,
    stored_by,
)
from cellray.evaluation.held_out import settled
from cellray.evaluation.run import evaluate_suite
from cellray.pipeline.check import intake_of, made_of
from cellray.pipeline.settings import Pipeline, Step
from cellray.pipeline.state import ATTEMPT, PARENT, State, started_by
from cellray.track import runs
from cellray.track.catalogue import aliases_of, find_model, version_of_run
from cellray.track.evaluations import Protocol
from cellray.track.promotion import NotBetterError, promote
from cellray.track.store import client, store_errors
from cellray.train.launch import FILE
from cellray.train.run import pretrain, resume

Result = dict[str, Any]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A pipeline that runs.

    Attributes
    ----------
    pipeline
        What it does.
    run_id
        Its run of MLflow.
    results
        Of the steps that are done.
    progress, say
        As of `cellray.pipeline.run.run_pipeline`.
    """

    pipeline: Pipeline
    run_id: str
    results: dict[Step, Result]
    progress: Progress | None
    say: Callable[[str], None]

    def tags(self, state: State) -> dict[str, str]:
        """Give the tags of the runs that a step starts."""
        return {PARENT: self.run_id, ATTEMPT: state.attempt}


def do_ingest(job: Job, state: State, *, again: bool) -> Result:
    """Make the atlas, unless a driver made it and was killed before it could say so."""
    section = job.pipeline.settings.ingest
    if not (again and made_of(intake_of(section))):
        words = section.model_dump(exclude={"sources", "out", "memory"})
        memory = int(section.memory * 2**30)
        ingest(section.sources, section.out, **words, memory=memory, progress=job.progress)
    atlas = Atlas.open(section.out)
    facts = {"digest": atlas.digest, "cells": atlas.n_cells, "genes": atlas.n_genes}
    return {"atlas": atlas.url, **facts}


def do_pretrain(job: Job, state: State, *, again: bool) -> Result:
    """Train and register a version; a run that has begun goes on from its last checkpoint."""
    section, name = job.pipeline.settings.pretrain, job.pipeline.settings.name
    begun = started_by(state.attempt) if again else None
    run_id = begun.info.run_id if begun else ""
    version = version_of_run(run_id) if begun else None
    if begun and version is not None:
        runs.finish_run(run_id, "FINISHED")
        metrics = {k: v for k, v in begun.data.metrics.items() if k.startswith("best_")}
    elif begun and runs.read_document(run_id, FILE) is not None:
        job.say(f"           run {run_id} had begun, and goes on from its last checkpoint")
        ref = resume(run_id, progress=job.progress)
        version, metrics = ref.version, ref.metrics
    else:
        ref = pretrain(
            job.pipeline.recipe,
            job.results["ingest"]["atlas"],
            name,
            experiment=section.experiment,
            storage=section.storage,
            tags=job.tags(state),
            progress=job.progress,
        )
        run_id, version, metrics = ref.run_id, ref.version, ref.metrics
    return {
        "model": f"models:/{name}/{version}",
        "version": version,
        "run_id": run_id,
        "metrics": metrics,
    }


def do_evaluate(job: Job, state: State, *, again: bool) -> Result:
    """Score the version by the suite."""
    section = job.pipeline.settings.evaluate
    found = evaluate_suite(
        job.results["pretrain"]["model"],
        job.results["ingest"]["atlas"],
        job.pipeline.suite,
        given=section.given(),
        max_cells=section.max_cells,
        out=section.out,
        tags=job.tags(state),
        progress=job.progress,
    )
    gates = [] if found.gates is None else found.gates.to_dict("records")
    return {
        "report": str(found.folder / "report.html"),
        "runs": {name: report.run_id for name, report in found.reports.items()},
        "gates": len(gates),
        "gates_passed": sum(bool(gate["passed"]) for gate in gates),
    }


def do_promote(job: Job, state: State, *, again: bool) -> Result:
    """Set the alias where the version is better and passes the gates; say why not, if not."""
    pipeline, section = job.pipeline, job.pipeline.settings.promote
    name, version = pipeline.settings.name, str(job.results["pretrain"]["version"])
    _evaluate_holders(job, state)
    why, failed, old = None, False, _aliases(name).get(section.alias)
    try:
        if pipeline.gated:
            promote_gated(
                name,
                source=version,
                suite=pipeline.suite,
                file=pipeline.suite_file,
                to=section.alias,
                if_better=section.if_better,
            )
        else:
            promote(name, source=version, to=section.alias, if_better=section.if_better)
    except FailedGatesError as error:
        why, failed = error.what, True
    except NotBetterError as error:
        why = error.what
    return {
        "promoted": why is None,
        "alias": f"models:/{name}@{section.alias}",
        "version": int(version),
        "old": old,
        "why": why,
        "gates_failed": failed,
    }


DO: Mapping[Step, Callable[..., Result]] = {
    "ingest": do_ingest,
    "pretrain": do_pretrain,
    "evaluate": do_evaluate,
    "promote": do_promote,
}


def holds(pipeline: Pipeline, step: Step, results: Mapping[Step, Result]) -> bool:
    """Say whether what came of a step is still there.

    Parameters
    ----------
    pipeline
        What shall be done.
    step
        Which step.
    results
        Its result, and those of the steps before it, which hold.

    Raises
    ------
    CellrayError
        The atlas has changed since, and may not be replaced.
    """
    result = results[step]
    if step == "ingest":
        return _atlas_holds(pipeline, result)
    if step == "pretrain":
        return bool(version_of_run(result["run_id"]) == result["version"])
    if step == "evaluate":
        wanted = _wanted(pipeline, results["ingest"])
        return wanted.keys() == stored_by(results["pretrain"]["model"], wanted).keys()
    return True


def _atlas_holds(pipeline: Pipeline, result: Result) -> bool:
    try:
        there = Atlas.open(result["atlas"])
    except CellrayError as error:
        logger.warning("ingest is done again: %s", error.what)
        return False
    if there.digest != result["digest"] and not pipeline.settings.ingest.overwrite:
        raise CellrayError(
            f"{there.url} is not as the pipeline has written it: it was added to, or made anew",
            "set ingest.overwrite to true to make it anew, or ingest.out to another place",
        )
    return bool(there.digest == result["digest"])


def _wanted(pipeline: Pipeline, ingested: Result) -> dict[str, Protocol]:
    """Give what the evaluations by the suite are known by."""
    section = pipeline.settings.evaluate
    given, _ = settled(pipeline.suite, section.given(), Atlas.open(ingested["atlas"]))
    return protocols(pipeline.suite.specs(given), ingested["digest"], section.max_cells)


@store_errors()
def _aliases(name: str) -> dict[str, int]:
    return aliases_of(find_model(client(), name))


def _evaluate_holders(job: Job, state: State) -> None:
    """Score the versions that the new one has to be better than, where they were not yet."""
    settings, suite = job.pipeline.settings, job.pipeline.suite
    ingested, aliases = job.results["ingest"], _aliases(settings.name)
    wanted = _wanted(job.pipeline, ingested)
    given, _ = settled(suite, settings.evaluate.given(), Atlas.open(ingested["atlas"]))
    over = job.pipeline.gated and any(gate.over == CHAMPION for gate in suite.gates.values())
    names = ([settings.promote.alias] if settings.promote.if_better else []) + [CHAMPION] * over
    new = job.results["pretrain"]["version"]
    for version in {aliases[name] for name in names if name in aliases} - {new}:
        uri = f"models:/{settings.name}/{version}"
        missing = wanted.keys() - stored_by(uri, wanted).keys()
        if missing:
            job.say(f"           {uri} was not evaluated so yet: {', '.join(sorted(missing))}")
            evaluate_suite(
                uri,
                ingested["atlas"],
                suite.only(missing),
                given=given,
                max_cells=settings.evaluate.max_cells,
                tags=job.tags(state),
                progress=job.progress,
            )
