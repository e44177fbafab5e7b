"""A count simulator with known truth: cell types, donors, plates, gene programmes.

For cell c of type t, donor d and plate b, and gene g of programme k::

    n_cg ~ NegativeBinomial(mean = l_c p_cg, dispersion = phi)     variance = mean + phi mean^2
    l_c  ~ LogNormal, with mean `library` and log-scale spread `library_spread`
    p_cg = softmax over g of (base_g + activity_tk + donor_dg + plate_bg)
    base_g      ~ Normal(0, gene_spread)
    activity_tk ~ Normal(0, separation), 0 for genes of no programme
    donor_dg    ~ Normal(0, donor_spread)
    plate_bg    ~ Normal(0, batch_spread)

so that effects multiply and types differ in nothing but their programmes. Cells come in blocks of
`BLOCK`, each a pure function of the seed and of its number: a file can be written in bounded
memory and any part of it made again.

Shape suffixes: B cells of a block, G genes, T types, K programmes.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import anndata
import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack

from cellray.atlas.negbin import sample_counts
from cellray.core.errors import CellrayError
from cellray.core.seeds import generator
from cellray.core.types import Progress

BLOCK = 256
_STRIP = 64
_STORED = 1 << 20


@dataclass(frozen=True)
class Simulation:
    """Settings of the simulator; the module says what they mean in the model.

    Attributes
    ----------
    n_cells, n_genes, n_types, n_donors, n_batches, n_programmes
        How many of each. Batches are plates.
    programme_share
        Fraction of the genes that belong to a programme; programmes are disjoint and of one size.
    library, library_spread
        Mean of a cell's expected total count, and standard deviation of its logarithm.
    gene_spread
        Standard deviation of the genes' log abundance: the larger, the sparser the counts.
    dispersion
        Negative-binomial dispersion; 0 is Poisson.
    separation
        Standard deviation of a programme's log activity between types: how far types lie apart.
    donor_spread, batch_spread
        Standard deviation of the log effect of a donor and of a plate on a gene.
    ordered
        Plates follow one another, as in files that were joined, instead of being mixed.
    seed
        The same settings and seed give the same cells.
    """

    n_cells: int = 10_000
    n_genes: int = 2_000
    n_types: int = 8
    n_donors: int = 4
    n_batches: int = 2
    n_programmes: int = 16
    programme_share: float = 0.5
    library: float = 3_000.0
    library_spread: float = 0.4
    gene_spread: float = 2.0
    dispersion: float = 0.3
    separation: float = 1.0
    donor_spread: float = 0.1
    batch_spread: float = 0.1
    ordered: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("n_cells", "n_genes", "n_types", "n_donors", "n_batches", "n_programmes"):
            if getattr(self, name) < 1:
                raise CellrayError(f"a simulation with {name} = 0 or less", f"set {name} to 1 up")
        if not 0 <= self.programme_share <= 1:
            raise CellrayError("programme_share lies outside [0, 1]", "give a fraction")
        if self.library <= 0:
            raise CellrayError("library is not positive", "give the mean total count of a cell")
        for name in ("library_spread", "gene_spread", "dispersion", "separation"):
            if getattr(self, name) < 0:
                raise CellrayError(f"{name} is negative", f"set {name} to 0 up")
        if min(self.donor_spread, self.batch_spread) < 0:
            raise CellrayError("donor_spread or batch_spread is negative", "set it to 0 up")


@dataclass(frozen=True, eq=False)
class Truth:
    """What the simulated cells were drawn from.

    Attributes
    ----------
    programme
        Programme of each gene, shape (G,), int64, -1 for none.
    activity
        Log activity of each programme in each type, shape (T, K).
    base, donor, batch
        Log abundance of genes, shape (G,), and effects on it, shapes (donors, G), (batches, G).
    type_share
        Expected fraction of cells of each type, shape (T,).
    """

    programme: NDArray[np.int64]
    activity: NDArray[np.float64]
    base: NDArray[np.float64]
    donor: NDArray[np.float64]
    batch: NDArray[np.float64]
    type_share: NDArray[np.float64]

    def profiles(
        self, types: NDArray[Any], donors: NDArray[Any], batches: NDArray[Any]
    ) -> NDArray[np.float32]:
        """Give the expected share of each gene in cells' totals, shape (B, G); rows sum to 1."""
        active_TG = np.pad(self.activity, ((0, 0), (0, 1)))[:, self.programme]
        log_BG = self.base + active_TG[types] + self.donor[donors] + self.batch[batches]
        p_BG = np.exp(log_BG - log_BG.max(axis=1, keepdims=True))
        p_BG /= p_BG.sum(axis=1, keepdims=True)
        return np.asarray(p_BG, np.float32)


@lru_cache(maxsize=2)
def truth_of(simulation: Simulation) -> Truth:
    """Draw the parameters that all cells of a simulation share."""
    s = simulation
    programme = np.full(s.n_genes, -1, np.int64)
    size = int(s.n_genes * s.programme_share) // s.n_programmes
    order = generator(s.seed, "programmes").permutation(s.n_genes)
    for number in range(s.n_programmes):
        programme[order[number * size : (number + 1) * size]] = number

    def normal(word: str, *shape: int) -> NDArray[np.float64]:
        return generator(s.seed, word).standard_normal(shape)

    return Truth(
        programme=programme,
        activity=normal("activity", s.n_types, s.n_programmes) * s.separation,
        base=normal("base", s.n_genes) * s.gene_spread,
        donor=normal("donor", s.n_donors, s.n_genes) * s.donor_spread,
        batch=normal("batch", s.n_batches, s.n_genes) * s.batch_spread,
        type_share=generator(s.seed, "types").dirichlet(np.full(s.n_types, 4.0)),
    )


