"""What makes two evaluations the same: the content of files too, and the command says all of it."""

import gzip
import shlex

import pytest

from cellray.core.errors import CellrayError
from cellray.evaluation.facts import params_of
from cellray.evaluation.gates import newest, protocols, whole_groups
from cellray.evaluation.held_out import settled
from cellray.evaluation.suite import Suite
from cellray.evaluation.watch import _Watcher
from cellray.tasks.task import Spec
from cellray.track.catalogue import find_version
from cellray.track.evaluations import command, evaluations_of, protocol_of
from cellray.track.store import client

ONTOLOGY = "child\tparent\nB cell\tlymphocyte\n"
KNN = "model/knn/macro_f1"


@pytest.fixture
def ontology(registry):
    (registry / "types.tsv").write_text(ONTOLOGY)
    return registry / "types.tsv"


def stored(uri="models:/cells/2"):
    api = client()
    return evaluations_of(api, find_version(api, uri))


@pytest.mark.parametrize("field", ["gene_sets", "ontology", "orthologs"])
def test_the_content_of_a_file_makes_the_protocol_and_its_place_does_not(field, tmp_path):
    def protocol(path):
        return protocol_of("annotation", "00", params_of(Spec(**{field: str(path)}), 9))

    (tmp_path / "a.tsv").write_text("one\ttwo\n")
    first = protocol(tmp_path / "a.tsv")
    (tmp_path / "b.tsv.gz").write_bytes(gzip.compress(b"one\ttwo\n"))
    assert protocol(tmp_path / "b.tsv.gz") == first
    (tmp_path / "a.tsv").write_text("one\tthree\n")
    assert protocol(tmp_path / "a.tsv") != first
    with pytest.raises(CellrayError, match=r"no [a-z ]+ at "):
        protocol(tmp_path / "none.tsv")


def test_the_state_of_a_reference_makes_the_protocol(atlas):
    params = params_of(Spec(label="cell_type", reference=atlas.url), 9)
    assert params["reference"] == atlas.url
    assert params["reference_digest"] == atlas.digest[:32]
    with pytest.raises(CellrayError, match="no atlas at /nowhere"):
        params_of(Spec(reference="/nowhere"), 9)


def test_an_evaluation_with_other_content_of_a_file_is_none_of_the_suite(log, atlas, ontology):
    suite = Suite.of({"tasks": {"annotation": {"label": "cell_type", "ontology": str(ontology)}}})
    run = log("models:/cells/2", "annotation", {KNN: 0.5}, ontology=str(ontology))

    def found():
        entries = suite.specs(settled(suite, {}, atlas)[0])
        return newest(stored(), protocols(entries, atlas.digest, 50_000))

    def groups():
        return whole_groups(suite, stored(), uri="models:/cells/2", file="suite.yaml")

    assert found()["annotation"].run_id == run
    assert [group["annotation"].run_id for group in groups()] == [run]
    moved = ontology.rename(ontology.with_name("moved.tsv"))
    suite = Suite.of({"tasks": {"annotation": {"label": "cell_type", "ontology": str(moved)}}})
    assert [group["annotation"].run_id for group in groups()] == [run]
    moved.write_text(ONTOLOGY + "T cell\tlymphocyte\n")
    assert found() == {}
    with pytest.raises(CellrayError, match="was not evaluated by all tasks"):
        groups()


def test_where_the_suite_names_no_file_the_newest_content_counts(log, ontology):
    suite = Suite.of({"tasks": {"annotation": {}, "clustering": {}}})
    tasks = ("annotation", "clustering")
    for task in tasks:
        log("models:/cells/2", task, {KNN: 0.5}, ontology=str(ontology))
    ontology.write_text(ONTOLOGY + "T cell\tlymphocyte\n")

    def groups():
        return whole_groups(suite, stored(), uri="models:/cells/2", file="suite.yaml")

    log("models:/cells/2", "annotation", {KNN: 0.6}, ontology=str(ontology))
    with pytest.raises(CellrayError, match="was not evaluated by all tasks"):
        groups()  # one by the old content, the other by the new
    log("models:/cells/2", "clustering", {KNN: 0.6}, ontology=str(ontology))
    (group,) = groups()
    assert [group[task].metrics[KNN] for task in tasks] == [0.6, 0.6]


def test_a_watch_takes_other_content_for_another_suite(ontology):
    suite = Suite.of({"tasks": {"annotation": {"label": "x", "ontology": str(ontology)}}})
    watcher = _Watcher("cells", "url", suite, "suite.yaml", {}, 9, lambda *_: None, promoting=False)
    before = watcher.key("00")
    assert watcher.key("00") == before
    ontology.write_text(ONTOLOGY + "T cell\tlymphocyte\n")
    assert watcher.key("00") != before


OTHERS = {
    "label": "cell type",
    "split_by": "donor",
    "batch": "plate",
    "matrix": "obsm/protein",
    "control": "non-targeting",
    "fine_tune": True,
    "splits": 3,
    "seed": 7,
}


def test_the_command_says_all_that_was_asked(parse_command, atlas, ontology):
    files = dict.fromkeys(("gene_sets", "ontology", "orthologs"), str(ontology))
    spec = Spec(**OTHERS, **files, reference=atlas.url)
    assert {*spec.model_dump(exclude_defaults=True)} == {*Spec.model_fields}
    said = command("models:/cells/2", "cells.zarr", "markers", params_of(spec, 300))
    program, *words = shlex.split(said)
    assert program == "cellray"
    found = parse_command(words)
    assert (found["model"], found["atlas"], found["task"]) == (
        "models:/cells/2",
        "cells.zarr",
        "markers",
    )
    assert found["max_cells"] == 300
    assert Spec(**{name: found[name] for name in Spec.model_fields}) == spec


def test_the_command_leaves_out_what_is_the_default():
    params = params_of(Spec(label="cell_type"), 50_000)
    assert command("models:/cells/2", "cells.zarr", "annotation", params) == (
        "cellray evaluate models:/cells/2 --atlas cells.zarr --label cell_type"
    )
