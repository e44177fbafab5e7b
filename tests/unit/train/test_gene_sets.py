"""Gene sets that views name are read and matched before training, or refused."""

import logging

import pytest

from cellray.atlas.simulate import Simulation, simulate_anndata
from cellray.atlas.write import ingest
from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe
from cellray.train.setup import prepare


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    """An atlas of genes named by ids, with their symbols in var."""
    folder = tmp_path_factory.mktemp("sets")
    cells = simulate_anndata(Simulation(n_cells=300, n_genes=40, seed=1))
    cells.var_names = [f"ENSG{i:011d}.3" for i in range(40)]
    cells.var["gene_symbol"] = [f"SYM{i}" for i in range(40)]
    cells.write_h5ad(folder / "a.h5ad")
    return ingest([folder / "a.h5ad"], folder / "atlas")


def recipe(*views, **objective):
    return Recipe.of(
        {
            "objective": {"name": "masked"} | objective,
            "views": list(views),
            "data": {"batch_size": 16, "slab_batches": 2},
        }
    )


def write(folder, text):
    (folder / "sets.gmt").write_text(text)
    return str(folder / "sets.gmt")


def test_sets_are_matched_by_either_name_and_their_share_is_recorded(atlas, tmp_path, caplog):
    path = write(tmp_path, "A\t\tSYM1\tSYM2\tNONE\nSYM7\t\tENSG00000000004.9\tsym1\n")
    view = {"name": "programme_mask", "gene_sets": path}
    with caplog.at_level(logging.INFO):
        setup = prepare(recipe(view, view | {"name": "gp_to_tf"}), atlas)
    sets = setup.sets[path]
    genes = [[setup.genes[column] for column in columns] for columns in sets.columns]
    assert [{name[:15] for name in names} for names in genes] == [
        {"ENSG00000000001", "ENSG00000000002"},
        {"ENSG00000000001", "ENSG00000000004"},
    ]
    assert setup.genes[sets.factors[1]].startswith("ENSG00000000007")
    words = "4 of 5 genes (80%), which are 8% of the atlas's, in 2 sets"
    assert setup.params()["gene_sets_matched"] == f"{path}: {words}"
    assert words in caplog.text
    assert len(setup.learner(recipe(view)).views) == 1


def test_sets_of_validation_views_are_matched_too(atlas, tmp_path):
    path = write(tmp_path, "A\t\tSYM1\tSYM2\nB\t\tSYM7\n")
    view = {"name": "programme_mask", "gene_sets": path}
    changed = recipe({"name": "random_mask"}).with_([f"validation_views=[{view}]"])
    setup = prepare(changed, atlas)
    assert [len(columns) for columns in setup.sets[path].columns] == [2, 1]
    assert len(setup.learner(changed).validation_views) == 1


def test_sets_are_cut_to_the_models_genes(atlas, tmp_path):
    path = write(tmp_path, "A\t\t" + "\t".join(f"SYM{i}" for i in range(40)) + "\nB\t\tSYM1\n")
    view = {"name": "random_mask"}, {"name": "gp_to_gp", "gene_sets": path}
    setup = prepare(recipe(*view).with_(["data.genes=10"]), atlas)
    assert len(setup.sets[path].columns[0]) == len(setup.genes) < 40


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A\t\t" + "\t".join(f"AT{i}G" for i in range(20)), "like AT0G"),
        ("A\t\tSYM1\tSYM2\n", "is named after a gene of the model"),
        ("nothing\n", "is no GMT"),
    ],
)
@pytest.mark.parametrize("objective", ["masked", "simclr"])
def test_sets_that_cannot_be_used_are_refused_before_training(
    atlas, tmp_path, text, words, objective
):
    view = {"name": "gp_to_tf", "gene_sets": write(tmp_path, text)}
    with pytest.raises(CellrayError, match=words):
        prepare(recipe(view, name=objective), atlas)


def test_a_missing_file_is_refused(atlas, tmp_path):
    view = {"name": "gp_to_gp", "gene_sets": str(tmp_path / "none.gmt")}
    with pytest.raises(CellrayError, match="no gene sets at"):
        prepare(recipe(view), atlas)