def blocks(simulation: Simulation) -> Iterator[tuple[csr_matrix[Any], pd.DataFrame]]:
    """Give the cells in blocks of `BLOCK`: counts (int32) and codes of type, donor and plate."""
    s, truth = simulation, truth_of(simulation)
    for number, start in enumerate(range(0, s.n_cells, BLOCK)):
        rng = generator(s.seed, "cells", number)
        types = rng.choice(s.n_types, BLOCK, p=truth.type_share)
        donors = rng.integers(s.n_donors, size=BLOCK)
        batches = rng.integers(s.n_batches, size=BLOCK)
        if s.ordered:
            batches = np.minimum(np.arange(start, start + BLOCK), s.n_cells - 1)
            batches = batches * s.n_batches // s.n_cells
        spread = s.library_spread
        library_B = s.library * rng.lognormal(-(spread**2) / 2, spread, BLOCK).astype(np.float32)
        kinds, kind_B = np.unique(np.stack([types, donors, batches]), axis=1, return_inverse=True)
        p_UG = truth.profiles(*kinds)
        parts = []
        for low in range(0, BLOCK, _STRIP):  # small enough for the processor's cache
            strip = slice(low, low + _STRIP)
            mean_BG = p_UG[kind_B[strip]] * library_B[strip, None]
            parts.append(sample_counts(rng, mean_BG, s.dispersion))
        size = min(BLOCK, s.n_cells - start)
        codes = pd.DataFrame({"cell_type": types, "donor": donors, "batch": batches})
        yield vstack(parts, format="csr")[:size], codes[:size]


def simulate_anndata(simulation: Simulation) -> anndata.AnnData:
    """Simulate in memory: counts in ``X`` (float32 CSR), truth in ``obs``, ``var`` and ``uns``."""
    parts = list(blocks(simulation))
    codes = pd.concat([codes for _, codes in parts], ignore_index=True)
    obs, var, uns = _annotation(simulation, codes)
    matrix = vstack([counts for counts, _ in parts], format="csr").astype(np.float32)
    return anndata.AnnData(matrix, obs=obs, var=var, uns=uns)


def simulate(
    out: str | Path,
    simulation: Simulation,
    *,
    compression: Literal["gzip", "lzf"] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Simulate into an ``.h5ad``, block by block, in memory that does not grow with the cells.

    Parameters
    ----------
    out
        The file; it appears when it is whole.
    simulation
        The settings.
    compression
        HDF5 filter of the counts.
    progress
        Called with stage ``"simulate"`` and numbers of cells.

    Returns
    -------
    Path
        The file.
    """
    out = Path(out)
    part = out.with_name(f".{out.name}.part")
    try:
        with h5py.File(part, "w") as file:
            _write_blocks(file, simulation, compression, progress)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return out


def _write_blocks(
    file: h5py.File, simulation: Simulation, compression: str | None, progress: Progress | None
) -> None:
    s = simulation
    group = file.create_group("X")
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
    group.attrs["shape"] = np.array([s.n_cells, s.n_genes])
    arrays = {
        name: group.create_dataset(
            name, (0,), dtype, maxshape=(None,), chunks=(_STORED,), compression=compression
        )
        for name, dtype in (("data", np.float32), ("indices", np.int32))
    }
    lengths, codes, end = [], [], 0
    for counts, block_codes in blocks(s):
        for name, values in (("data", counts.data), ("indices", counts.indices)):
            arrays[name].resize((end + counts.nnz,))
            arrays[name][end:] = values
        end += counts.nnz
        lengths.append(np.diff(counts.indptr))
        codes.append(block_codes.astype(np.int16))
        if progress:
            progress("simulate", min(len(lengths) * BLOCK, s.n_cells), s.n_cells)
    group["indptr"] = np.concatenate([[0], np.cumsum(np.concatenate(lengths), dtype=np.int64)])
    obs, var, uns = _annotation(s, pd.concat(codes, ignore_index=True))
    file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    for name, element in (("obs", obs), ("var", var), ("uns", uns)):
        anndata.io.write_elem(file, name, element)


def _annotation(
    s: Simulation, codes: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """Name the cells, genes and programmes."""
    truth = truth_of(s)

    def named(word: str, n: int) -> list[str]:
        return [f"{word}_{number}" for number in range(n)]

    genes = pd.Index(named("gene", s.n_genes))
    programmes = named("programme", s.n_programmes)
    levels = {"cell_type": ("type", s.n_types), "donor": ("donor", s.n_donors)}
    levels["batch"] = ("plate", s.n_batches)
    obs = pd.DataFrame(
        {k: pd.Categorical.from_codes(codes[k], pd.Index(named(*levels[k]))) for k in levels},
        index=pd.Index(named("cell", len(codes))),
    )
    var = pd.DataFrame(
        {"programme": pd.Categorical.from_codes(truth.programme, pd.Index(programmes))}, index=genes
    )
    uns = {
        "programmes": {
            name: genes[truth.programme == k].to_numpy(object) for k, name in enumerate(programmes)
        },
        "programme_activity": truth.activity,
        "simulation": dataclasses.asdict(s),
    }
    return obs, var, uns
