"""Counts of a few cells and the files of a pipeline over them."""

import copy

import pytest
import yaml

from cellray.atlas.simulate import Simulation, simulate

FILE = {
    "name": "cells",
    "ingest": {"sources": ["cells.h5ad"], "out": "cells.zarr"},
    "pretrain": {"recipe": "recipe.yaml", "changes": {"train.epochs": 3}},
    "evaluate": {"suite": "standard", "label": "cell_type"},
    "promote": {"if_better": "model/knn/macro_f1"},
}


@pytest.fixture(scope="session")
def counts(tmp_path_factory):
    path = tmp_path_factory.mktemp("counts") / "cells.h5ad"
    simulate(path, Simulation(n_cells=60, n_genes=30, n_types=2, seed=1))
    return path


@pytest.fixture
def write(store, counts):
    """Write a pipeline file with changes, as dotted keys, and give its path; None drops a key."""
    (store / "cells.h5ad").symlink_to(counts)
    (store / "files").mkdir()
    (store / "files" / "recipe.yaml").write_text("data: {batch_size: 32}\n")

    def write(**changes):
        document = copy.deepcopy(FILE)
        for key, value in changes.items():
            *sections, last = key.split("__")
            node = document
            for section in sections:
                node = node[section]
            if value is None:
                del node[last]
            else:
                node[last] = value
        path = store / "files" / "cells.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    return write
