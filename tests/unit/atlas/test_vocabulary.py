import warnings

import anndata
import numpy as np
import pandas as pd
import pytest

from cellray.atlas.sources import open_source
from cellray.atlas.vocabulary import join_genes, read_vocabulary
from cellray.core.errors import CellrayError

TP53, BRCA1, CD4, GFP = "ENSG00000141510", "ENSG00000012048", "ENSG00000010610", "GFP"


@pytest.fixture
def source(counted, h5ad):
    """Open a file with these gene names and columns of var."""
    made = []

    def make(names, **columns):
        data = counted(genes=[f"g{i}" for i in range(len(names))])
        data.var = pd.DataFrame(columns, index=names)
        made.append(h5ad(data, f"{len(made)}.h5ad"))
        return open_source(made[-1])

    # Names that repeat are what some of these tests are of; anndata warns of them.
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        yield make


def places(var, maps):
    """Name where the columns of each source go."""
    return [[var.index[i] if i >= 0 else None for i in columns] for columns in maps]


def test_inner_keeps_the_order_of_the_first(source):
    sources = [source(list("abcd")), source(list("dxba"))]
    var, maps = join_genes(sources)
    assert list(var.index) == ["a", "b", "d"]
    assert places(var, maps) == [["a", "b", None, "d"], ["d", None, "b", "a"]]


def test_outer_appends_what_is_new(source):
    var, maps = join_genes(
        [source(list("ab")), source(list("xby")), source(list("ya"))], join="outer"
    )
    assert list(var.index) == list("abxy")
    assert [list(columns) for columns in maps] == [[0, 1], [2, 1, 3], [3, 0]]


def test_a_vocabulary_keeps_its_own_order(source):
    given = pd.DataFrame({"length": [1, 2, 3]}, index=["z", "b", "a"])
    var, maps = join_genes([source(list("abc")), source(list("ba"))], join=given)
    assert list(var.index) == ["z", "b", "a"]
    assert list(var["length"]) == [1, 2, 3]
    assert [list(columns) for columns in maps] == [[2, 1, -1], [1, 2]]


def test_a_vocabulary_keeps_its_names_whatever_it_is_matched_by(source):
    given = pd.DataFrame({"gene_id": [CD4, TP53]}, index=["CD4", "TP53"])
    for names in ("index", "ids"):
        var, maps = join_genes([source([TP53, BRCA1])], join=given, names=names)
        assert list(var.index) == ["CD4", "TP53"]
        assert list(maps[0]) == [1, -1]


def test_one_source_stays_as_it_is(source):
    one = source(["b", "a"], length=[1, 2], kind=pd.Categorical(["x", "y"]))
    var, maps = join_genes([one])
    pd.testing.assert_frame_equal(var, one.genes, check_index_type=False)
    assert list(maps[0]) == [0, 1]


def test_versions_of_ids_do_not_matter(source):
    sources = [source([f"{TP53}.17", BRCA1]), source([f"{BRCA1}.3", f"{TP53}.18_PAR_Y", TP53])]
    var, maps = join_genes(sources)
    assert list(var.index) == [f"{TP53}.17", BRCA1]
    assert [list(columns) for columns in maps] == [[0, 1], [1, -1, 0]]


@pytest.mark.parametrize("column", ["gene_ids", "anything at all"])
def test_ids_and_symbols_meet_where_one_carries_both(source, column):
    symbols = source(["TP53", "CD4", "X"], **{column: [f"{TP53}.2", CD4, BRCA1]})
    ids = source([CD4, TP53])
    for first, second, expected in ((symbols, ids, ["TP53", "CD4"]), (ids, symbols, [CD4, TP53])):
        var, _ = join_genes([first, second])
        assert list(var.index) == expected
    var, _ = join_genes([symbols, ids])
    assert list(var["gene_id"]) == [f"{TP53}.2", CD4]
    var, _ = join_genes([ids, symbols])
    assert list(var["gene_symbol"]) == ["CD4", "TP53"]


def test_a_third_source_translates_between_two(source):
    sources = [
        source(["TP53", "CD4"]),
        source([CD4, BRCA1]),
        source([TP53, CD4], feature_name=["TP53", "CD4"]),
    ]
    var, maps = join_genes(sources, join="outer")
    assert places(var, maps) == [["TP53", "CD4"], ["CD4", BRCA1], ["TP53", "CD4"]]
    assert list(var["gene_id"])[:2] == [TP53, CD4]
    assert pd.isna(var["gene_id"].iloc[2])


def test_a_symbol_of_two_ids_is_not_guessed(source):
    both = source([TP53, CD4, BRCA1], gene_symbols=["A", "A", "B"])
    var, maps = join_genes([both, source(["A", "B"])])
    assert places(var, maps) == [[None, None, BRCA1], [None, BRCA1]]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("ids", [TP53, CD4]),
        ("symbols", ["TP53", "CD4"]),
        ("alias", ["p53", "leu3"]),
        ("index", ["TP53", "CD4"]),
    ],
)
def test_genes_are_named_as_told(source, names, expected):
    columns = {"gene_ids": [TP53, CD4], "alias": ["p53", "leu3"]}
    var, maps = join_genes([source(["TP53", "CD4"], **columns)], names=names)
    assert list(var.index) == expected
    assert list(maps[0]) == [0, 1]


