"""The leaderboard: the versions of a registry by a suite's scores, beside what they cost."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from cellray.atlas.store import Atlas
from cellray.core.errors import CellrayError, suggest
from cellray.core.types import Progress, Rows
from cellray.evaluation.asked import MAX_CELLS
from cellray.evaluation.board_page import render_board
from cellray.evaluation.export import check_folder
from cellray.evaluation.gates import protocols, stored_by
from cellray.evaluation.gather import choose_cells, name_genes
from cellray.evaluation.held_out import settled
from cellray.evaluation.report import write_files
from cellray.evaluation.run import evaluate_suite
from cellray.evaluation.standing import Board, Cost, Row, ranked, score_of
from cellray.evaluation.suite import Suite
from cellray.feed.session import ray_session
from cellray.learn.embed import embed_rows, gene_columns
from cellray.tasks.task import Spec
from cellray.track.catalogue import list_models, show_model
from cellray.track.evaluations import Evaluation, Protocol, says_worth
from cellray.track.models import Resolved, resolve
from cellray.track.store import client, store_errors

FOLDER = ".cellray/leaderboard"
TIMED_CELLS = 2_000
TIMES = 3
"""How often the same cells are embedded; the fastest counts, as others may use the machine."""


@dataclass(frozen=True)
class _Asked:
    """What all versions are scored by."""

    suite: Suite
    entries: Mapping[str, tuple[str, Spec]]
    given: Mapping[str, Any]
    atlas: Atlas
    wanted: Mapping[str, Protocol]
    max_cells: int

    @property
    def seed(self) -> int:
        """By which cells are chosen."""
        return next(spec.seed for _, spec in self.entries.values())


def leaderboard(
    names: Sequence[str] = (),
    *,
    atlas: str,
    suite: Suite,
    given: Mapping[str, Any] = MappingProxyType({}),
    metrics: Sequence[str] = (),
    max_cells: int = MAX_CELLS,
    out: str | Path | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Board:
    """Rank registered versions by the scores of a suite on one atlas, beside their cost.

    An evaluation by the same protocol (task, state of the atlas, parameters) that MLflow holds is
    taken as it is; what is missing is evaluated now, as by ``cellray evaluate``. How many cells a
    version embeds in a second is measured for all versions in this process, one after another, on
    the same cells of the atlas; the fastest of three counts.

    Parameters
    ----------
    names
        Registered models; none takes all.
    atlas
        The atlas's URL.
    suite
        Tasks, and gates whose metrics are shown.
    given
        As of `cellray.evaluation.run.evaluate_suite`.
    metrics
        ``ENTRY/model/READOUT/METRIC`` to show, ranked by the first; by default those of the
        suite's gates, or all where it has none.
    max_cells
        Cells that are scored at most.
    out
        Folder for ``leaderboard.html`` and ``leaderboard.json``; None is ``.cellray/leaderboard``.
    progress
        Called with ("time", versions, all versions), and as by `evaluate_suite`.
    tell
        Is told in a line what begins.

    Raises
    ------
    CellrayError
        No such model, an atlas or column that cannot be used, a metric that no task gives. What
        keeps one version from being evaluated stands in its row.
    """
    asked, versions, folder = _ask(names, atlas, suite, given, max_cells, out)
    timed = asked.atlas.read_cells(choose_cells(asked.atlas, TIMED_CELLS, asked.seed))
    costed = []
    for number, (name, version) in enumerate(versions, 1):  # while nothing else goes on here
        costed.append(_costed(asked, timed, name, version, tell))
        if progress is not None:
            progress("time", number, len(versions))
    with ExitStack() as session:
        found = [_evaluated(asked, row, session, progress, tell) for row in costed]
    shown = _shown(suite, metrics, [evaluations for _, evaluations in found])
    board = Board(
        atlas=asked.atlas.url,
        atlas_digest=asked.atlas.digest,
        tasks={name: task for name, (task, _) in asked.entries.items()},
        given=dict(asked.given),
        max_cells=max_cells,
        metrics=shown,
        rows=ranked([_scored(row, evaluations, shown) for row, evaluations in found], shown),
        threads=torch.get_num_threads(),
        timed_cells=len(timed),
        folder=folder,
    )
    write_files({"leaderboard.html": render_board(board), "leaderboard.json": board.json()}, folder)
    return board


def dry_run(
    names: Sequence[str] = (),
    *,
    atlas: str,
    suite: Suite,
    given: Mapping[str, Any] = MappingProxyType({}),
    metrics: Sequence[str] = (),
    max_cells: int = MAX_CELLS,
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Say which versions `leaderboard` would evaluate; nothing is started or written.

    Raises
    ------
    CellrayError
        What it refuses before it times a version, or a metric that no stored evaluation has.
    """
    asked, versions, folder = _ask(names, atlas, suite, given, max_cells, out)
    stored = {one["uri"]: stored_by(one["uri"], asked.wanted) for _, one in versions}
    shown = _shown(suite, metrics, [*stored.values()])
    missing = {uri: [n for n in asked.entries if n not in has] for uri, has in stored.items()}
    return {
        "atlas": asked.atlas.url,
        "tasks": {name: task for name, (task, _) in asked.entries.items()},
        "cells_scored": min(max_cells, asked.atlas.n_cells),
        "versions": len(versions),
        "would_evaluate": {uri: " and ".join(lacks) for uri, lacks in missing.items() if lacks},
        "metrics": shown,
        "out": str(folder),
    }


