"""Genes renamed by a table of orthologs."""

import gzip

import numpy as np
import pytest

from cellray.core.errors import CellrayError
from cellray.tasks.orthologs import NO_ORTHOLOG, ortholog_names

HUMAN = ["CD3E", "MS4A1", "GZMA", "CD8A", "IFI6", "LONELY"]
MOUSE = ["Cd3e", "Ms4a1", "Gzma", "Cd8a", "Ifi6", "Other"]
PAIRS = [
    ("Cd8a", "CD8A"),
    ("Cd3e", "CD3E"),
    ("Ms4a1", "MS4A1"),
    ("Ifi27l2a", "IFI27"),
    ("Ifi27l2b", "IFI27"),
    ("Gzma", "GZMA"),
    ("Gzma", "GZMA"),
    ("Ccl3", "CCL3"),
    ("Ccl3", "CCL3L1"),
]


def write(path, rows, header=("mouse", "human"), sep="\t"):
    path.write_text("\n".join(sep.join(row) for row in [header, *rows]) + "\n")
    return str(path)


@pytest.fixture
def table(tmp_path):
    return write(tmp_path / "orthologs.tsv", PAIRS)


def test_genes_get_the_names_of_the_models_species(table):
    names, note = ortholog_names(table, HUMAN, MOUSE)
    assert names.tolist()[:4] == ["Cd3e", "Ms4a1", "Gzma", "Cd8a"]
    assert note == (
        "4 of the atlas's 6 genes were named by their one-to-one orthologs ('human' to 'mouse' of "
        f"{table}); the model has 4 of these. 4 pairs of genes that have several orthologs were "
        "left out."
    )


def test_the_other_direction_finds_its_columns_by_itself(table):
    names, note = ortholog_names(table, MOUSE, HUMAN)
    assert names.tolist()[:4] == ["CD3E", "MS4A1", "GZMA", "CD8A"]
    assert "'mouse' to 'human'" in note


def test_genes_without_one_ortholog_match_nothing(tmp_path):
    # The rat's Same is no ortholog of the mouse's, in spite of its name; Twice has two.
    path = write(
        tmp_path / "t.tsv",
        [("Alpha", "Alpha"), ("One", "Twice"), ("Two", "Twice"), ("Beta", "Bet")],
        header=("mouse", "rat"),
    )
    model = ["Alpha", "Same", "One", "Two", "Beta", "Twice"]
    names, _ = ortholog_names(path, ["Same", "Twice", "Bet", "Alpha"], model)
    assert names.tolist() == [f"Same{NO_ORTHOLOG}", f"Twice{NO_ORTHOLOG}", "Beta", "Alpha"]
    assert not set(names[:2]) & set(model)


def test_an_ortholog_that_the_model_lacks_keeps_its_name_for_the_reference(table):
    names, note = ortholog_names(table, HUMAN, MOUSE[1:])
    assert names[0] == "Cd3e"
    assert "the model has 3 of these" in note


def test_ensembl_ids_match_whatever_their_version(tmp_path):
    rows = [(f"ENSG{n:011d}", f"ENSMUSG{n:011d}.2", "one2one") for n in range(5)]
    path = write(tmp_path / "t.csv", rows, header=("Gene", "Mouse gene", "type"), sep=",")
    atlas = [f"ENSMUSG{n:011d}" for n in (3, 1)]
    model = [f"ENSG{n:011d}.{n}" for n in range(5)]
    names, _ = ortholog_names(path, atlas, model)
    assert names.tolist() == [model[3], model[1]]


def test_compressed_tables_and_blank_values_are_read(tmp_path):
    text = "human,mouse\nCD3E,Cd3e\n\nMS4A1,\n,Gzma\nCD8A,Cd8a\n"
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(text.encode()))
    names, _ = ortholog_names(f"file://{path}", HUMAN[:4], MOUSE)
    assert names.tolist()[0] == "Cd3e"
    assert [name.endswith(NO_ORTHOLOG) for name in names] == [False, True, True, False]


def test_a_permutation_of_rows_changes_nothing(tmp_path, table):
    expected = ortholog_names(table, HUMAN, MOUSE)[0]
    order = np.random.default_rng(0).permutation(len(PAIRS))
    shuffled = write(tmp_path / "other.tsv", [PAIRS[n] for n in order])
    np.testing.assert_array_equal(ortholog_names(shuffled, HUMAN, MOUSE)[0], expected)


def test_a_table_of_other_species_is_refused_with_both_shares(table):
    fish = [f"fish{n}" for n in range(9)]
    with pytest.raises(CellrayError, match=r"names 0% of the atlas's genes.*67% of the model's"):
        ortholog_names(table, fish, MOUSE)
    with pytest.raises(CellrayError, match=r"names 67% of the atlas's genes.*0% of the model's"):
        ortholog_names(table, HUMAN, fish)


def test_two_atlases_of_one_species_are_refused(table):
    with pytest.raises(CellrayError, match="in one column, 'human'"):
        ortholog_names(table, HUMAN, HUMAN)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("human\nCD3E\n", "no two columns"),
        ("", "no two columns"),
        ("human,mouse\nCD3E\n", "row 2 has 1 columns, the header has 2"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, text, message):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(CellrayError, match=message):
        ortholog_names(str(path), HUMAN, MOUSE)


def test_a_table_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(CellrayError, match="no orthologs at"):
        ortholog_names(str(tmp_path / "none.tsv"), HUMAN, MOUSE)
    (tmp_path / "t.tsv").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(CellrayError, match="cannot be read: UnicodeDecodeError"):
        ortholog_names(str(tmp_path / "t.tsv"), HUMAN, MOUSE)
