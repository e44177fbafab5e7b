"""Simulated pairs of data sets with known truth, for tasks without open data at hand.

All have the base, the programmes and their activities of `cellray.atlas.simulate`, which says
what the symbols mean, and are made in memory. Each function gives the law of what it adds.

Shape suffixes: B cells, G genes, T types, K programmes, P peaks.
"""

from typing import Any

import anndata
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack

from cellray.atlas.negbin import sample_counts
from cellray.atlas.simulate import BLOCK, Simulation, Truth, truth_of
from cellray.core.errors import CellrayError
from cellray.core.seeds import generator

MISSING = "type_0"
"""The type that the reference of `two_species` lacks."""
RESPONSES = ("resistant", "sensitive")


def two_species(
    simulation: Simulation, *, orthologs: float = 0.8, spread: float = 0.5
) -> tuple[anndata.AnnData, anndata.AnnData, pd.DataFrame]:
    """Simulate a labelled reference and a query of another species.

    For species s, the reference's or the query's::

        p_cg = softmax over g of (base_g + activity_tk + scale_sg)
        scale_sg ~ Normal(0, spread)

    The query's genes have other names and another order. A share of the genes, drawn at random,
    has one ortholog each, the gene that has the same base and programme; the others have none in
    the table. Types are as frequent in both, but the reference has no cell of `MISSING`.

    Parameters
    ----------
    simulation
        Cells of either species, before the missing type is taken out, genes and types; donors and
        batches are not simulated.
    orthologs
        Share of the genes in the table.
    spread
        Standard deviation of a gene's log scale in a species.

    Returns
    -------
    reference, query : AnnData
        Counts in ``X`` (float32 CSR), ``cell_type`` in ``obs``, ``log_scale`` in ``var``.
    table : DataFrame
        ``reference`` and ``query``: the names of a gene in both, a row a pair.

    Raises
    ------
    CellrayError
        A share outside [0, 1], a negative spread or one type only.
    """
    s, truth = simulation, truth_of(simulation)
    _check_share("orthologs", orthologs)
    _check_spread("spread", spread)
    if s.n_types < 2:
        raise CellrayError(
            "a reference that lacks the only type has no cells", "set n_types to 2 or more"
        )
    rng = generator(s.seed, "two species")
    scale_SG = spread * rng.standard_normal((2, s.n_genes))
    order = rng.permutation(s.n_genes)
    shared = np.sort(rng.permutation(s.n_genes)[: round(orthologs * s.n_genes)])
    both = []
    for species, scale_G in zip(("reference", "query"), scale_SG, strict=True):
        types = generator(s.seed, species).choice(s.n_types, s.n_cells, p=truth.type_share)
        log_TG = truth.base + _active(truth) + scale_G
        both.append((_counts(s, species, log_TG, types), types))
    (of_reference, reference_types), (of_query, query_types) = both
    kept = reference_types != 0
    names = np.array([f"REF{number}" for number in range(s.n_genes)])
    theirs = np.array([f"Query{number}" for number in range(s.n_genes)])
    reference = _annotated(
        of_reference[kept], names, {"cell_type": _named("type", reference_types[kept])}
    )
    query = _annotated(of_query[:, order], theirs, {"cell_type": _named("type", query_types)})
    reference.var["log_scale"], query.var["log_scale"] = scale_SG[0], scale_SG[1, order]
    place = np.argsort(order)  # where the query has the reference's gene
    table = pd.DataFrame({"reference": names[shared], "query": theirs[place[shared]]})
    return reference, query, table


