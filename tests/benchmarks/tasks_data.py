"""The data, models and evaluations of tests/benchmarks/tasks.py."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata

import cellray
from cellray.atlas.scenarios import bulk_and_cells, rna_and_atac, two_species
from cellray.atlas.simulate import Simulation
from cellray.atlas.store import Atlas
from cellray.core.genesets import read_gene_sets
from cellray.core.recipe import Recipe

CONFIGS = Path(__file__).parents[2] / "configs/pretrain"
STEPS, BATCH, GENES = 600, 128, 2000
MASKED = (
    f"data.batch_size={BATCH}",
    "encoder.widths=[512, 256]",
    "encoder.dropout=0",
    "objective.widths=[256, 512]",
)
TOKENS = (
    f"data.batch_size={BATCH}",
    "encoder.width=32",
    "encoder.layers=2",
    "encoder.heads=4",
    "encoder.n_tokens=64",
    "encoder.dropout=0",
    "objective.width=32",
    "optim.lr=1e-3",
)
# Effects are smaller than by default: those every method finds without a mistake.
RESPONSE = 0.4
SIMULATION = Simulation(n_cells=3000, n_genes=2000, library=1000, separation=0.7)
KANG_MARKERS = {
    "CD14+ Monocytes": "TRAVAGLINI_LUNG_CLASSICAL_MONOCYTE_CELL",
    "FCGR3A+ Monocytes": "TRAVAGLINI_LUNG_NONCLASSICAL_MONOCYTE_CELL",
    "CD4 T cells": "TRAVAGLINI_LUNG_CD4_NAIVE_T_CELL",
    "CD8 T cells": "TRAVAGLINI_LUNG_CD8_MEMORY_EFFECTOR_T_CELL",
    "B cells": "TRAVAGLINI_LUNG_B_CELL",
}


@dataclass(frozen=True)
class Model:
    """A model of a part: the atlas that it is pre-trained on, and its recipe."""

    atlas: str
    config: str = "masked"
    settings: Sequence[str] = MASKED

    def recipe(self, seed: int) -> Recipe:
        """Give the recipe of a seed, for as many steps on any atlas."""
        atlas = Atlas.open(self.atlas)
        recipe = Recipe.load(CONFIGS / f"{self.config}.yaml", [*self.settings, f"seed={seed}"])
        of_epoch = int((1 - recipe.data.validation) * atlas.n_cells) // BATCH
        chosen = [f"train.epochs={max(1, round(STEPS / of_epoch))}"]
        chosen += [f"data.genes={GENES}"] if atlas.n_genes > GENES else []
        return recipe.with_(chosen)


@dataclass(frozen=True)
class Ask:
    """An evaluation: of a model on an atlas by a task; `of` tells it from others of the task."""

    task: str
    model: str
    atlas: str
    asked: Mapping[str, Any] = field(default_factory=dict)
    of: str = ""
    seeds: Sequence[int] = (0, 1, 2)

    @property
    def name(self) -> str:
        """Give its heading."""
        return f"{self.task}, {self.of}" if self.of else self.task


@dataclass(frozen=True)
class Part:
    """A data set with what is asked of it; `make` puts atlases into the working folder."""

    title: str
    about: str
    make: Callable[[Path], None]
    models: Mapping[str, Model]
    asks: Sequence[Ask]
    seeds: Sequence[int] = (0, 1, 2)


def bladder(data: Path) -> None:
    """Ingest the cells as they are."""
    cellray.ingest([data / "mouse_bladder_2100.h5ad"], "bladder.zarr")


def cbmc(data: Path) -> None:
    """Ingest counts and proteins."""
    cellray.ingest([data / "cite_cbmc_8617.h5ad"], "cbmc.zarr", matrices=["obsm/protein"])


def kang(data: Path) -> None:
    """Ingest all cells, and either condition; the donor is in the digits of the sample."""
    cells = anndata.read_h5ad(data / "kang_pbmc_ifn_1556.h5ad")
    cells.obs["donor"] = cells.obs["sample"].astype(str).str.extract(r"(\d+)$", expand=False)
    for name in ("kang", "ctrl", "stim"):
        chosen = cells if name == "kang" else cells[cells.obs["condition"] == name]
        chosen.copy().write_h5ad(f"{name}.h5ad")
        cellray.ingest([f"{name}.h5ad"], f"{name}.zarr")
    known = read_gene_sets(str(data / "c8_v2023.1.gmt"))
    lines = ["\t".join([name, of, *known[of]]) for name, of in KANG_MARKERS.items()]
    Path("markers.gmt").write_text("\n".join(lines) + "\n")


def perturb(data: Path) -> None:
    """Ingest the cells as they are."""
    cellray.ingest([data / "perturb_lowmoi.h5ad"], "perturb.zarr")


def mixology(data: Path) -> None:
    """Ingest all plates, the first two, and the third."""
    one, two, three = (data / f"mixology_sc_celseq2_5cl_p{number}.h5ad" for number in (1, 2, 3))
    cellray.ingest([one, two, three], "plates.zarr")
    cellray.ingest([one, two], "plates12.zarr")
    cellray.ingest([three], "plate3.zarr")


def _ingested(name: str, cells: anndata.AnnData, matrices: Sequence[str] = ()) -> None:
    cells.write_h5ad(f"{name}.h5ad")
    cellray.ingest([f"{name}.h5ad"], f"{name}.zarr", matrices=matrices)


def drug(_: Path) -> None:
    """Simulate bulk samples and single cells."""
    for name, cells in zip(
        ("bulk", "cells"), bulk_and_cells(SIMULATION, effect=RESPONSE), strict=True
    ):
        _ingested(name, cells)


def species(_: Path) -> None:
    """Simulate cells of two species, and the table of their genes."""
    reference, query, table = two_species(SIMULATION)
    _ingested("reference", reference)
    _ingested("query", query)
    table.to_csv("orthologs.tsv", sep="\t", index=False)


def atac(_: Path) -> None:
    """Simulate expression and open chromatin of the same cells."""
    _ingested("atac", rna_and_atac(SIMULATION, within=0.5), ["obsm/atac"])


ONE = (0,)
TYPE = {"label": "cell_type"}
LINE = {"label": "cell_line"}
SIMULATED = (
    "**Simulated** (`cellray.atlas.scenarios`), since no open data of the kind was at hand: what "
    "is found here says that the task works, not what it gives on real cells. "
    f"{SIMULATION.n_cells:,} cells, {SIMULATION.n_genes:,} genes, {SIMULATION.n_types} types, "
    f"{SIMULATION.library:,.0f} molecules a cell; effects were made small enough for baselines to "
    "make mistakes."
)

PARTS: dict[str, Part] = {
    "kang": Part(
        "Kang: stimulated PBMC",
        "1,556 cells of 5 types, 1,267 genes, 2 donors, each stimulated by IFN-β and not "
        "(Kang 2018). The donor is in the digits of `sample`. Markers are sets of MSigDB C8 "
        "(Travaglini's lung atlas), one a type. For the mapping the model was pre-trained on "
        "control cells alone.",
        kang,
        {"kang": Model("kang.zarr"), "ctrl": Model("ctrl.zarr")},
        (
            Ask("annotation", "kang", "kang.zarr", {**TYPE, "split_by": "donor"}, "other donors"),
            Ask(
                "integration",
                "kang",
                "kang.zarr",
                {**TYPE, "batch": "sample", "fine_tune": True},
                seeds=ONE,
            ),
            Ask(
                "mapping",
                "ctrl",
                "stim.zarr",
                {**TYPE, "reference": "ctrl.zarr"},
                "stimulated cells to control cells",
            ),
            Ask("markers", "kang", "kang.zarr", {**TYPE, "gene_sets": "markers.gmt"}),
        ),
    ),
    "mixology": Part(
        "Mixology: five cell lines on three plates",
        "909 cells of five lines on three CEL-seq2 plates with different genes (Tian 2019), joined "
        "over the genes that all have. For the mapping the model was pre-trained on plates 1 and 2 "
        "alone, and plate 3 is a data set that it has not seen.",
        mixology,
        {"plates": Model("plates.zarr"), "plates12": Model("plates12.zarr")},
        (
            Ask(
                "annotation", "plates", "plates.zarr", {**LINE, "split_by": "plate"}, "other plates"
            ),
            Ask(
                "integration",
                "plates",
                "plates.zarr",
                {**LINE, "batch": "plate", "fine_tune": True},
                seeds=ONE,
            ),
            Ask(
                "mapping",
                "plates12",
                "plate3.zarr",
                {**LINE, "reference": "plates12.zarr"},
                "an unseen plate",
            ),
        ),
    ),
    "bladder": Part(
        "Mouse bladder",
        "2,100 cells of 16 types, of 8 to 550 cells, 20,670 genes (Mouse Cell Atlas, Han 2018). "
        "Genes have numbers for names: markers are those that differ in expression.",
        bladder,
        {
            "bladder": Model("bladder.zarr"),
            "tokens": Model("bladder.zarr", "qi_transformer", TOKENS),
        },
        (
            Ask("annotation", "bladder", "bladder.zarr", {**TYPE, "fine_tune": True}),
            Ask("annotation", "tokens", "bladder.zarr", TYPE, "a small transformer on gene tokens"),
            Ask("transfer", "bladder", "bladder.zarr", TYPE),
            Ask("clustering", "bladder", "bladder.zarr", TYPE),
            Ask("robustness", "bladder", "bladder.zarr", TYPE),
            Ask("reconstruction", "bladder", "bladder.zarr"),
            Ask("markers", "bladder", "bladder.zarr", TYPE),
        ),
    ),
    "cbmc": Part(
        "CBMC: proteins of the same cells",
        "8,617 cells of 15 types, 2,000 genes and 10 antibodies (CITE-seq, Stoeckius 2017).",
        cbmc,
        {"cbmc": Model("cbmc.zarr")},
        (
            Ask(
                "cross_modality",
                "cbmc",
                "cbmc.zarr",
                {**TYPE, "matrix": "obsm/protein", "fine_tune": True},
                "proteins",
            ),
            Ask("annotation", "cbmc", "cbmc.zarr", TYPE),
        ),
    ),
    "perturb": Part(
        "Perturb-seq",
        "20,729 THP-1 cells, 299 genes, 25 perturbed genes, 9 of them measured (Papalexi 2021). "
        "Whole replicates are held out: with three there are three splits.",
        perturb,
        {"perturb": Model("perturb.zarr")},
        (
            Ask(
                "perturbation",
                "perturb",
                "perturb.zarr",
                {"label": "perturbation", "control": "non-targeting", "split_by": "replicate"},
                "other replicates",
            ),
        ),
    ),
    "drug": Part(
        "Drug response",
        f"{SIMULATED} 100 bulk samples whose response is known, and single cells, half of them "
        "sensitive; the assays differ in every gene. The model was pre-trained on the cells.",
        drug,
        {"cells": Model("cells.zarr")},
        (
            Ask(
                "drug_response",
                "cells",
                "cells.zarr",
                {"label": "response", "reference": "bulk.zarr", "split_by": "cells"},
                "simulated",
            ),
        ),
        seeds=ONE,
    ),
    "species": Part(
        "Another species",
        f"{SIMULATED} Two species of as many cells; one type is missing from the reference, and 80 "
        "% of the genes have an ortholog. The model was pre-trained on the reference.",
        species,
        {"reference": Model("reference.zarr")},
        (
            Ask(
                "mapping",
                "reference",
                "query.zarr",
                {
                    **TYPE,
                    "reference": "reference.zarr",
                    "orthologs": "orthologs.tsv",
                    "split_by": "cells",
                },
                "simulated species",
            ),
        ),
        seeds=ONE,
    ),
    "atac": Part(
        "Open chromatin",
        f"{SIMULATED} 1,000 peaks, driven by the programmes that drive the genes.",
        atac,
        {"atac": Model("atac.zarr")},
        (
            Ask(
                "cross_modality",
                "atac",
                "atac.zarr",
                {**TYPE, "matrix": "obsm/atac", "fine_tune": True, "split_by": "cells"},
                "simulated open chromatin",
            ),
        ),
        seeds=ONE,
    ),
}