def _ask(
    names: Sequence[str],
    atlas: str,
    suite: Suite,
    given: Mapping[str, Any],
    max_cells: int,
    out: str | Path | None,
) -> tuple[_Asked, list[tuple[str, dict[str, Any]]], Path]:
    """Check what is asked; give that, the versions by their models, and the folder."""
    opened = Atlas.open(atlas)
    given, _ = settled(suite, given, opened)
    entries = suite.specs(given)
    specs = [spec for _, spec in entries.values()]
    opened.obs(list(dict.fromkeys(name for spec in specs for name in spec.columns)))
    folder = Path(out or FOLDER).expanduser().absolute()
    check_folder(folder)
    chosen = names or [model["name"] for model in list_models()]
    versions = [(name, one) for name in chosen for one in show_model(name)["versions"]]
    if not versions:
        raise CellrayError("no model is registered", "make one with 'cellray pretrain'")
    wanted = protocols(entries, opened.digest, max_cells)
    return _Asked(suite, entries, given, opened, wanted, max_cells), versions, folder


def _costed(
    asked: _Asked,
    timed: Rows,
    name: str,
    version: Mapping[str, Any],
    tell: Callable[[str], None],
) -> Row:
    """Begin a version's row: what it is, and what it costs or why that cannot be told."""
    row = Row(
        name=name,
        version=version["version"],
        uri=version["uri"],
        aliases=version["aliases"],
        objective=version["tags"].get("objective"),
        encoder=version["tags"].get("encoder"),
    )
    try:
        return replace(row, cost=_cost(asked, timed, resolve(row.uri)))
    except CellrayError as error:
        tell(f"{row.uri}: {error.what}")
        return replace(row, reason=error.what)


def _evaluated(
    asked: _Asked,
    row: Row,
    session: ExitStack,
    progress: Progress | None,
    tell: Callable[[str], None],
) -> tuple[Row, dict[str, Evaluation]]:
    """Give a version's evaluations by all entries, of which those are made that are missing."""
    if row.reason is not None:
        return row, {}
    stored = stored_by(row.uri, asked.wanted)
    missing = [name for name in asked.entries if name not in stored]
    if missing:
        tell(f"{row.uri}: evaluating {', '.join(missing)}")
        session.enter_context(ray_session())
        part = asked.suite.only(missing)
        at_most, url = asked.max_cells, asked.atlas.url
        try:
            evaluate_suite(
                row.uri, url, part, given=asked.given, max_cells=at_most, progress=progress
            )
        except CellrayError as error:
            tell(f"{row.uri}: {error.what}")
            return replace(row, reason=error.what), {}
        stored = stored_by(row.uri, asked.wanted)
    return row, {name: stored[name] for name in asked.entries}


def _cost(asked: _Asked, timed: Rows, resolved: Resolved) -> Cost:
    """Count what a version's training took, and time its embedding."""
    learner = resolved.learner
    orthologs = next((spec.orthologs for _, spec in asked.entries.values() if spec.orthologs), None)
    columns = gene_columns(learner.genes, name_genes(asked.atlas, learner, orthologs).genes)
    seconds = []
    for _ in range(TIMES):
        began = time.perf_counter()
        embed_rows(learner, timed, columns)
        seconds.append(time.perf_counter() - began)
    steps = resolved.facts.get("metrics", {}).get("best_step")
    return Cost(
        parameters=sum(p.numel() for p in learner.encoder.parameters()),
        cells_per_s=len(timed) / min(seconds),
        training_cells=None if steps is None else int(steps) * learner.recipe.data.batch_size,
        training_seconds=_training_seconds(resolved.run_id),
    )


@store_errors()
def _training_seconds(run_id: str) -> float | None:
    """Give how long the run of a version took; None while it goes on."""
    info = client().get_run(run_id).info
    return None if info.end_time is None else (info.end_time - info.start_time) / 1000


def _shown(
    suite: Suite, metrics: Sequence[str], found: Sequence[Mapping[str, Evaluation]]
) -> list[str]:
    """Give the metrics to show, which some task must have given."""
    known = sorted(
        {
            f"{name}/{metric}"
            for evaluations in found
            for name, one in evaluations.items()
            for metric in one.metrics
            if says_worth(metric)
        }
    )
    gated = [metric for metric in suite.gates if metric.split("/")[1:2] == ["model"]]
    wanted = list(dict.fromkeys(metrics or gated or known))
    for metric in wanted:
        if known and metric not in known:
            raise CellrayError(
                f"'{metric}' is no score that the suite's tasks give", suggest(metric, known)
            )
    return wanted


def _scored(row: Row, evaluations: Mapping[str, Evaluation], shown: Sequence[str]) -> Row:
    """Fill in the scores."""
    if not evaluations:
        return row
    scores, baselines = {}, {}
    for metric in shown:
        entry, _, readout, name = metric.split("/")
        values = evaluations[entry].metrics
        score = score_of(values, f"model/{readout}/{name}")
        if score is not None:
            scores[metric] = score
        baselines[metric] = {
            method: values[key]
            for key in values
            if key.count("/") == 2
            and key.endswith(f"/{readout}/{name}")
            and (method := key.split("/")[0]) not in {"model", "champion"}
        }
    if not scores:
        return replace(row, reason=f"its evaluations do not give {', '.join(shown)}")
    seen = {one.tags.get("seen_in_pretraining") for one in evaluations.values()}
    share = next(iter(seen)) if len(seen) == 1 else None
    return replace(
        row,
        scores=scores,
        baselines=baselines,
        seen=None if share in {None, "None"} else float(str(share)),
        runs={name: one.run_id for name, one in evaluations.items()},
    )