def bulk_and_cells(
    simulation: Simulation,
    *,
    n_samples: int = 100,
    cells_of_sample: int = 100,
    effect: float = 1.0,
    spread: float = 0.5,
) -> tuple[anndata.AnnData, anndata.AnnData]:
    """Simulate bulk samples with a known response to a drug, and single cells with theirs.

    Half of the samples and of the cells, as near as may be, are sensitive (r = 1), the others are
    not (r = 0). Sensitive cells have one programme more, the response's, of a tenth of the genes::

        p_cg = softmax over g of (base_g + activity_tk + effect r_c response_g + assay_g)
        response_g = 1 or 0;    assay_g ~ Normal(0, spread) in bulk, 0 in single cells

    A bulk sample is the sum of the counts of as many cells as `cells_of_sample`, whose types come
    in shares drawn for the sample from a flat Dirichlet law, and whose response is the sample's.

    Parameters
    ----------
    simulation
        Single cells, genes and types; donors and batches are not simulated.
    n_samples, cells_of_sample
        Bulk samples, and cells in each.
    effect
        Log effect of the response on its genes.
    spread
        Standard deviation of the assay's log effect on a gene.

    Returns
    -------
    bulk, cells : AnnData
        Counts in ``X`` (float32 CSR), ``response`` in ``obs``, and the cells' ``cell_type``; the
        same genes, of which ``var["response"]`` says whether they are the response's; the bulk's
        ``var["assay"]``.

    Raises
    ------
    CellrayError
        Fewer than two samples or no cells in them, or a negative spread.
    """
    s, truth = simulation, truth_of(simulation)
    if n_samples < 2 or cells_of_sample < 1:
        raise CellrayError(
            f"{n_samples} bulk samples of {cells_of_sample} cells cannot differ in response",
            "set n_samples to 2 and cells_of_sample to 1, or more",
        )
    _check_spread("spread", spread)
    rng = generator(s.seed, "bulk and cells")
    response_G = np.zeros(s.n_genes, bool)
    response_G[rng.permutation(s.n_genes)[: max(1, s.n_genes // 10)]] = True
    assay_G = spread * rng.standard_normal(s.n_genes)
    # One row a type and response: those of r = 0 first.
    log_CG = np.concatenate([truth.base + _active(truth) + effect * r * response_G for r in (0, 1)])
    of_samples = rng.permutation(n_samples) % 2
    shares = rng.dirichlet(np.ones(s.n_types), n_samples)
    sums = []
    for number, (r, share) in enumerate(zip(of_samples, shares, strict=True)):
        types = rng.choice(s.n_types, cells_of_sample, p=share)
        drawn = _counts(s, f"bulk {number}", log_CG + assay_G, types + r * s.n_types)
        sums.append(csr_matrix(drawn.sum(axis=0)))
    of_cells = rng.permutation(s.n_cells) % 2
    types = rng.choice(s.n_types, s.n_cells, p=truth.type_share)
    counts = _counts(s, "cells", log_CG, types + of_cells * s.n_types)
    names = _named("gene", np.arange(s.n_genes))
    bulk = _annotated(vstack(sums, format="csr"), names, {"response": _responses(of_samples)})
    cells = _annotated(
        counts, names, {"cell_type": _named("type", types), "response": _responses(of_cells)}
    )
    for data in (bulk, cells):
        data.var["response"] = response_G
    bulk.var["assay"] = assay_G
    return bulk, cells


def rna_and_atac(
    simulation: Simulation, *, n_peaks: int = 1_000, within: float = 0.3, openness: float = -2.0
) -> anndata.AnnData:
    """Simulate counts of genes and the open chromatin of the same cells.

    Programmes drive both, with an activity that a cell has of its own::

        a_ck ~ Normal(activity_tk, within)
        p_cg = softmax over g of (base_g + a_ck),    k the gene's programme
        open_cp ~ Bernoulli(sigmoid(openness + bias_p + a_ck)),    k the peak's programme
        bias_p ~ Normal(0, 0.5)

    Every programme drives as many peaks as the others, as near as may be.

    Parameters
    ----------
    simulation
        Cells, genes, types and programmes; donors and batches are not simulated.
    n_peaks
        Peaks.
    within
        Standard deviation of a programme's activity between cells of a type.
    openness
        Log odds of a typical peak to be open.

    Returns
    -------
    AnnData
        Counts in ``X`` and open peaks, 0 or 1, in ``obsm["atac"]``, both float32 CSR; ``cell_type``
        in ``obs``, activities in ``obsm["activity"]``, and the peaks' programmes and biases in
        ``uns["peak_programme"]`` and ``uns["peak_bias"]``.

    Raises
    ------
    CellrayError
        No peaks, or a negative spread.
    """
    s, truth = simulation, truth_of(simulation)
    if n_peaks < 1:
        raise CellrayError("a simulation with n_peaks = 0 or less", "set n_peaks to 1 up")
    _check_spread("within", within)
    rng = generator(s.seed, "rna and atac")
    types = rng.choice(s.n_types, s.n_cells, p=truth.type_share)
    noise_BK = within * rng.standard_normal((s.n_cells, s.n_programmes))
    activity_BK = truth.activity[types] + noise_BK
    programme_P = rng.permutation(n_peaks) % s.n_programmes
    bias_P = 0.5 * rng.standard_normal(n_peaks)
    counts, peaks = [], []
    for start in range(0, s.n_cells, BLOCK):
        here_BK = activity_BK[start : start + BLOCK]
        log_BG = truth.base + np.pad(here_BK, ((0, 0), (0, 1)))[:, truth.programme]
        counts.append(_drawn(s, rng, log_BG))
        odds_BP = openness + bias_P + here_BK[:, programme_P]
        peaks.append(csr_matrix(rng.random(odds_BP.shape) < 1 / (1 + np.exp(-odds_BP))))
    data = _annotated(
        vstack(counts, format="csr"),
        _named("gene", np.arange(s.n_genes)),
        {"cell_type": _named("type", types)},
    )
    data.obsm["atac"] = vstack(peaks, format="csr").astype(np.float32)
    data.obsm["activity"] = activity_BK.astype(np.float32)
    data.uns |= {"peak_programme": programme_P, "peak_bias": bias_P}
    return data


def _counts(
    s: Simulation, purpose: str, log_CG: NDArray[np.float64], classes: NDArray[np.int64]
) -> csr_matrix[Any]:
    """Draw cells of classes that have these log abundances."""
    rng = generator(s.seed, "scenario", purpose)
    starts = range(0, len(classes), BLOCK)
    parts = [_drawn(s, rng, log_CG[classes[start : start + BLOCK]]) for start in starts]
    return csr_matrix(vstack(parts))


def _drawn(s: Simulation, rng: np.random.Generator, log_BG: NDArray[np.float64]) -> csr_matrix[Any]:
    p_BG = np.exp(log_BG - log_BG.max(axis=1, keepdims=True))
    p_BG /= p_BG.sum(axis=1, keepdims=True)
    spread = s.library_spread
    library_B = s.library * rng.lognormal(-(spread**2) / 2, spread, len(log_BG))
    return sample_counts(rng, (p_BG * library_B[:, None]).astype(np.float32), s.dispersion)


def _active(truth: Truth) -> NDArray[np.float64]:
    """Give each gene's programme's activity in each type, shape (T, G); 0 for no programme."""
    active_TG: NDArray[np.float64] = np.pad(truth.activity, ((0, 0), (0, 1)))[:, truth.programme]
    return active_TG


def _annotated(
    counts: csr_matrix[Any], genes: NDArray[np.str_], columns: dict[str, NDArray[np.str_]]
) -> anndata.AnnData:
    obs = pd.DataFrame(
        {name: pd.Categorical(values) for name, values in columns.items()},
        index=pd.Index(_named("cell", np.arange(counts.shape[0]))),
    )
    return anndata.AnnData(
        counts.astype(np.float32), obs=obs, var=pd.DataFrame(index=pd.Index(genes))
    )


def _named(word: str, codes: NDArray[np.int64]) -> NDArray[np.str_]:
    return np.array([f"{word}_{code}" for code in codes], np.str_)


def _responses(codes: NDArray[np.int64]) -> NDArray[np.str_]:
    return np.array(RESPONSES, np.str_)[codes]


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise CellrayError(f"{name} lies outside [0, 1]", "give a fraction")


def _check_spread(name: str, value: float) -> None:
    if value < 0:
        raise CellrayError(f"{name} is negative", f"set {name} to 0 up")
