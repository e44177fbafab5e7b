"""``--dry-run`` of what uses registered models."""


def test_evaluate(registry, atlas, dry):
    words = ["evaluate", "models:/cells/2", "--atlas", atlas.url, "--label", "cell_type"]
    document = dry(registry, *words, "--suite", "standard", "--max-cells", 100)
    assert document["tasks"] == {"annotation": "annotation", "clustering": "clustering"}
    assert (document["cells_embedded"], document["cells_scored"]) == (240, 100)
    assert document["embedded_by"] == ["model", "untrained", "champion"]
    assert len(document["gates"]) == 2
    for more, said in (
        (["--split-by", "donors"], "did you mean 'donor'"),
        (["--task", "anotation"], "did you mean 'annotation'"),
        (["--gate"], "--gate needs gates"),
        (["--reference", "nowhere"], "no atlas at"),
        (["--task", "cross_modality", "--matrix", "obsm/protein"], "no matrix 'obsm/protein'"),
    ):
        found = dry(registry, *words, *more, status=2)
        assert said in found["error"] + found["mend"]
    mouse = dry(registry, "evaluate", "models:/mouse", *words[2:], status=2)
    assert "no gene in common" in mouse["error"]


def test_leaderboard(registry, atlas, log, dry):
    log("models:/cells/1", "annotation", {"model/knn/macro_f1": 0.5})
    words = ["leaderboard", "cells", "--suite", "suite.yaml", "--atlas", atlas.url]
    (registry / "suite.yaml").write_text("tasks: {annotation: {label: cell_type}}\n")
    document = dry(registry, *words)
    assert document["would_evaluate"] == {"models:/cells/2": "annotation"}
    assert document["metrics"] == ["annotation/model/knn/macro_f1"]
    found = dry(registry, *words, "--metric", "annotation/model/knn/f2", status=2)
    assert "is no score" in found["error"]
    assert "no registered model" in dry(registry, words[0], "sells", *words[2:], status=2)["error"]


def test_embed(registry, atlas, dry):
    words = ["embed", "models:/cells@champion", "--atlas", atlas.url, "--out"]
    assert dry(registry, *words, "z.parquet")["writes"] == "one file"
    assert dry(registry, *words, "many/")["writes"] == "many Parquet files"
    assert dry(registry, *words, "new.zarr")["bytes_copied"] > 0
    assert "cannot tell" in dry(registry, *words, "z.csv", status=2)["error"]
