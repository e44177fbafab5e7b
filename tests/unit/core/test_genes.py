"""Gene sets are read from the files of the field and matched by whatever names a gene."""

import gzip
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from cellray.core.errors import CellrayError
from cellray.core.genesets import match_gene_sets, read_gene_sets

GMT = (
    "CYCLE\thttp://site\tMKI67\tTOP2A\tMKI67\nTCELL\t\tCD3E\tCD3D\t\nNKX2_8_TARGET_GENES\tx\tCD3E\n"
)
SETS = {
    "CYCLE": ("MKI67", "TOP2A"),
    "TCELL": ("CD3E", "CD3D"),
    "NKX2_8_TARGET_GENES": ("CD3E",),
}
EDGES = {"AATF": ("BAK1", "BAX"), "MYC": ("BAX",)}
SYMBOLS = ["CD3D", "CD3E", "MKI67", "NKX2-8", "ACTB"]
IDS = [f"ENSG0000000000{i}" for i in range(5)]


def write(folder, name, text):
    raw = text.encode()
    (folder / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return str(folder / name)


def match(sets, *names, columns=None):
    columns = np.arange(len(names[0])) if columns is None else np.asarray(columns)
    return match_gene_sets("sets.gmt", sets, names, columns)


@pytest.mark.parametrize("name", ["sets.gmt", "sets.gmt.gz", "SETS.GMT"])
def test_gmt_lines_are_sets_of_distinct_genes(tmp_path, name):
    assert read_gene_sets(write(tmp_path, name, GMT)) == SETS


def test_gmt_of_enrichr_with_weights(tmp_path):
    assert read_gene_sets(write(tmp_path, "a.gmt", "A\t\tX,1.0\tY,0.5\n")) == {"A": ("X", "Y")}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("trrust.tsv", "AATF\tBAK1\tUnknown\t1\nAATF\tBAX\tR\t2\nMYC\tBAX\tR\t3\n"),
        ("dorothea.csv", "tf,confidence,target,mor\nAATF,A,BAK1,1\nAATF,A,BAX,1\nMYC,B,BAX,-1\n"),
        ("collectri.csv", "source,target,weight\nAATF,BAK1,1\nAATF,BAX,1\nMYC,BAX,1\n"),
        (
            "tflink.tsv.gz",
            "UniprotID.TF\tUniprotID.Target\tName.TF\tName.Target\n"
            "Q1\tP1\tAATF\tBAK1\nQ1\tP2\tAATF\tBAX\nQ2\tP2\tMYC\tBAX\n",
        ),
        (
            "omnipath.tsv",
            "source\ttarget\tsource_genesymbol\ttarget_genesymbol\n"
            "Q1\tP1\tAATF\tBAK1\nQ1\tP2\tAATF\tBAX\nQ2\tP2\tMYC\tBAX\n",
        ),
        ("adjacencies.tsv", "TF\ttarget\timportance\nAATF\tBAK1\t9\nAATF\tBAX\t8\nMYC\tBAX\t7\n"),
        ("pandas.csv", ",regulator,Gene\n0,AATF,BAK1\n1,AATF,BAX\n2,MYC,BAX\n"),
        ("lists.txt", "# a comment\n\nfactor\ttargets\nAATF\tBAK1;BAX\nMYC\tBAX\n"),
        ("mark.csv", "\ufefftf,target\nAATF,BAK1\nAATF,BAX\nMYC,BAX\nAATF,BAX\n,X\n"),
    ],
)
def test_tables_of_factors_and_targets_in_the_usual_spellings(tmp_path, name, text):
    assert read_gene_sets(write(tmp_path, name, text)) == EDGES


def test_sets_come_by_url(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    write(tmp_path, "sets.gmt.gz", GMT)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            del args

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            assert read_gene_sets(f"{url}/sets.gmt.gz?version=1") == SETS
            with pytest.raises(CellrayError, match=r"no gene sets at .*/other\.gmt; check"):
                read_gene_sets(f"{url}/other.gmt")
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("sets.json", "{}", "its name says no known format; give a .gmt"),
        ("sets.gmt", "<html>\n", "is no GMT: line 1"),
        ("sets.gmt", "A\tb\tC\nD\te\n", "is no GMT: line 2"),
        ("sets.gmt", "\n\n", "holds no gene sets"),
        ("table.csv", "", "holds no gene sets"),
        ("table.csv", "tf,weight\nA,1\n", "no column of targets: its header is 'tf, weight'"),
        ("table.csv", "weight,gene\n1,A\n", "no column of factors"),
        ("table.csv", "A\nB\n", "no column of factors"),
        ("table.tsv", "tf\ttarget\nA\tB\nA\n", "a line has 1 columns"),
    ],
)
def test_what_holds_no_sets_is_refused(tmp_path, name, text, words):
    with pytest.raises(CellrayError) as caught:
        read_gene_sets(write(tmp_path, name, text))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [("bad.gmt", b"\xff\xfe\x00"), ("cut.gmt.gz", gzip.compress(GMT.encode(), mtime=0)[:-12])],
)
def test_damaged_files_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CellrayError, match="cannot be read"):
        read_gene_sets(str(tmp_path / name))


