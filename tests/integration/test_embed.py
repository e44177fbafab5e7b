"""Embedding atlases for real, through Ray Data: into files, object storage and new atlases."""

import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pds
import pyarrow.parquet as pq
import pytest
import ray
import torch
from scipy.sparse import csr_matrix

from cellray.atlas.simulate import Simulation, simulate_anndata
from cellray.atlas.splits import SplitSpec, store_split
from cellray.atlas.store import Atlas
from cellray.atlas.write import append, ingest
from cellray.cli import main
from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe
from cellray.core.types import Span
from cellray.evaluation import embed as embedding
from cellray.evaluation.embed import embed_atlas, embed_learners
from cellray.evaluation.write import embed
from cellray.learn.embed import embed_matrix
from cellray.learn.learner import Learner
from cellray.track import models, runs
from cellray.track.store import tracking_uri

RECIPE = Recipe.of(
    {
        "encoder": {"name": "mlp", "widths": [32], "dim": 8, "dropout": 0.0},
        "objective": {"name": "masked", "widths": [32]},
    }
)
CELLS = 9_000
Z = [f"z{number}" for number in range(8)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three files of cells, together more than two slabs; the last has fewer columns."""
    folder = tmp_path_factory.mktemp("files")
    data = simulate_anndata(Simulation(n_cells=CELLS, n_genes=120, n_types=4, n_donors=5, seed=3))
    data.obs_names = [f"cell{number}" for number in range(len(data))]
    data.obs["depth"] = np.asarray(data.X.sum(axis=1)).ravel()
    paths = [folder / f"{name}.h5ad" for name in ("first", "second", "third")]
    data[:5_500].copy().write_h5ad(paths[0])
    data[5_500:8_000].copy().write_h5ad(paths[1])
    last = data[8_000:].copy()
    del last.obs["donor"]
    last.write_h5ad(paths[2])
    return paths


@pytest.fixture(scope="module")
def atlas(files):
    """An atlas of two parts, with a split."""
    made = ingest(files[:2], files[0].parent / "cells.zarr")
    store_split(append(files[2:], made.url), "even", SplitSpec(stratify="cell_type"))
    return Atlas.open(made.url)


@pytest.fixture(scope="module", autouse=True)
def work(tmp_path_factory):
    """A working folder of its own, with its own MLflow store."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("work"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


@pytest.fixture(scope="module")
def model(atlas, work):
    learner = Learner.of(RECIPE, atlas.genes.tolist())
    with runs.run(experiment="cellray", run_name="cells", params={}, tags={}) as run_id:
        facts = {"atlas": atlas.url, "atlas_digest": atlas.digest, "cells": 1, "seed": 0}
        version = models.register(learner, run_id=run_id, name="cells", facts=facts, metrics={})
    return f"models:/cells/{version}"


@pytest.fixture(scope="module")
def z(model, atlas, ray_local):
    return embed_atlas(model, atlas)


@pytest.fixture(scope="module")
def original(files):
    return anndata.concat([anndata.read_h5ad(path) for path in files], join="outer")


def test_embeddings_come_in_stored_order(z, model, atlas):
    counts = atlas.read(Span(0, atlas.n_cells)).to_scipy()
    expected = embed_matrix(models.resolve(model).learner, counts, atlas.genes)
    assert z.shape == (CELLS, 8)
    np.testing.assert_allclose(z, expected, atol=1e-5)


@pytest.mark.slow
def test_embeddings_do_not_depend_on_the_number_of_workers(z, model, atlas, monkeypatch):
    learner = models.resolve(model).learner
    (two,) = embed_learners([learner], atlas, workers=2)
    np.testing.assert_array_equal(two, z)
    monkeypatch.setattr(embedding, "SLAB", 1024)  # enough slabs for four, on two processors
    monkeypatch.setattr(embedding, "CPUS", 0.25)
    (four,) = embed_learners([learner], atlas, workers=4)
    np.testing.assert_array_equal(four, z)
    (other_batch,) = embed_learners([learner], atlas, batch=100)
    np.testing.assert_allclose(other_batch, z, atol=1e-5)


def test_one_file_holds_the_cells_in_the_order_of_the_files(z, model, atlas, original, tmp_path):
    seen = []
    out = tmp_path / "out" / "z.parquet"
    done = embed(atlas.url, model, out=out, progress=lambda *state: seen.append(state))
    assert (done.cells, done.dimensions, done.genes_matched) == (CELLS, 8, 1.0)
    assert [stage for stage, _, _ in seen] == ["embed"] * 3
    assert seen[-1][1:] == (CELLS, CELLS)
    table = pd.read_parquet(out)
    assert table["cellray_name"].tolist() == original.obs_names.tolist()
    assert table["cellray_source"].value_counts().to_dict() == {
        "first": 5_500,
        "second": 2_500,
        "third": 1_000,
    }
    assert table["cell_type"].astype(str).tolist() == original.obs["cell_type"].tolist()
    np.testing.assert_array_equal(table[Z].to_numpy(), z[table.index])
    learner = models.resolve(model).learner
    expected = embed_matrix(learner, csr_matrix(original.X), original.var_names.tolist())
    np.testing.assert_allclose(table[Z].to_numpy(), expected, atol=1e-5)


def test_h5ad_holds_the_files_cells_and_their_embeddings(z, model, atlas, original, tmp_path):
    embed(atlas.url, model, out=tmp_path / "z.h5ad", key="X_mine")
    data = anndata.read_h5ad(tmp_path / "z.h5ad")
    assert data.obs_names.tolist() == original.obs_names.tolist()
    assert data.X.dtype == np.float32
    assert (csr_matrix(data.X) != csr_matrix(original[:, data.var_names].X)).nnz == 0
    np.testing.assert_array_equal(data.obsm["X_mine"], z[data.obs["cellray_cell"]])
    assert data.uns["cellray"]["model"] == model


def check_table(table, z, original):
    """Compare many files, in stored order, with what was embedded and with the sources."""
    assert table["cellray_cell"].tolist() == [*range(CELLS)]
    np.testing.assert_allclose(table[Z].to_numpy(), z, atol=1e-5)
    by_name = original.obs.loc[table["cellray_name"]]
    for column in ("cell_type", "donor"):
        left, right = (one.astype(object).tolist() for one in (table[column], by_name[column]))
        assert [None if pd.isna(word) else word for word in left] == [
            None if pd.isna(word) else word for word in right
        ]
    np.testing.assert_array_equal(table["depth"], by_name["depth"])


def test_many_files_hold_the_same_in_stored_order(z, model, atlas, original, tmp_path):
    out = tmp_path / "z.parquet/"
    done = embed(atlas, model, out=f"{out}/")
    assert done.out == str(out)
    assert sorted(path.name for path in out.iterdir()) == [
        "_cellray.json",
        *(f"part-{start:012d}.parquet" for start in range(0, CELLS, embedding.SLAB)),
    ]
    record = json.loads((out / "_cellray.json").read_text())
    assert (record["model"], record["cells"]) == (model, CELLS)
    table = pds.dataset(out, format="parquet").to_table().to_pandas()
    check_table(table.sort_values("cellray_cell", ignore_index=True), z, original)
    assert [path.name for path in tmp_path.iterdir()] == ["z.parquet"]


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr")
def test_a_new_atlas_is_the_atlas_with_the_embeddings(z, model, atlas, tmp_path):
    out = tmp_path / "new.zarr"
    before = {path: path.stat().st_mtime_ns for path in Path(atlas.url).rglob("*")}
    embed(atlas.url, model, out=out, workers=2)
    assert before == {path: path.stat().st_mtime_ns for path in Path(atlas.url).rglob("*")}
    check_atlas(Atlas.open(str(out)), atlas, z)
    first = anndata.io.read_zarr(out)
    np.testing.assert_allclose(first.obsm["X_cellray"], z[: atlas.part_cells[0]], atol=1e-5)
    second = anndata.io.read_zarr(out / "parts" / "1")
    np.testing.assert_allclose(second.obsm["X_cellray"], z[atlas.part_cells[0] :], atol=1e-5)
    assert first.obs["cell_type"].tolist() == atlas.obs()["cell_type"][: len(first)].tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["new.zarr"]


def check_atlas(new, atlas, z):
    """Compare a copy of an atlas with it, and its matrix with what was embedded."""
    whole = Span(0, CELLS)
    rows = new.read(whole, matrices=["obsm/X_cellray"])
    np.testing.assert_allclose(rows.matrices["obsm/X_cellray"], z, atol=1e-5)
    old = atlas.read(whole)
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(rows, name), getattr(old, name))
    pd.testing.assert_frame_equal(new.obs(), atlas.obs())
    assert new.manifest.splits == atlas.manifest.splits
    assert new.digest != atlas.digest
    facts = new.manifest.matrices["obsm/X_cellray"]
    assert (facts["columns"], facts["of_digest"]) == (8, atlas.digest)


