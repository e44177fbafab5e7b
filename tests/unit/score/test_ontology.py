"""Ontologies read from both formats, walked up, and used to be lenient."""

import gzip

import numpy as np
import pytest

from cellray.core.errors import CellrayError
from cellray.score.annotation import f1
from cellray.score.ontology import Ontology, lenient

PAIRS = [
    ("T cell", "lymphocyte"),
    ("B cell", "lymphocyte"),
    ("CD4 T cell", "T cell"),
    ("Treg", "CD4 T cell"),
    ("Treg", "regulatory cell"),
    ("lymphocyte", "cell"),
    ("regulatory cell", "cell"),
]

OBO = """format-version: 1.2
ontology: cl
name: not a term

[Term]
id: CL:0000084
name: T cell
is_a: CL:0000542 {source="x", is_inferred="true"} ! lymphocyte
relationship: part_of CL:0000738 ! leukocyte

[Term]
id: CL:0000542
name: lymphocyte
def: "A [small] cell." [PMID:1]

[Term]
id: CL:0000624
name: CD4 T cell
is_a: CL:0000084 ! T cell

[Term]
id: CL:0000738
name: leukocyte

[Term]
id: CL:0000999
name: T cell
is_a: CL:0000738
is_obsolete: true

[Typedef]
id: part_of
name: part of
is_a: CL:0000542
"""


@pytest.fixture
def write(tmp_path):
    def to(text, name="types.tsv"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return to


def table(pairs):
    return "".join("\t".join(pair) + "\n" for pair in [("child", "parent"), *pairs])


@pytest.fixture
def ontology(write):
    return Ontology.of(write(table(PAIRS)))


def test_descent_equals_the_powers_of_the_adjacency_matrix(ontology):
    terms = sorted({term for pair in PAIRS for term in pair})
    steps = np.array([[(child, parent) in PAIRS for parent in terms] for child in terms], int)
    paths = sum(np.linalg.matrix_power(steps, length) for length in range(1, len(terms)))
    found = [[ontology.descends(child, parent) for parent in terms] for child in terms]
    assert np.array_equal(found, paths > 0)


def test_unknown_terms_descend_from_nothing_and_are_listed(ontology):
    assert not ontology.descends("neuron", "cell")
    assert not ontology.descends("T cell", "everything")
    assert ontology.unknown(["neuron", "T cell", "axon", "neuron"]) == ["axon", "neuron"]


def test_columns_are_found_by_name_in_any_order(write):
    text = "note\tparent\tchild\n\tcell\tT cell\n"
    assert Ontology.of(write(text)).descends("T cell", "cell")


def test_obo_terms_go_by_id_and_name_and_only_is_a_counts(write):
    found = Ontology.of(write(OBO, "cl.obo"))
    for child in ("CL:0000624", "CD4 T cell"):
        for parent in ("CL:0000542", "lymphocyte"):
            assert found.descends(child, parent)
            assert not found.descends(parent, child)
    assert not found.descends("T cell", "leukocyte")
    assert not found.descends("CL:0000999", "leukocyte")
    assert not found.descends("part_of", "lymphocyte")
    assert found.unknown(["not a term", "part of"]) == ["not a term", "part of"]


def test_an_obo_may_be_gzipped(tmp_path):
    path = tmp_path / "cl.obo.gz"
    path.write_bytes(gzip.compress(OBO.encode()))
    assert Ontology.of(str(path)).descends("CD4 T cell", "lymphocyte")


def test_finer_is_right_and_coarser_or_beside_is_wrong(ontology):
    true = np.array(["T cell", "T cell", "CD4 T cell", "B cell", "T cell", "neuron", "neuron"])
    guess = np.array(["Treg", "CD4 T cell", "T cell", "T cell", "T cell", "neuron", "Treg"])
    found = lenient(true, guess, ontology)
    expected = ["T cell", "T cell", "T cell", "T cell", "T cell", "neuron", "Treg"]
    assert found.tolist() == expected
    assert f1(true, found)["micro_f1"] == pytest.approx(4 / 7)
    assert lenient(true.astype(object), guess.astype(object), ontology).tolist() == expected


def test_an_id_and_its_name_are_one_term(write):
    found = lenient(["T cell"], ["CL:0000084"], Ontology.of(write(OBO, "cl.obo")))
    assert found.tolist() == ["T cell"]


def test_labels_that_the_ontology_does_not_know_at_all_are_refused(ontology):
    with pytest.raises(CellrayError, match=r"none of the labels, such as 'CL:1'"):
        lenient(["CL:1", "CL:2"], ["CL:1", "CL:1"], ontology)


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("types.tsv", table([("a", "b"), ("b", "c"), ("c", "a")]), "descend from each other"),
        ("types.tsv", table([("a", "a")]), "descend from each other: a > a"),
        ("types.tsv", "T cell\tcell\n", "no columns child and parent"),
        ("types.tsv", "", "no columns child and parent"),
        ("types.tsv", "child\tparent\nT cell\n", "without child or parent"),
        ("types.tsv", "child\tparent\n", "no terms"),
        ("types.obo", "format-version: 1.2\n", "no terms"),
        ("types.obo", OBO.replace("is_obsolete: true\n", ""), "two terms named 'T cell'"),
        ("types.owl", "<rdf/>", "no known format"),
    ],
)
def test_files_that_are_no_ontology_are_refused(write, name, text, match):
    with pytest.raises(CellrayError, match=match):
        Ontology.of(write(text, name))


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(CellrayError, match="no ontology at"):
        Ontology.of(str(tmp_path / "none.tsv"))
    path = tmp_path / "types.tsv"
    path.write_bytes(b"child\tparent\n\xff\xfe\t\x00")
    with pytest.raises(CellrayError, match="cannot be read: UnicodeDecodeError"):
        Ontology.of(str(path))
