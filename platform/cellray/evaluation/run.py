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
from cellray.core.types import Progress
from cellray.evaluation.asked import MAX_CELLS, Asked
from cellray.evaluation.facts import facts_of, reader_notes
from cellray.evaluation.gather import Scored, Source, gather
from cellray.evaluation.held_out import split_how
from cellray.evaluation.leak import Seen, seen_cells
from cellray.evaluation.report import render, report_files, verdicts, write_files
from cellray.evaluation.suite import Suite
from cellray.feed.session import ray_session
from cellray.tasks.table import find_task
from cellray.tasks.task import Embeddings, Report, Spec
from cellray.track.models import Resolved, log_evaluation
from cellray.track.runs import artifact_page

PAGE = "report.html"
COMPARED = "against_champion"
"""A task's table of differences from the champion."""


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
        What entries of the suite do not name, by the names of `cellray.tasks.task.Spec`. What
        neither names ``split_by`` of holds out donors (`cellray.evaluation.held_out`).
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
    asked = Asked.of(model, atlas, suite, given=given, max_cells=max_cells, out=out)
    resolved, champion, opened = asked.resolved, asked.champion, asked.atlas
    entries, specs, params, folder = asked.entries, asked.specs, asked.params, asked.folder
    scored = gather(resolved, champion, opened, specs, max_cells=max_cells, progress=progress)
    columns = list(dict.fromkeys(spec.held_out for spec in specs if spec.held_out is not None))
    seen: dict[int, dict[str, Seen]] = {}
    for source, one in scored.items():
        if source.seed not in seen:  # which decides the cells
            seen[source.seed] = _seen(resolved, champion, one, columns)
    reports = {}
    for name, report in _run(entries, scored, progress).items():
        task, spec = entries[name]
        one, known = scored[Source.of(spec)], seen[spec.seed]
        notes = reader_notes(known, opened, one.named.share, scored=len(one.cells))
        reports[name] = replace(
            report,
            protocol=f"{report.protocol}{split_how(find_task(task), spec, asked.why)}",
            common=(*notes, *one.named.notes),
            verdicts=verdicts(report),
            facts=facts_of(resolved, champion, opened, task, params[name], one.named.share, known),
            tables=_with_seen(report.tables, known),
            folder=folder if len(entries) == 1 else folder / name,
        )
    gates = suite.judge(
        {name: report.metrics for name, report in reports.items()},
        champion=champion is not None,
    )
    titles = {
        find_task(task).title + ("" if name == task else f" ({name})"): reports[name]
        for name, (task, _) in entries.items()
    }
    write_files({PAGE: render(titles, gates)}, folder)
    for name, report in reports.items():
        own = None if gates is None else gates[gates["metric"].str.startswith(f"{name}/")]
        run_id = _log(resolved, opened, report, own, tags)
        reports[name] = replace(report, run_id=run_id, page=artifact_page(run_id, PAGE))
    return Evaluation(reports, gates, folder)


def _seen(
    resolved: Resolved, champion: Resolved | None, scored: Scored, columns: Sequence[str]
) -> dict[str, Seen]:
    """Find what the model, and the champion beside it, have seen of the cells and their donors."""
    atlas, cells, counts = scored.named.atlas, scored.cells, scored.embeddings.counts
    found = {"model": seen_cells(resolved, atlas, cells, counts, columns)}
    if champion is not None:
        who = f"the champion ({champion.uri})"
        found["champion"] = seen_cells(champion, atlas, cells, counts, columns, who)
    return found


def _with_seen(
    tables: Mapping[str, pd.DataFrame], seen: Mapping[str, Seen]
) -> dict[str, pd.DataFrame]:
    """Say in the comparison with the champion which of the two has seen how much of the cells."""
    found = dict(tables)
    if COMPARED in found:
        shares = {f"{method}_seen": one.share for method, one in seen.items()}
        found[COMPARED] = found[COMPARED].assign(**shares)
    return found


def _run(
    entries: Mapping[str, tuple[str, Spec]],
    scored: Mapping[Source, Scored],
    progress: Progress | None,
) -> dict[str, Report]:
    """Run the tasks: one here, several beside each other in Ray."""
    if len(entries) == 1:
        ((name, (task, spec)),) = entries.items()
        return {name: _task(task, scored[Source.of(spec)].embeddings, spec)}
    with ray_session():
        shared = {source: ray.put(one.embeddings) for source, one in scored.items()}
        remote: Any = ray.remote(num_cpus=1)(_task)
        refs = {
            remote.remote(task, shared[Source.of(spec)], spec): name
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
        held_out = spec.model_copy(update={"split_by": spec.held_out})
        return find_task(task).run(embeddings, held_out)


def _log(
    resolved: Resolved,
    atlas: Atlas,
    report: Report,
    gates: pd.DataFrame | None,
    more: Mapping[str, str],
) -> str:
    """Write a task's files, and log them with its metrics and with what its gates say."""
    texts = report_files(report)
    tags = {**more, "seen_in_pretraining": str(report.facts["seen_in_pretraining"])}
    if report.facts["champion"] is not None:
        said = ("champion", "champion_seen_in_pretraining")
        tags |= {name: str(report.facts[name]) for name in said}
    if gates is not None and len(gates):
        texts["gates.csv"] = gates.to_csv(index=False)
        tags["gates"] = "passed" if gates["passed"].all() else "failed"
    assert report.folder is not None
    write_files(texts, report.folder)
    with tempfile.TemporaryDirectory(prefix="cellray-") as scratch:
        # Not the folder itself: it may hold files of the user's.
        page = {PAGE: render({find_task(report.task).title: report})}
        write_files(texts | page, Path(scratch))
        return log_evaluation(
            resolved,
            metrics=report.metrics,
            dataset_name=Path(atlas.url).name,
            dataset_digest=atlas.digest,
            dataset_url=atlas.url,
            artifacts=scratch,
            params=report.facts["params"],
            tags=tags,
            task=report.task,
        )