@pytest.mark.slow
def test_object_storage_takes_both(s3, z, model, atlas, original):
    bucket, variables = s3.bucket(), {**s3.env, "MLFLOW_TRACKING_URI": tracking_uri()}
    remote = ray.remote(num_cpus=0, runtime_env={"env_vars": variables})(embed)
    for out in (f"s3://{bucket}/z.parquet", f"s3://{bucket}/new.zarr"):
        ray.get(remote.remote(atlas.url, model, out=out))
    check_atlas(Atlas.open(f"s3://{bucket}/new.zarr"), atlas, z)
    names = [name for name in s3.keys(bucket, "z.parquet/") if name.endswith(".parquet")]
    assert len(names) == 3
    assert not [name for name in s3.keys(bucket) if "unfinished" in name]
    bodies = [s3.client.get_object(Bucket=bucket, Key=name)["Body"].read() for name in names]
    tables = pa.concat_tables([pq.read_table(pa.BufferReader(body)) for body in bodies])
    check_table(tables.unify_dictionaries().to_pandas(), z, original)

    with pytest.raises(CellrayError, match="is there already"):
        embed(atlas, model, out=f"s3://{bucket}/z.parquet")
    with pytest.raises(CellrayError, match="is there already"):
        embed(atlas, model, out=f"s3://{bucket}/new.zarr")
    ref = remote.remote(
        f"s3://{bucket}/new.zarr", model, out=f"s3://{bucket}/z.parquet", overwrite=True
    )
    assert ray.get(ref).cells == CELLS


