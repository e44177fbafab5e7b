"""A cell-type ontology: a prediction finer than the label is no error."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cellray.core.errors import CellrayError
from cellray.core.texts import read_text


@dataclass(frozen=True)
class Ontology:
    """Which cell types are kinds of which.

    Parameters
    ----------
    ids
        Id of a term by its id and by its name; where terms have names only, these are the ids.
    ancestors
        All ids above a term, by its id: its parents, theirs, and so on.
    """

    ids: dict[str, str]
    ancestors: dict[str, frozenset[str]]

    @classmethod
    def of(cls, path: str) -> "Ontology":
        """Read an ontology.

        Parameters
        ----------
        path
            A local path or a URL (whatever fsspec opens), plain or gzipped. ``.obo``: terms are
            found by id or name; only ``is_a`` makes a parent, obsolete terms are left out.
            ``.tsv``: a table with the columns ``child`` and ``parent``.

        Raises
        ------
        CellrayError
            No such file, one that cannot be read, a format that is not known, no terms, a name of
            two terms, or terms that descend from each other.
        """
        name = path.lower().removesuffix(".gz")
        if not name.endswith((".obo", ".tsv")):
            raise CellrayError(
                f"ontology {path}: its name says no known format",
                "give an .obo file, or a .tsv table with the columns child and parent",
            )
        lines = read_text(path, "ontology").splitlines()
        ids, pairs = _obo(path, lines) if name.endswith(".obo") else _table(path, lines)
        if not ids:
            raise CellrayError(f"{path} holds no terms", "see whether it is the right file")
        return cls(ids, _ancestors(path, pairs))

    def descends(self, child: str, parent: str) -> bool:
        """Say whether `child` is a kind of `parent`, and not the same; unknown terms are not."""
        if child not in self.ids or parent not in self.ids:
            return False
        return self.ids[parent] in self.ancestors.get(self.ids[child], frozenset())

    def unknown(self, labels: ArrayLike) -> list[str]:
        """List the distinct labels that are neither the id nor the name of a term."""
        return sorted({str(label) for label in np.asarray(labels)} - self.ids.keys())


def lenient(true: ArrayLike, predicted: ArrayLike, ontology: Ontology) -> NDArray[Any]:
    """Replace each prediction that is a kind of the true label by the true label.

    For `score.annotation.f1`: "CD4 T cell" is right where the label is "T cell"; "T cell" is
    wrong where it is "CD4 T cell". A term's id and its name are the same term. Labels that the
    ontology does not know (`Ontology.unknown`) are right only where they are equal.

    Parameters
    ----------
    true, predicted
        Labels, shape (M,).

    Returns
    -------
    ndarray
        Predicted labels, shape (M,).

    Raises
    ------
    CellrayError
        The ontology knows none of the true labels.
    """
    true, predicted = np.asarray(true), np.asarray(predicted)
    pairs = list(zip(true.astype(str).tolist(), predicted.astype(str).tolist(), strict=True))
    labels = {label for label, _ in pairs}
    if len(ontology.unknown(true)) == len(labels):
        raise CellrayError(
            f"the ontology knows none of the labels, such as '{min(labels, default='')}'",
            "name the label column that holds its terms' ids or names",
        )
    right = {
        (label, guess): ontology.ids.get(label, label) == ontology.ids.get(guess, guess)
        or ontology.descends(guess, label)
        for label, guess in set(pairs)
    }
    return np.where([right[pair] for pair in pairs], true, predicted)


def _table(path: str, lines: Iterable[str]) -> tuple[dict[str, str], list[tuple[str, str]]]:
    rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    if not {"child", "parent"} <= set(rows.fieldnames or ()):
        raise CellrayError(
            f"{path} has no columns child and parent",
            "name them so in the first line, between tabs",
        )
    pairs = [((row["child"] or "").strip(), (row["parent"] or "").strip()) for row in rows]
    if any(not child or not parent for child, parent in pairs):
        raise CellrayError(f"{path} has a row without child or parent", "fill both, or drop it")
    return {term: term for pair in pairs for term in pair}, pairs


def _obo(path: str, lines: Iterable[str]) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Read the [Term] stanzas of the OBO flat file format 1.4; no other is a cell type."""
    ids: dict[str, str] = {}
    pairs = []
    for term in _stanzas(lines):
        if "true" in term.get("is_obsolete", ()) or "id" not in term:
            continue
        own = term["id"][0]
        for label in (own, *term.get("name", ())):
            if ids.setdefault(label, own) != own:
                raise CellrayError(
                    f"{path} has two terms named '{label}': {ids[label]} and {own}",
                    "rename one of them, or drop it",
                )
        pairs += [(own, parent) for parent in term.get("is_a", ())]
    return ids, pairs


def _stanzas(lines: Iterable[str]) -> Iterable[dict[str, list[str]]]:
    stanza: dict[str, list[str]] = {}
    inside = False
    for line in (*lines, "[End]"):
        if line.startswith("["):
            if inside:
                yield stanza
            stanza, inside = {}, line.strip() == "[Term]"
            continue
        tag, _, value = line.partition(":")
        # What follows are a comment and modifiers, as in "is_a: CL:1 {source="x"} ! a name".
        value = value.partition(" ! ")[0].partition(" {")[0].strip()
        stanza.setdefault(tag.strip(), []).append(value)


def _ancestors(path: str, pairs: Iterable[tuple[str, str]]) -> dict[str, frozenset[str]]:
    parents: dict[str, set[str]] = {}
    for child, parent in pairs:
        parents.setdefault(child, set()).add(parent)
    try:
        order = list(TopologicalSorter(parents).static_order())
    except CycleError as error:
        cycle = " > ".join(error.args[1])
        raise CellrayError(
            f"{path} has terms that descend from each other: {cycle}", "drop one of these pairs"
        ) from error
    above: dict[str, frozenset[str]] = {}
    for term in order:
        own = parents.get(term, set())
        above[term] = frozenset(own).union(*(above[parent] for parent in own))
    return above
