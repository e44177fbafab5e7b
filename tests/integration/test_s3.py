"""Atlases in object storage: what works in a folder works in a bucket, and refusals are clear."""

from urllib.parse import urlsplit

import anndata
import numpy as np
import pytest

from cellray.atlas.describe import describe
from cellray.atlas.simulate import Simulation, simulate_anndata
from cellray.atlas.store import Atlas
from cellray.atlas.verify import verify
from cellray.atlas.write import append, ingest
from cellray.core.errors import CellrayError
from cellray.core.types import Span


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A small .h5ad of simulated counts."""
    path = tmp_path_factory.mktemp("source") / "cells.h5ad"
    simulate_anndata(Simulation(n_cells=300, n_genes=200, seed=3)).write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def remote(s3_server, source):
    """An atlas in a bucket, which no test changes."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.env.items():
            patch.setenv(name, value)
        return ingest([source], f"s3://{s3_server.bucket()}/some/prefix")


def test_an_atlas_in_a_bucket_equals_the_one_in_a_folder(s3, remote, source, tmp_path):
    local = ingest([source], tmp_path / "atlas")
    assert remote.digest == local.digest
    for span in (Span(0, 300), Span(17, 18), Span(120, 260)):
        ours, theirs = remote.read(span, obs=["cell_type"]), local.read(span, obs=["cell_type"])
        for name in ("data", "indices", "indptr", "cells"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
            assert getattr(ours, name).dtype == getattr(theirs, name).dtype
        np.testing.assert_array_equal(ours.obs["cell_type"], theirs.obs["cell_type"])
    verify(remote)


def test_describing_reads_sizes_from_the_bucket(s3, remote):
    document = describe(remote)
    bucket = urlsplit(remote.url).netloc
    listed = s3.client.list_objects_v2(Bucket=bucket)["Contents"]
    assert document["bytes"] == sum(item["Size"] for item in listed)
    assert document["cells"] == 300


def test_a_taken_prefix_is_kept_unless_told(s3, source):
    url = f"s3://{s3.bucket()}/a"
    first = ingest([source], url)
    with pytest.raises(CellrayError, match="overwrite"):
        ingest([source], url, seed=1)
    assert Atlas.open(url).digest == first.digest
    assert ingest([source], url, seed=1, overwrite=True).digest != first.digest


def test_a_failed_ingest_leaves_nothing_in_the_bucket(s3, source, tmp_path):
    bucket = s3.bucket()
    broken = anndata.read_h5ad(source)
    broken.X = broken.X.astype(np.float32)
    broken.X.data[-1] = 0.5
    broken.write_h5ad(tmp_path / "fractional.h5ad")
    with pytest.raises(CellrayError, match="count"):
        ingest([source, tmp_path / "fractional.h5ad"], f"s3://{bucket}/a")
    assert s3.keys(bucket) == []


def test_an_interrupted_ingest_leaves_nothing_that_opens_and_goes_on(
    s3, source, remote, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # what is done is noted under .cellray/ in the working folder
    bucket = s3.bucket()

    def interrupt(stage, done, total):
        if stage == "write":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest([source], f"s3://{bucket}/a", progress=interrupt)
    with pytest.raises(CellrayError, match="half-written"):
        Atlas.open(f"s3://{bucket}/a")
    stages = []
    done = ingest([source], f"s3://{bucket}/a", progress=lambda stage, *_: stages.append(stage))
    assert set(stages) == {"write"}
    assert done.digest == remote.digest
    assert not any("ingest-unfinished" in key for key in s3.keys(bucket))
    assert list((tmp_path / ".cellray" / "ingest").iterdir()) == []


def test_an_append_to_a_bucket_is_read_with_what_was_there(s3, source, tmp_path):
    url = f"s3://{s3.bucket()}/a"
    first = ingest([source], url)
    before = set(s3.keys(urlsplit(url).netloc))
    simulate_anndata(Simulation(n_cells=100, n_genes=200, seed=4)).write_h5ad(tmp_path / "b.h5ad")
    both = append([tmp_path / "b.h5ad"], url)
    assert both.part_cells == (300, 100)
    assert before < set(s3.keys(urlsplit(url).netloc))
    rows, old = both.read(Span(0, 400), obs=["cell_type"]), first.read(Span(0, 300))
    np.testing.assert_array_equal(rows.slice(0, 300).data, old.data)
    local = ingest([tmp_path / "b.h5ad"], tmp_path / "b")
    new = rows.slice(300, 400).to_scipy()
    assert (new != local.read(Span(0, 100)).to_scipy()).nnz == 0
    assert list(both.categories("cell_type")[rows.obs["cell_type"]]) == list(
        both.obs()["cell_type"]
    )


def test_a_half_written_atlas_is_named_as_such(s3):
    bucket = s3.bucket()
    s3.client.put_object(Bucket=bucket, Key="a/X/zarr.json", Body=b"{}")
    with pytest.raises(CellrayError, match="half-written"):
        Atlas.open(f"s3://{bucket}/a")


def test_a_bucket_that_does_not_exist_is_named(s3, source):
    with pytest.raises(CellrayError, match="bucket 'no-such-bucket' does not exist"):
        Atlas.open("s3://no-such-bucket/a")
    with pytest.raises(CellrayError, match="bucket 'no-such-bucket' does not exist"):
        ingest([source], "s3://no-such-bucket/a")


def test_wrong_credentials_are_named(s3, remote, source, monkeypatch):
    bucket = s3.bucket()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(CellrayError, match="credentials") as caught:
        Atlas.open(remote.url)
    assert "AWS_SECRET_ACCESS_KEY" in caught.value.mend
    assert "wrong" not in str(caught.value)
    with pytest.raises(CellrayError, match="credentials"):
        ingest([source], f"s3://{bucket}/b")


def test_a_server_that_does_not_answer_is_named(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://ann:s3cret@127.0.0.1:9")
    with pytest.raises(CellrayError, match="AWS_ENDPOINT_URL") as error:
        Atlas.open("s3://bucket/a")
    assert "s3cret" not in str(error.value)