@pytest.mark.slow
@pytest.mark.parametrize("name", ["z.parquet/"])
def test_what_is_there_is_replaced_only_when_asked(model, atlas, tmp_path, capfd, name):
    words = ["embed", model, "--atlas", atlas.url, "--out", str(tmp_path / name.rstrip("/"))]
    words[-1] += "/" * name.endswith("/")
    assert main([*words, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["cells"] == CELLS
    assert main(words) == 2
    assert "is there already" in capfd.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert len([*tmp_path.iterdir()]) == 1


def test_a_dry_run_says_what_would_be_written_and_writes_nothing(model, atlas, tmp_path, capfd):
    words = ["embed", model, "--atlas", atlas.url, "--dry-run", "--json", "--out"]
    for name in ("z.parquet", "z.h5ad", "many/", "new.zarr"):
        assert main([*words, f"{tmp_path}/{name}"]) == 0
        document = json.loads(capfd.readouterr().out)
        assert (document["cells"], document["dimensions"]) == (CELLS, 8)
        assert document["bytes"] == CELLS * 8 * 4
        assert (document["bytes_copied"] > 0) == (name == "new.zarr")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("z.csv", "cannot tell what to write"),
        ("z", "cannot tell what to write"),
        ("s3://bucket/z", "cannot tell what to write"),
        ("s3://bucket/z.h5ad", "or .parquet or .zarr there"),
        ("mine/", "no embeddings of cellray's"),
        ("mine.zarr", "holds something that is no atlas"),
    ],
)
def test_places_are_refused_before_anything_is_opened(tmp_path, out, message):
    for name in ("mine", "mine.zarr"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    place = out if "://" in out else f"{tmp_path}/{out}"
    with pytest.raises(CellrayError, match=message):
        embed("/nowhere", "models:/nothing", out=place)
    assert len([*tmp_path.rglob("*")]) == 4


def test_an_atlas_is_not_copied_onto_or_into_itself(model, atlas, tmp_path):
    with pytest.raises(CellrayError, match="is the atlas itself"):
        embed(atlas.url, model, out=atlas.url, overwrite=True)
    with pytest.raises(CellrayError, match="lies inside the atlas"):
        embed(atlas.url, model, out=f"{atlas.url}/new.zarr")


def test_genes_of_another_kind_are_refused_with_both_names(atlas, ray_local):
    learner = Learner.of(RECIPE, ["ENSG01", "ENSG02"])
    with pytest.raises(CellrayError, match=r"no gene in common.*ENSG01"):
        embed_learners([learner], atlas)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["many/"])
def test_a_model_that_diverged_is_refused_and_leaves_nothing(
    atlas, model, ray_local, tmp_path, name
):
    resolved = models.resolve(model)
    with torch.no_grad():
        next(resolved.learner.encoder.parameters()).fill_(float("nan"))
    with pytest.raises(CellrayError, match="NaN or infinite"):
        embed(atlas, resolved, out=f"{tmp_path}/{name}")
    assert not [*tmp_path.iterdir()]