def test_missing_files_and_unknown_protocols_are_refused(tmp_path):
    with pytest.raises(CellrayError, match=r"no gene sets at .*none\.gmt"):
        read_gene_sets(str(tmp_path / "none.gmt"))
    with pytest.raises(CellrayError, match="cannot be read"):
        read_gene_sets("nowhere://bucket/sets.gmt")
    (tmp_path / "folder.gmt").mkdir()
    with pytest.raises(CellrayError, match="cannot be read"):
        read_gene_sets(str(tmp_path / "folder.gmt"))


def test_genes_are_matched_and_sets_without_any_left_out():
    found = match(SETS | {"ELSE": ("XIST",)}, SYMBOLS)
    assert found.names == ("CYCLE", "TCELL", "NKX2_8_TARGET_GENES")
    assert [columns.tolist() for columns in found.columns] == [[2], [0, 1], [1]]
    assert found.factors.tolist() == [-1, -1, 3]
    assert (found.matched, found.of, found.covered, found.n_genes) == (3, 5, 3, 5)
    assert str(found) == "3 of 5 genes (60%), which are 60% of the atlas's, in 3 sets"


def test_ids_match_whatever_version_and_either_kind_of_name_will_do():
    sets = {"A": ("ENSG00000000000.7", "MKI67"), "MKI67": ("ENSG00000000001",)}
    versions = [f"{name}.{i}" for i, name in enumerate(IDS)]
    symbols = [None, "CD3E", "MKI67", None, "ACTB"]
    for names in [(versions, symbols), (symbols, IDS)]:
        found = match(sets, *names)
        assert [columns.tolist() for columns in found.columns] == [[0, 2], [1]]
        assert found.factors.tolist() == [-1, 2]


def test_names_match_as_written_before_in_upper_case():
    found = match({"A": ("ACTB",), "B": ("Actb",), "C": ("actb",)}, ["Actb", "ACTB", "x"])
    assert [columns.tolist() for columns in found.columns] == [[1], [0], [0, 1]]


def test_a_name_of_several_genes_means_them_all():
    assert match({"A": ("X",)}, IDS, ["X", "Y", "X", None, "Z"]).columns[0].tolist() == [0, 2]


def test_columns_are_the_models_and_the_share_is_the_atlass():
    found = match(SETS, SYMBOLS, columns=[-1, 5, -1, -1, 9])
    assert found.names == ("TCELL", "NKX2_8_TARGET_GENES")
    assert [columns.tolist() for columns in found.columns] == [[5], [5]]
    assert found.factors.tolist() == [-1, -1]
    assert found.matched == 3


def test_too_small_a_match_names_an_example_of_each_side():
    genes = [f"Gene{i}" for i in range(100)]
    sets = {"A": (*(f"AT{i}G01010" for i in range(19)), "GENE0")}
    with pytest.raises(CellrayError) as caught:
        match(sets, genes, [f"ENSG{i:011d}" for i in range(100)])
    assert "the atlas has 1 of the 20 genes of sets.gmt" in str(caught.value)
    assert "like AT0G01010, the atlas like Gene0 or ENSG00000000000" in str(caught.value)
    # Few of a large file's genes, but all of a small atlas's.
    assert match(sets, genes[:1]).overlap == 1


def test_sets_without_a_gene_of_the_model_are_refused():
    with pytest.raises(CellrayError, match=r"no set of sets\.gmt has a gene of the model"):
        match(SETS, SYMBOLS, columns=[-1, -1, -1, -1, 0])


def test_real_sets(shared_data):
    cells = read_gene_sets(str(shared_data / "c8_v2023.1.gmt"))
    assert len(cells) == 830
    factors = read_gene_sets(str(shared_data / "c3_tft_v7.5.1.gmt"))
    everything = sorted({gene for genes in (*cells.values(), *factors.values()) for gene in genes})
    found = match(factors, everything)
    assert len(found.names) == 1128
    # Of 518 sets named after factors, 13 are after fusions, old names or what is in no set.
    assert (found.factors >= 0).sum() == 505
    edges = read_gene_sets(str(shared_data / "trrust.tsv.gz"))
    lines = gzip.decompress((shared_data / "trrust.tsv.gz").read_bytes()).decode().splitlines()
    pairs = {tuple(line.split("\t")[:2]) for line in lines}
    assert {(factor, gene) for factor, genes in edges.items() for gene in genes} == pairs
