"""What tasks are given: cells of atlases, embedded once, with what the specs name of them.

Shape suffixes: N cells, A genes of an atlas.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from cellray.atlas.store import Atlas
from cellray.core.errors import CellrayError
from cellray.core.types import Progress, Rows
from cellray.evaluation.cache import embed_once
from cellray.evaluation.export import source_order
from cellray.learn.embed import gene_columns, matched_share
from cellray.learn.learner import Learner
from cellray.tasks.orthologs import ortholog_names
from cellray.tasks.task import Embeddings, Spec, sample_cells
from cellray.track.models import Resolved

LEAST_SHARE = 0.1
"""Of the model's genes that an atlas must have: with fewer, the model sees next to nothing."""


@dataclass(frozen=True, eq=False)
class Named:
    """An atlas whose genes have the names of the model's.

    Attributes
    ----------
    atlas
        The atlas.
    genes
        Names of its genes, shape (A,): its own, or those of their orthologs.
    share
        Of the model's genes, those among them.
    notes
        What a reader has to know of the names.
    """

    atlas: Atlas
    genes: NDArray[np.str_]
    share: float
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What of atlas and names an embedding depends on."""
        if np.array_equal(self.genes, self.atlas.genes):
            return self.atlas.digest
        names = "\n".join(self.genes.tolist())
        return hashlib.sha256(f"{self.atlas.digest}\n{names}".encode()).hexdigest()


def name_genes(atlas: Atlas, learner: Learner, orthologs: str | None) -> Named:
    """Name an atlas's genes as the model does, and see that it has enough of them.

    Raises
    ------
    CellrayError
        Too few of the model's genes, or what `ortholog_names` refuses.
    """
    genes = atlas.genes
    notes: tuple[str, ...] = ()
    if orthologs is not None:
        genes, note = ortholog_names(orthologs, atlas.genes, learner.genes)
        notes = (note,)
    alike = {name.upper() for name in learner.genes} & {name.upper() for name in genes.tolist()}
    shared = {*learner.genes} & {*genes.tolist()}
    hint = (
        "many more are the same but for upper and lower case: where it is another species, give "
        "--orthologs TABLE"
        if len(alike) >= LEAST_SHARE * len(learner.genes) > len(shared)
        else "give an atlas of the same species with the same kind of gene names, or --orthologs"
    )
    if not shared:
        try:
            gene_columns(learner.genes, genes)
        except CellrayError as error:
            raise CellrayError(error.what, hint) from error
    share = matched_share(gene_columns(learner.genes, genes), len(learner.genes))
    if share < LEAST_SHARE:
        raise CellrayError(
            f"{atlas.url} has {share:.1%} of the model's {len(learner.genes):,} genes, too few to "
            f"evaluate on ({LEAST_SHARE:.0%} are needed)",
            hint,
        )
    return Named(atlas, genes, share, notes)


def choose_cells(atlas: Atlas, max_cells: int, seed: int) -> NDArray[np.int64]:
    """Give positions of the cells that are scored.

    They come in the order of the sources: splits then do not depend on how the atlas was shuffled.
    """
    order = source_order(atlas.obs(["cellray_source", "cellray_row"]))
    return order[sample_cells(atlas.n_cells, max_cells, seed, "evaluation cells")]


class Source(NamedTuple):
    """What of a spec decides which cells a task is given, and how they are embedded."""

    orthologs: str | None
    seed: int
    reference: str | None

    @classmethod
    def of(cls, spec: Spec) -> Self:
        """Take it from a spec."""
        return cls(spec.orthologs, spec.seed, spec.reference)


@dataclass(frozen=True, eq=False)
class Scored:
    """Cells that are scored.

    Attributes
    ----------
    named
        Their atlas.
    cells
        Positions in it.
    embeddings
        What a task is given of them.
    """

    named: Named
    cells: NDArray[np.int64]
    embeddings: Embeddings


def gather(
    resolved: Resolved,
    champion: Resolved | None,
    atlas: Atlas,
    specs: Sequence[Spec],
    *,
    max_cells: int,
    progress: Progress | None,
) -> dict[Source, Scored]:
    """Embed the scored atlas and those that specs refer to.

    Every task is given what it would be given alone: the cells that its seed chooses, with genes
    named by its own table of orthologs.

    Parameters
    ----------
    resolved, champion
        The model; beside it come the same encoder untrained, and the champion where that is
        another version.
    atlas
        The scored atlas.
    specs
        Which columns, matrices, orthologs and reference atlases are wanted.
    max_cells
        Of each atlas.
    progress
        As of `cellray.evaluation.run.evaluate_suite`.

    Returns
    -------
    dict
        What tasks are given, by what of their specs that depends on.

    Raises
    ------
    CellrayError
        No such column, matrix or atlas, or too few genes in common.
    """
    columns = list(dict.fromkeys(name for spec in specs for name in spec.columns))
    matrices = list(dict.fromkeys(spec.matrix for spec in specs if spec.matrix is not None))
    named, references = name_atlases(resolved.learner, atlas, specs)
    sources = list(dict.fromkeys(Source.of(spec) for spec in specs))
    learners, digests = _models(resolved, champion)
    scored = {}
    for orthologs, seed in dict.fromkeys((one.orthologs, one.seed) for one in sources):
        of, cells = named[orthologs], choose_cells(atlas, max_cells, seed)
        given = _embedded(learners, digests, of, cells, columns, matrices, progress)
        scored[orthologs, seed] = Scored(of, cells, given)
    others = {}
    for url, seed in dict.fromkeys((one.reference, one.seed) for one in sources):
        if url is not None:
            of = references[url]
            has = [name for name in columns if name in of.atlas.obs_columns]
            cells = choose_cells(of.atlas, max_cells, seed)
            others[url, seed] = _embedded(learners, digests, of, cells, has, [], progress)
    found = {}
    for one in sources:
        own = scored[one.orthologs, one.seed]
        other = None if one.reference is None else others[one.reference, one.seed]
        found[one] = replace(own, embeddings=replace(own.embeddings, reference=other))
    return found


def name_atlases(
    learner: Learner, atlas: Atlas, specs: Sequence[Spec]
) -> tuple[dict[str | None, Named], dict[str, Named]]:
    """Name the genes of the atlases that specs are about, and see that these hold what specs name.

    Returns
    -------
    scored : dict
        The scored atlas, by the table of orthologs that names its genes.
    references : dict
        The atlases that specs refer to, by URL.

    Raises
    ------
    CellrayError
        No such column, matrix or atlas, or too few genes in common.
    """
    atlas.obs(list(dict.fromkeys(name for spec in specs for name in spec.columns)))
    for spec in specs:
        if spec.matrix is not None:
            atlas.require_matrix(spec.matrix)
    urls = dict.fromkeys(spec.reference for spec in specs if spec.reference is not None)
    tables = dict.fromkeys(spec.orthologs for spec in specs)
    scored = {table: name_genes(atlas, learner, table) for table in tables}
    references = {url: name_genes(Atlas.open(url), learner, None) for url in urls}
    for spec in specs:
        if spec.reference is not None and spec.label is not None:
            references[spec.reference].atlas.obs([spec.label])
    return scored, references


def _models(
    resolved: Resolved, champion: Resolved | None
) -> tuple[dict[str, Learner], dict[str, str]]:
    """Give the learners that are compared, and the digests of what they are."""
    learners = {"model": resolved.learner, "untrained": resolved.learner.untrained()}
    digests = {"model": content_of(resolved), "untrained": f"u{content_of(resolved)}"}
    if champion is not None:
        learners["champion"] = champion.learner
        digests["champion"] = content_of(champion)
    return learners, digests


def content_of(resolved: Resolved) -> str:
    """Give a digest of all that an embedding depends on: weights, recipe, genes and batches."""
    files: Mapping[str, str] = resolved.facts["sha256"]
    lines = [*(f"{digest}  {name}" for name, digest in sorted(files.items()))]
    return hashlib.sha256("\n".join([*lines, *resolved.learner.batches]).encode()).hexdigest()


def _embedded(
    learners: Mapping[str, Learner],
    digests: Mapping[str, str],
    named: Named,
    cells: NDArray[np.int64],
    columns: list[str],
    matrices: list[str],
    progress: Progress | None,
) -> Embeddings:
    """Embed an atlas, and take some of its cells."""
    atlas = named.atlas
    by_digest = {digests[method]: learner for method, learner in learners.items()}
    z = embed_once(by_digest, atlas, key=named.key, genes=named.genes, progress=progress)
    rows = atlas.read_cells(cells, matrices=matrices)
    return Embeddings(
        frozen={method: np.asarray(z[digests[method]][cells]) for method in learners},
        counts=rows.to_scipy(),
        obs=atlas.obs(columns).iloc[cells].reset_index(drop=True),
        genes=named.genes,
        matrices={key: _dense(rows.matrices[key]) for key in matrices},
        learners=learners,
    )


def _dense(values: NDArray[Any] | Rows) -> NDArray[np.float32]:
    if isinstance(values, Rows):
        values = values.to_scipy().toarray()
    return np.ascontiguousarray(values, np.float32)
