"""Evaluation as one call: resolve, embed, score, write, log."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import ray
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from cellray.atlas.store import Atlas
from cellray.core.types import Progress, Rows
from cellray.evaluation.cache import embed_once
from cellray.evaluation.export import check_folder, source_order
from cellray.evaluation.facts import facts_of, params_of, reader_notes, weights_of
from cellray.evaluation.leak import seen_cells
from cellray.evaluation.report import render, report_files, write_files
from cellray.evaluation.suite import Suite
from cellray.feed.session import ray_session
from cellray.learn.embed import gene_columns, matched_share
from cellray.tasks.table import find_task
from cellray.tasks.task import Embeddings, Report, Spec, sample_cells
from cellray.track.models import Resolved, champion_of, log_evaluation, resolve

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
    obs = opened.obs(list(dict.fromkeys(name for spec in specs for name in spec.columns)))
    matrices = list(dict.fromkeys(spec.matrix for spec in specs if spec.matrix is not None))
    for key in matrices:
        opened.require_matrix(key)
    resolved = resolve(model)
    folder = Path(
        out or f".cellray/reports/{resolved.name}-v{resolved.version}-{'-'.join(entries)}"
    )
    folder = folder.expanduser().absolute()
    check_folder(folder)
    columns = gene_columns(resolved.learner.genes, opened.genes)
    # In the order of the sources: the splits then do not depend on how the atlas was shuffled.
    order = source_order(opened.obs(["cellray_source", "cellray_row"]))
    cells = order[sample_cells(opened.n_cells, max_cells, specs[0].seed, "evaluation cells")]
    embeddings = _embeddings(resolved, opened, obs, matrices, cells, progress)
    share = matched_share(columns, len(resolved.learner.genes))
    split_by = next((spec.split_by for spec in specs if spec.split_by is not None), None)
    seen = seen_cells(resolved, opened, cells, embeddings.counts, split_by)
    notes = reader_notes(seen, opened, share, scored=len(cells))
    reports = {
        name: replace(
            report,
            common=notes,
            facts=facts_of(resolved, opened, entries[name], share, seen),
            folder=folder if len(entries) == 1 else folder / name,
        )
        for name, report in _run(entries, embeddings, progress).items()
    }
    gates = suite.judge(reports)
    titles = {
        find_task(task).title + ("" if name == task else f" ({name})"): reports[name]
        for name, (task, _) in entries.items()
    }
    write_files({"report.html": render(titles, gates)}, folder)
    for name, report in reports.items():
        run_id = _log(resolved, opened, report, entries[name][1], max_cells)
        reports[name] = replace(report, run_id=run_id)
    return Evaluation(reports, gates, folder)


def _embeddings(
    resolved: Resolved,
    atlas: Atlas,
    obs: pd.DataFrame,
    matrices: list[str],
    cells: NDArray[np.int64],
    progress: Progress | None,
) -> Embeddings:
    """Embed the atlas, and take the cells that are scored."""
    learners = {"model": resolved.learner, "untrained": resolved.learner.untrained()}
    weights = weights_of(resolved)
    digests = {"model": weights, "untrained": f"u{weights}"}
    champion = champion_of(resolved)
    if champion is not None:
        learners["champion"] = champion.learner
        digests["champion"] = weights_of(champion)
    found = embed_once(
        {digests[method]: learner for method, learner in learners.items()}, atlas, progress=progress
    )
    rows = atlas.read_cells(cells, matrices=matrices)
    return Embeddings(
        frozen={method: np.asarray(found[digests[method]][cells]) for method in learners},
        counts=rows.to_scipy(),
        obs=obs.iloc[cells].reset_index(drop=True),
        genes=atlas.genes,
        matrices={key: _dense(rows.matrices[key]) for key in matrices},
        learners=learners,
    )


def _dense(values: NDArray[Any] | Rows) -> NDArray[np.float32]:
    if isinstance(values, Rows):
        values = values.to_scipy().toarray()
    return np.ascontiguousarray(values, np.float32)


def _run(
    entries: Mapping[str, tuple[str, Spec]], embeddings: Embeddings, progress: Progress | None
) -> dict[str, Report]:
    """Run the tasks: one here, several beside each other in Ray."""
    if len(entries) == 1:
        ((name, (task, spec)),) = entries.items()
        return {name: _task(task, embeddings, spec)}
    with ray_session():
        shared = ray.put(embeddings)
        remote: Any = ray.remote(num_cpus=1)(_task)
        refs = {remote.remote(task, shared, spec): name for name, (task, spec) in entries.items()}
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
) -> str:
    """Write a task's files, and log them with its metrics."""
    texts = report_files(report)
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
            params=params_of(spec) | {"max_cells": str(max_cells)},
            task=report.task,
        )
