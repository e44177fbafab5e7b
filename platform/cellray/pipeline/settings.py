"""A pipeline file: four sections, one a step, read and checked."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from cellray.atlas.store import Atlas
from cellray.atlas.vocabulary import read_vocabulary
from cellray.core.errors import CellrayError, suggest
from cellray.core.recipe import Recipe, checked
from cellray.core.sections import Section
from cellray.core.settings import read_yaml, set_key
from cellray.core.texts import read_text
from cellray.evaluation.asked import MAX_CELLS
from cellray.evaluation.gates import protocols
from cellray.evaluation.suite import Suite
from cellray.tasks.task import Spec
from cellray.track.models import check_name
from cellray.track.promotion import check_alias
from cellray.train.setup import gene_set_files

Step = Literal["ingest", "pretrain", "evaluate", "promote"]
STEPS: tuple[Step, ...] = ("ingest", "pretrain", "evaluate", "promote")


class Ingest(Section):
    """Files of counts to an atlas; all but `memory` as of `cellray.atlas.write.ingest`.

    Attributes
    ----------
    memory
        GiB of memory to stay below.
    """

    sources: tuple[str, ...] = Field(min_length=1)
    out: str
    layer: str | None = None
    rna: str = "rna"
    join: Literal["inner", "outer"] = "inner"
    genes: str | None = None
    gene_names: str = "index"
    duplicates: Literal["sum", "refuse"] = "refuse"
    obs: tuple[str, ...] | None = None
    matrices: tuple[str, ...] = ()
    seed: Annotated[int, Field(ge=0)] = 0
    memory: Annotated[float, Field(gt=0)] = 2.0
    overwrite: bool = False


class Pretrain(Section):
    """An atlas to a version of a registered model.

    Attributes
    ----------
    recipe
        A recipe file, by its path from the pipeline file, or the recipe itself.
    changes
        Dotted keys of the recipe and their values, as ``--set`` takes them.
    experiment, storage
        As of `cellray.pretrain`.
    """

    recipe: str | dict[str, Any] = Field(default_factory=dict)
    changes: dict[str, Any] = Field(default_factory=dict)
    experiment: str = "cellray"
    storage: str | None = None


class Evaluate(Spec):
    """A version to scores; beside these, what `cellray.evaluate` takes: ``label`` and the like.

    Attributes
    ----------
    suite
        A suite file, by its path from the pipeline file, or the name of one that comes with
        cellray; None is the task annotation, without gates.
    max_cells
        Cells that are scored at most.
    out
        Folder of the report.
    """

    suite: str | None = None
    max_cells: Annotated[int, Field(ge=1)] = MAX_CELLS
    out: str | None = None

    def given(self) -> dict[str, Any]:
        """Give what entries of the suite do not name, by the names of a `Spec`."""
        words = self.model_dump(exclude_unset=True)
        return {name: value for name, value in words.items() if name in Spec.model_fields}


class Promote(Section):
    """Which version an alias shall name, and when.

    Attributes
    ----------
    alias
        What to set.
    if_better
        A metric by which the version must be better than the alias's, as of `cellray.promote`.
    gates
        Whether it must pass the gates of the suite.
    """

    alias: str = "champion"
    if_better: str | None = None
    gates: bool = True


class Settings(Section):
    """A pipeline file.

    Attributes
    ----------
    name
        The registered model's name; what an earlier run of a pipeline has done is found by it.
    """

    name: str
    ingest: Ingest
    pretrain: Pretrain = Pretrain()
    evaluate: Evaluate
    promote: Promote

    @model_validator(mode="after")
    def _names_can_be(self) -> Self:
        check_name(self.name)
        check_alias(self.promote.alias)
        return self


APART: dict[Step, set[str]] = {
    "ingest": {"sources", "genes", "memory", "overwrite"},
    "pretrain": {"recipe", "changes", "storage", "experiment"},
    "evaluate": {*Evaluate.model_fields},
    "promote": set(),
}
"""Keys that do not count as they are: what they name counts, or they change no result."""


@dataclass(frozen=True)
class Pipeline:
    """A pipeline file, with the files that it names.

    Attributes
    ----------
    settings
        What it holds.
    recipe
        The recipe, with its changes.
    suite
        Tasks and gates.
    suite_file
        Where they were read from, for messages.
    """

    settings: Settings
    recipe: Recipe
    suite: Suite
    suite_file: str

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a pipeline file, its recipe and its suite.

        Raises
        ------
        CellrayError
            A file that is none; an unknown key, with the nearest; a value that cannot be; a
            promotion without a condition.
        """
        settings = checked(Settings, read_yaml(path), "pipeline")
        folder = Path(path).expanduser().parent
        suite, file = _suite(settings.evaluate.suite, folder)
        made = cls(settings, _recipe(settings.pretrain, folder), suite, file)
        made._check_condition()
        return made

    @property
    def gated(self) -> bool:
        """Whether the version must pass gates."""
        return self.settings.promote.gates and bool(self.suite.gates)

    def keys(self) -> dict[Step, str]:
        """Give what each step depends on, as a digest: what it is told, its files, those before.

        Files and atlases that are named count by what they hold; sources by name, size and time of
        their last change, since they may be too large to read. What changes no result does not
        count, nor what is left at its default, so that a new version of cellray, which knows more
        settings, finds what an older one has done.

        Raises
        ------
        CellrayError
            A source or a file is not there.
        """
        settings, suite = self.settings, self.suite
        told: dict[Step, Any] = {
            "ingest": [*map(_state_of, settings.ingest.sources), _vocabulary(settings.ingest)],
            "pretrain": [_plain(self.recipe), _read_by(self.recipe)],
            "evaluate": [
                protocols(suite.specs(settings.evaluate.given()), "", settings.evaluate.max_cells),
                {name: _plain(gate) for name, gate in suite.gates.items()},
            ],
            "promote": None,
        }
        found: dict[Step, str] = {}
        before = settings.name
        for step in STEPS:
            section = _plain(getattr(settings, step))
            section = {key: value for key, value in section.items() if key not in APART[step]}
            words = json.dumps([step, before, section, told[step]], sort_keys=True)
            found[step] = before = hashlib.sha256(words.encode()).hexdigest()
        return found

    def _check_condition(self) -> None:
        promote = self.settings.promote
        if promote.if_better is None and not self.gated:
            raise CellrayError(
                "the pipeline would promote whatever it trains: promote.if_better is not set, and "
                + ("the suite has no gates" if promote.gates else "promote.gates is false"),
                "name a metric, such as 'if_better: model/knn/macro_f1', or a suite with gates",
            )
        for gate in self.suite.gates:
            if gate.split("/")[0] not in self.suite.tasks:
                raise CellrayError(
                    f"gate '{gate}' of {self.suite_file} is of no task of it",
                    suggest(gate.split("/")[0], self.suite.tasks),
                )


