"""Evaluation as one call: resolve, embed, score, write, log."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
import ray
from threadpoolctl import threadpool_limits

from cellray.atlas.store import Atlas
from cellray.core.errors import CellrayError
from cellray.core.types import Progress
from cellray.evaluation.export import check_folder
from cellray.evaluation.facts import facts_of, params_of, reader_notes
from cellray.evaluation.gather import choose_cells, gather, name_genes
from cellray.evaluation.leak import seen_cells
from cellray.evaluation.report import render, report_files, write_files
from cellray.evaluation.suite import Suite
from cellray.feed.session import ray_session
from cellray.tasks.table import find_task
from cellray.tasks.task import Embeddings, Report, Spec
from cellray.track.models import Resolved, log_evaluation, resolve

MAX_CELLS = 50_000
"""Cells that are scored at most: PCA and kNN hold them in memory."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a suite found.

    Attributes
    ----------
    reports
        By the name of the suite's entry.
    gates
        ``metric``, ``wanted``, ``value``, ``passed``; None where the suite has none.
    folder
        Where ``report.html`` lies, and a folder for each entry.
    """

    reports: Mapping[str, Report]
    gates: pd.DataFrame | None
    folder: Path

    @property
    def passed(self) -> bool:
        """Whether every gate has passed."""
        return self.gates is None or bool(self.gates["passed"].all())

    def document(self) -> dict[str, Any]:
        """Give all but the figures as plain values and paths."""
        return {
            "reports": {name: report.document() for name, report in self.reports.items()},
            "gates": None if self.gates is None else self.gates.to_dict("records"),
            "passed": self.passed,
            "folder": self.folder,
        }


def evaluate(
    model: str,
    atlas: str,
    *,
    task: str = "annotation",
    max_cells: int = MAX_CELLS,
    out: str | Path | None = None,
    progress: Progress | None = None,
    **asked: Any,  # noqa: ANN401 - a spec's values are of several types
) -> Report:
    """Score a registered model on an atlas by one task, beside the baselines of the task.

    Parameters
    ----------
    model
        URI of a registered model, such as ``models:/pbmc@champion``.
    atlas
        The atlas's URL.
    task
        A task of `cellray.tasks.table`.
    max_cells, out, progress
        As of `evaluate_suite`.
    **asked
        ``label``, ``split_by`` and whatever else a `cellray.tasks.task.Spec` has.

    Returns
    -------
    Report
        With the folder and the MLflow run that hold it.

    Raises
    ------
    CellrayError
        As `evaluate_suite`.

    Examples
    --------
    >>> evaluate("models:/pbmc@champion", "pbmc.zarr", label="cell_type")  # doctest: +SKIP
    """
    suite = Suite.of({"tasks": {task: asked}})
    found = evaluate_suite(model, atlas, suite, max_cells=max_cells, out=out, progress=progress)
    return found.reports[task]


def evaluate_suite(
    model: str,
    atlas: str,
    suite: Suite,
    *,
    given: Mapping[str, Any] = MappingProxyType({}),
    max_cells: int = MAX_CELLS,
    out: str | Path | None = None,
    tags: Mapping[str, str] = MappingProxyType({}),
    progress: Progress | None = None,
) -> Evaluation:
    """Score a registered model on an atlas by the tasks of a suite, and hold it to its gates.

    The cells are embedded once, and never again by the same weights; the tasks run beside each
    other. Where another version is ``@champion``, it is scored on the same cells.

    Parameters
    ----------
    model
        URI of a registered model, such as ``models:/pbmc@champion``.
    atlas
        The atlas's URL.
    suite
        The tasks and gates.
    given
        What entries of the suite do not name, by the names of `cellray.tasks.task.Spec`.
    max_cells
        Score a random sample of so many cells when the atlas has more; the report says so.
    out
        Folder for ``report.html`` and the tables; None is
        ``.cellray/reports/NAME-vVERSION-ENTRIES`` in the working folder.
    tags
        More tags of the evaluations' runs.
    progress
        Called with ("embed", cells, all cells) and ("score", tasks, all tasks).

    Raises
    ------
    CellrayError
        An unknown task, model or column, an atlas that cannot be used, no gene in common, or
        what a task refuses.
    """
    entries = suite.specs(given)
    specs = [spec for _, spec in entries.values()]
    opened = Atlas.open(atlas)
    for name in (name for spec in specs for name in spec.columns):
        opened.require_column(name)
    resolved = resolve(model)
    folder = Path(
        out or f".cellray/reports/{resolved.name}-v{resolved.version}-{'-'.join(entries)}"
    )
    folder = folder.expanduser().absolute()
    check_folder(folder)
    named = name_genes(opened, resolved.learner, _only(specs, "orthologs"))
    cells = choose_cells(opened, max_cells, specs[0].seed)
    given_to = gather(resolved, named, cells, specs, max_cells=max_cells, progress=progress)
    split_by = next((spec.split_by for spec in specs if spec.split_by is not None), None)
    seen = seen_cells(resolved, opened, cells, given_to[None].counts, split_by)
    notes = reader_notes(seen, opened, named.share, scored=len(cells)) + named.notes
    reports = {
        name: replace(
            report,
            common=notes,
            facts=facts_of(resolved, opened, entries[name], named.share, seen),
            folder=folder if len(entries) == 1 else folder / name,
        )
        for name, report in _run(entries, given_to, progress).items()
    }
    gates = suite.judge(
        {name: report.metrics for name, report in reports.items()},
        champion="champion" in given_to[None].frozen,
    )
    titles = {
        find_task(task).title + ("" if name == task else f" ({name})"): reports[name]
        for name, (task, _) in entries.items()
    }
    write_files({"report.html": render(titles, gates)}, folder)
    for name, report in reports.items():
        own = None if gates is None else gates[gates["metric"].str.startswith(f"{name}/")]
        run_id = _log(resolved, opened, report, entries[name][1], max_cells, own, tags)
        reports[name] = replace(report, run_id=run_id)
    return Evaluation(reports, gates, folder)


def _only(specs: Sequence[Spec], name: str) -> Any:  # noqa: ANN401 - of any field
    """Give what all specs that name it agree on."""
    named = {getattr(spec, name) for spec in specs} - {None}
    if len(named) > 1:
        raise CellrayError(
            f"the suite's tasks name {len(named)} different {name}: {', '.join(sorted(named))}",
            "cells are embedded once: make a suite of each",
        )
    return next(iter(named), None)


def _run(
    entries: Mapping[str, tuple[str, Spec]],
    given_to: Mapping[str | None, Embeddings],
    progress: Progress | None,
) -> dict[str, Report]:
    """Run the tasks: one here, several beside each other in Ray."""
    if len(entries) == 1:
        ((name, (task, spec)),) = entries.items()
        return {name: _task(task, given_to[spec.reference], spec)}
    with ray_session():
        shared = {url: ray.put(embeddings) for url, embeddings in given_to.items()}
        remote: Any = ray.remote(num_cpus=1)(_task)
        refs = {
            remote.remote(task, shared[spec.reference], spec): name
            for name, (task, spec) in entries.items()
        }
        found, left = {}, [*refs]
        while left:
            (done,), left = ray.wait(left)
            try:
                found[refs[done]] = ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            if progress is not None:
                progress("score", len(found), len(entries))
    return {name: found[name] for name in entries}


def _task(task: str, embeddings: Embeddings, spec: Spec) -> Report:
    with threadpool_limits(1):  # the same numbers on any number of cores
        return find_task(task).run(embeddings, spec)


def _log(
    resolved: Resolved,
    atlas: Atlas,
    report: Report,
    spec: Spec,
    max_cells: int,
    gates: pd.DataFrame | None,
    more: Mapping[str, str],
) -> str:
    """Write a task's files, and log them with its metrics and with what its gates say."""
    texts = report_files(report)
    tags = {**more, "seen_in_pretraining": str(report.facts["seen_in_pretraining"])}
    if gates is not None and len(gates):
        texts["gates.csv"] = gates.to_csv(index=False)
        tags["gates"] = "passed" if gates["passed"].all() else "failed"
    assert report.folder is not None
    write_files(texts, report.folder)
    with tempfile.TemporaryDirectory(prefix="cellray-") as scratch:
        # Not the folder itself: it may hold files of the user's.
        page = {"report.html": render({find_task(report.task).title: report})}
        write_files(texts | page, Path(scratch))
        return log_evaluation(
            resolved,
            metrics=report.metrics,
            dataset_name=Path(atlas.url).name,
            dataset_digest=atlas.digest,
            dataset_url=atlas.url,
            artifacts=scratch,
            params=params_of(spec, max_cells),
            tags=tags,
            task=report.task,
        )
