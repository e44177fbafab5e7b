"""Variable genes are scanpy's, and choosing them leaves the process as it was."""

import numpy as np
import scanpy as sc
import torch

from cellray.atlas.genes import variable_genes
from cellray.atlas.simulate import Simulation, simulate_anndata
from cellray.atlas.store import Atlas
from cellray.atlas.write import ingest


def test_they_are_scanpys_and_torch_keeps_its_threads(tmp_path, one_thread):
    cells = simulate_anndata(Simulation(n_cells=300, n_genes=200, seed=1))
    cells.write_h5ad(tmp_path / "cells.h5ad")
    atlas = Atlas.open(ingest([tmp_path / "cells.h5ad"], tmp_path / "cells.zarr").url)
    found = variable_genes(atlas, np.arange(300), 40, seed=0)
    assert torch.get_num_threads() == 1

    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    sc.pp.highly_variable_genes(cells, n_top_genes=40)
    assert sorted(found) == sorted(cells.var_names[cells.var["highly_variable"]])
    place = {name: at for at, name in enumerate(atlas.genes)}
    assert [place[name] for name in found] == sorted(place[name] for name in found)
