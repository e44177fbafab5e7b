"""Where an atlas may be written, and what becomes of what is there."""

import os

import anndata
import pytest
import zarr

from cellray.atlas.splits import SplitSpec, store_split
from cellray.atlas.store import Atlas
from cellray.atlas.write import append, ingest
from cellray.core.errors import CellrayError


def test_missing_folders_are_made(counted, h5ad, tmp_path):
    assert ingest([h5ad(counted())], tmp_path / "deep" / "down" / "out").n_cells == 40


def test_an_atlas_is_replaced_only_when_told(counted, h5ad, tmp_path):
    path, out = h5ad(counted()), tmp_path / "out"
    first = ingest([path], out)
    with pytest.raises(CellrayError, match="out is there already"):
        ingest([path], out, seed=1)
    assert Atlas.open(str(out)).digest == first.digest

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest([path], out, seed=1, overwrite=True, progress=stop)
    assert Atlas.open(str(out)).digest == first.digest
    assert ingest([path], out, seed=1, overwrite=True).digest != first.digest
    assert sorted(found.name for found in tmp_path.iterdir()) == ["a.h5ad", "out"]


def test_what_is_no_atlas_is_never_replaced(counted, h5ad, tmp_path):
    path = h5ad(counted())
    zarr.create_group(tmp_path / "other", attributes={"kept": 1})
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes").write_text("kept")
    for name in ("other", "file", "folder"):
        with pytest.raises(CellrayError, match="no atlas"):
            ingest([path], tmp_path / name, overwrite=True)
    assert zarr.open_group(tmp_path / "other").attrs["kept"] == 1
    assert (tmp_path / "folder" / "notes").read_text() == "kept"


def test_an_empty_folder_may_be_used(counted, h5ad, tmp_path):
    (tmp_path / "out").mkdir()
    assert ingest([h5ad(counted())], tmp_path / "out").n_cells == 40


def test_an_atlas_is_not_written_inside_another(counted, h5ad, tmp_path, monkeypatch, files):
    first, other = h5ad(counted(), "1.h5ad"), h5ad(counted(20, seed=1), "2.h5ad")
    atlas = ingest([first], tmp_path / "a")
    append([other], tmp_path / "a")
    whole = files(tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for inside in ("a/b", "a/X", "a/parts/7", "a/b/c", "link/b", "a/../a/b"):
        for settings in ({}, {"overwrite": True}):
            with pytest.raises(CellrayError, match=r"lies inside the atlas .*/a; choose another"):
                ingest([first], tmp_path / inside, **settings)
    with pytest.raises(CellrayError, match="lies inside the atlas"):
        append([h5ad(counted(10, seed=2), "3.h5ad")], tmp_path / "a" / "parts" / "1")
    assert files(tmp_path / "a") == whole
    monkeypatch.chdir(tmp_path / "a")
    assert ingest([first], "../b").digest == atlas.digest  # beside it


def test_a_prefix_inside_an_atlas_is_refused(counted, h5ad, bucket, files):
    path = h5ad(counted())
    ingest([path], "s3://bucket/some/a")
    whole = files(bucket)
    for inside in ("some/a/b", "some/a/X", "some/a//b/c"):
        with pytest.raises(CellrayError, match="lies inside the atlas s3://bucket/some/a; choose"):
            ingest([path], f"s3://bucket/{inside}")
    assert files(bucket) == whole
    assert ingest([path], "s3://bucket/some/b").n_cells == 40


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr")
def test_what_others_put_into_an_atlas_is_not_taken_for_a_part_of_it(counted, h5ad, tmp_path):
    path = h5ad(counted())
    atlas = ingest([path], tmp_path / "a")
    for name in ("notes", "layers", "obsm/umap", "parts/1"):
        zarr.create_group(tmp_path / "a" / name, attributes={"mine": 1})
    store_split(atlas, "held", SplitSpec())
    assert set(Atlas.open(atlas.url).nodes) == {
        *atlas.nodes, "uns", "uns/splits",
        *(f"uns/splits/held{below}" for below in ("", "/codes", "/categories")),
    }  # fmt: skip
    assert anndata.io.read_zarr(tmp_path / "a").n_obs == 40


def test_a_folder_that_may_not_be_written_is_named(counted, h5ad, tmp_path):
    if os.geteuid() == 0:
        out = "/proc/nothing/out"  # where even root may not write
    else:
        (tmp_path / "closed").mkdir(mode=0o500)
        out = tmp_path / "closed" / "out"
    with pytest.raises(CellrayError, match=r"cannot be written: .*; choose another --out"):
        ingest([h5ad(counted())], out)


def test_a_place_below_a_file_is_named(counted, h5ad, tmp_path):
    path = h5ad(counted())
    with pytest.raises(CellrayError, match=r"a\.h5ad cannot be written: Not a directory"):
        ingest([path], path / "out")