def _recipe(section: Pretrain, folder: Path) -> Recipe:
    values = (
        read_yaml(folder / section.recipe)
        if isinstance(section.recipe, str)
        else Recipe.of(section.recipe).model_dump(mode="json")
    )
    for key, value in section.changes.items():
        set_key(values, key, value)
    return Recipe.of(values)


def _vocabulary(section: Ingest) -> str | None:
    """Give a digest of the genes that an atlas shall have."""
    if section.genes is None:
        return None
    return hashlib.sha256(read_vocabulary(section.genes).to_csv().encode()).hexdigest()


def _read_by(recipe: Recipe) -> dict[str, str]:
    """Give a digest of each file and atlas that a recipe names."""
    texts = {path: read_text(path, "gene sets") for path in gene_set_files(recipe)}
    found = {path: hashlib.sha256(text.encode()).hexdigest() for path, text in texts.items()}
    atlas = recipe.probe.atlas
    return found if atlas is None else found | {atlas: Atlas.open(atlas).digest}


def _plain(section: Section) -> dict[str, Any]:
    return section.model_dump(mode="json", exclude_defaults=True)


def _suite(file: str | None, folder: Path) -> tuple[Suite, str]:
    if file is None:
        return Suite.of({"tasks": {"annotation": {}}}), "the task annotation"
    bare = not Path(file).suffix and Path(file).name == file and not (folder / file).exists()
    found = file if bare else str(folder / file)
    return Suite.load(found), found


def _state_of(source: str) -> list[tuple[str, int, int]]:
    path = Path(source).expanduser()
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        stats = [(file.name, file.stat()) for file in files]
    except OSError as error:
        raise CellrayError(f"{source}: {error.strerror}", "check ingest.sources") from error
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
