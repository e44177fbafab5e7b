"""What an evaluation is asked, checked before any work, and what it would do."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from cellray.atlas.store import Atlas
from cellray.evaluation.export import check_folder
from cellray.evaluation.facts import params_of
from cellray.evaluation.gather import name_atlases
from cellray.evaluation.held_out import settled
from cellray.evaluation.suite import Suite
from cellray.tasks.task import Spec
from cellray.track.models import Resolved, champion_of, resolve

MAX_CELLS = 50_000
"""Cells that are scored at most: PCA and kNN hold them in memory."""


@dataclass(frozen=True, eq=False)
class Asked:
    """An evaluation that can begin. Make one with `of`.

    Attributes
    ----------
    resolved, champion
        The model, and the champion where that is another version.
    atlas
        What is scored.
    entries, params
        Tasks and specs by the suite's entries, and what MLflow keeps of how they are run.
    folder
        Where the report goes.
    why
        What is held out where nobody said it, from `cellray.evaluation.held_out.settled`.
    """

    resolved: Resolved
    champion: Resolved | None
    atlas: Atlas
    entries: Mapping[str, tuple[str, Spec]]
    params: Mapping[str, Mapping[str, str]]
    folder: Path
    why: str

    @classmethod
    def of(
        cls,
        model: str,
        atlas: str,
        suite: Suite,
        *,
        given: Mapping[str, Any],
        max_cells: int,
        out: str | Path | None,
    ) -> Self:
        """Check what `cellray.evaluation.run.evaluate_suite` is given.

        Raises
        ------
        CellrayError
            What it refuses before it opens what the model is to embed.
        """
        opened = Atlas.open(atlas)
        given, why = settled(suite, given, opened)
        entries = suite.specs(given)
        for name in (name for _, spec in entries.values() for name in spec.columns):
            opened.require_column(name)
        params = {name: params_of(spec, max_cells) for name, (_, spec) in entries.items()}
        resolved = resolve(model)
        champion = champion_of(resolved)
        folder = Path(
            out or f".cellray/reports/{resolved.name}-v{resolved.version}-{'-'.join(entries)}"
        )
        folder = folder.expanduser().absolute()
        check_folder(folder)
        return cls(resolved, champion, opened, entries, params, folder, why)

    @property
    def specs(self) -> list[Spec]:
        """The specs of all entries."""
        return [spec for _, spec in self.entries.values()]


def dry_run(
    model: str,
    atlas: str,
    suite: Suite,
    *,
    given: Mapping[str, Any] = MappingProxyType({}),
    max_cells: int = MAX_CELLS,
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Say what `cellray.evaluation.run.evaluate_suite` would do; nothing is started or written.

    Raises
    ------
    CellrayError
        What it refuses before it embeds a cell.
    """
    asked = Asked.of(model, atlas, suite, given=given, max_cells=max_cells, out=out)
    named, references = name_atlases(asked.resolved.learner, asked.atlas, asked.specs)
    cells = sum(one.atlas.n_cells for one in (*named.values(), *references.values()))
    return {
        "model": asked.resolved.uri,
        "atlas": asked.atlas.url,
        "genes_matched": min(one.share for one in named.values()),
        "cells_embedded": cells,
        "embedded_by": ["model", "untrained", *(["champion"] if asked.champion else [])],
        "cells_scored": min(max_cells, asked.atlas.n_cells),
        "tasks": {name: task for name, (task, _) in asked.entries.items()},
        "splits": {name: spec.splits for name, (_, spec) in asked.entries.items()},
        "held_out": {name: spec.split_by for name, (_, spec) in asked.entries.items()},
        "gates": [*suite.gates],
        "out": str(asked.folder),
    }