def test_a_gene_without_the_other_name_keeps_its_own(source):
    one = source([TP53, GFP, CD4, BRCA1], gene_symbol=["TP53", None, "", "BRCA1"])
    assert list(join_genes([one], names="symbols")[0].index) == ["TP53", GFP, CD4, "BRCA1"]


def test_duplicates_are_refused_or_added_up(source):
    one = source(["a", "b", "a"], length=[1, 2, 3])
    with pytest.raises(CellrayError, match=r"names 1 genes twice, 'a' among them; make them uni"):
        join_genes([one])
    var, maps = join_genes([one, source(["b", "a"])], duplicates="sum")
    assert list(var.index) == ["a", "b"]
    assert [list(columns) for columns in maps] == [[0, 1, 0], [1, 0]]
    assert list(var["length"]) == [1, 2]  # of the first of them
    var, maps = join_genes([source(["b", "a"]), one], duplicates="sum", join="outer")
    assert [list(columns) for columns in maps] == [[0, 1], [1, 0, 1]]
    with pytest.raises(CellrayError, match="the vocabulary names 1 genes twice"):
        join_genes([one], duplicates="sum", join=pd.DataFrame(index=["a", "b", "b"]))


def test_sources_without_a_gene_in_common_are_refused(source):
    one, two = source(["CD4", "CD8A"]), source([TP53, BRCA1])
    for join in ("inner", "outer"):
        with pytest.raises(CellrayError, match=f"like '{TP53}', they like 'CD4'") as caught:
            join_genes([one, two], join=join)
        assert "--gene-names" in caught.value.mend
    with pytest.raises(CellrayError, match=r"0\.h5ad shares no gene with the vocabulary"):
        join_genes([one], join=pd.DataFrame(index=["x"]))
    with pytest.raises(CellrayError, match=r"names no gene by ids: it has 'CD4'"):
        join_genes([one], names="ids")
    with pytest.raises(CellrayError, match=r"no var column 'alia'; did you mean 'alias'"):
        join_genes([source(["a"], alias=["b"])], names="alia")


def test_tables_are_joined_gene_by_gene(source):
    sources = [
        source(["a", "b"], length=[1, 2], kind=pd.Categorical(["x", "y"])),
        source(["c", "b"], length=[7, 9], mean=[0.5, 0.1], kind=["z", "y"]),
    ]
    var, _ = join_genes(sources, join="outer")
    assert list(var["length"]) == [1, 2, 7]
    assert var["length"].dtype == np.int64
    assert list(var["kind"]) == ["x", "y", "z"]
    np.testing.assert_array_equal(var["mean"], [np.nan, np.nan, 0.5])
    var, _ = join_genes(sources)
    assert (list(var.index), list(var["length"]), list(var.columns)) == (
        ["b"], [2], ["length", "kind"],
    )  # fmt: skip


def test_a_vocabulary_is_read_from_text_or_from_a_file_of_cells(tmp_path, counted, h5ad):
    (tmp_path / "genes.txt").write_text("b\n\n  a\t\nc\n")
    assert list(read_vocabulary(tmp_path / "genes.txt").index) == ["b", "a", "c"]
    table = read_vocabulary(h5ad(counted()))
    assert list(table.index) == [f"g{i}" for i in range(30)]
    assert list(table["length"]) == list(range(30))


def test_bad_vocabularies_are_named(tmp_path, h5ad):
    for text, words in (("", "names no gene"), ("a\nb\na\n", "names gene 'a' twice")):
        (tmp_path / "genes.txt").write_text(text)
        with pytest.raises(CellrayError, match=rf"genes\.txt {words}"):
            read_vocabulary(tmp_path / "genes.txt")
    (tmp_path / "genes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CellrayError, match="is no text"):
        read_vocabulary(tmp_path / "genes.txt")
    with pytest.raises(CellrayError, match=r"no file .*gene\.txt; did you mean 'genes\.txt'"):
        read_vocabulary(tmp_path / "gene.txt")
    with pytest.raises(CellrayError, match="names no gene"):
        read_vocabulary(h5ad(anndata.AnnData(np.zeros((2, 0), np.float32))))


def test_real_plates_of_ids_share_their_genes(shared_data):
    sources = [open_source(shared_data / f"mixology_sc_celseq2_5cl_p{i}.h5ad") for i in (1, 2, 3)]
    names = [source.genes.index for source in sources]
    var, maps = join_genes(sources)
    everywhere = set(names[1]) & set(names[2])
    assert list(var.index) == [name for name in names[0] if name in everywhere]
    whole, _ = join_genes(sources, join="outer")
    assert set(whole.index) == set().union(*names)
    for columns, own in zip(maps, names, strict=True):
        kept = columns >= 0
        assert list(own[kept]) == list(var.index[columns[kept]])
