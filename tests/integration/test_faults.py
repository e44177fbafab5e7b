"""An object store that fails: what passes is outlasted, what does not is named."""

import json
import re
import shutil
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from tests.integration.proxy import Fault

from cellray.atlas import storage
from cellray.atlas.simulate import Simulation, simulate
from cellray.atlas.store import Atlas
from cellray.atlas.traffic import TRAFFIC
from cellray.atlas.write import ingest
from cellray.cli import main
from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe
from cellray.core.types import Span
from cellray.train.run import pretrain

CELLS = 3_000


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "cells.h5ad"
    simulate(path, Simulation(n_cells=CELLS, n_genes=200, seed=3))
    return path


@pytest.fixture(scope="module")
def local(source):
    return ingest([source], source.parent / "atlas")


@pytest.fixture(scope="module")
def remote(s3_server, source):
    """The URL of the same atlas in a bucket, which no test changes."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.env.items():
            patch.setenv(name, value)
        return ingest([source], f"s3://{s3_server.bucket()}/atlas").url


def assert_same(ours, theirs):
    for name in ("data", "indices", "indptr", "cells"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    np.testing.assert_array_equal(ours.obs["cell_type"], theirs.obs["cell_type"])


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", status=500, times=3),
        Fault("status", status=503, times=3),
        Fault("reset", times=3),
        Fault("truncate", times=3),
        Fault("delay", seconds=1.0),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status if fault.kind == 'status' else fault.seconds}",
)
@pytest.mark.parametrize("key", ["X/data", "X/indices", "X/indptr", "obs/"])
def test_what_passes_is_outlasted(fault, key, s3_proxy, remote, local):
    atlas = Atlas.open(remote)
    s3_proxy.faults.append(Fault(fault.kind, key, fault.times, fault.status, fault.seconds))
    before = len(s3_proxy.gets())
    TRAFFIC.take()
    assert_same(
        atlas.read(Span(700, 1_900), obs=["cell_type"]),
        local.read(Span(700, 1_900), obs=["cell_type"]),
    )
    assert s3_proxy.hits() == fault.times
    counted = TRAFFIC.take()
    ranges = [one for one in s3_proxy.gets()[before:] if one.range]  # zarr asks for whole objects
    assert counted["requests"] == len(ranges)
    assert counted["retries"] == sum(
        one.fault is not None and one.fault.kind != "delay" for one in ranges
    )
    assert counted["bytes"] > 0
    if fault.kind != "delay":
        last = max(i for i, request in enumerate(s3_proxy.requests) if request.fault)
        path = s3_proxy.requests[last].path
        assert path in {request.path for request in s3_proxy.requests[last + 1 :]}


@pytest.mark.slow
def test_an_answer_that_does_not_come_is_asked_for_again(s3_proxy, remote, local):
    atlas = Atlas.open(remote)
    s3_proxy.faults.append(Fault("delay", "X/data", seconds=35.0))
    assert np.array_equal(atlas.read(Span(0, 9)).data, local.read(Span(0, 9)).data)
    (late,) = (request for request in s3_proxy.requests if request.fault)
    assert [r.range for r in s3_proxy.gets("X/data")].count(late.range) == 2


def test_a_store_that_goes_on_failing_is_named_in_one_line(s3_proxy, remote, monkeypatch):
    monkeypatch.setattr(storage, "PATIENCE", 2.0)
    atlas = Atlas.open(remote)
    s3_proxy.faults.append(Fault("status", "X/data", times=1_000))
    began = time.monotonic()
    with pytest.raises(CellrayError, match=r"atlas.*does not answer.*AWS_ENDPOINT_URL") as caught:
        atlas.read(Span(0, 100))
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 60
    assert 3 < s3_proxy.hits() < 100


def test_bodies_that_are_always_cut_short_are_named(s3_proxy, remote, monkeypatch):
    monkeypatch.setattr(storage, "PATIENCE", 0.5)
    atlas = Atlas.open(remote)
    s3_proxy.faults.append(Fault("truncate", "X/indices", times=1_000))
    with pytest.raises(CellrayError, match="atlas"):
        atlas.read(Span(0, 100))
    assert s3_proxy.hits() > 1


@pytest.mark.parametrize("start", [0, 700, CELLS - 1_024])
def test_a_slab_takes_four_requests_at_most_once_the_index_is_known(s3_proxy, remote, start):
    atlas = Atlas.open(remote)
    atlas.read(Span(1_500, 1_501))
    before = len(s3_proxy.requests)
    rows = atlas.read(Span(start, start + 1_024))
    requests = s3_proxy.requests[before:]
    assert len(rows.data) > 1_024
    assert 2 <= len(requests) <= 4
    assert all(request.method == "GET" and "/X/" in request.path for request in requests)
    assert atlas.cost(np.arange(start, start + 1_024)).requests <= 4


@pytest.fixture
def copy(local, tmp_path):
    """A copy of the atlas to be damaged."""
    return Path(shutil.copytree(local.url, tmp_path / "copy"))


def layout_of(folder, array):
    """Read from the metadata how many elements a chunk has, and how many chunks a shard."""
    meta = json.loads((folder / array / "zarr.json").read_text())
    (chunk,) = meta["codecs"][0]["configuration"]["chunk_shape"]
    (shard,) = meta["chunk_grid"]["configuration"]["chunk_shape"]
    return chunk, shard // chunk


def flip(folder, array, number):
    """Flip a bit in the middle of a chunk of the first shard, found by Zarr's specification."""
    file = folder / array / "c" / "0"
    shard = bytearray(file.read_bytes())
    chunks = layout_of(folder, array)[1]
    index = np.frombuffer(shard[-16 * chunks - 4 : -4], "<u8").reshape(chunks, 2)
    offset, size = index[number].tolist()
    shard[offset + size // 2] ^= 0x10
    file.write_bytes(shard)


@pytest.mark.parametrize("array", ["data", "indices"])
def test_a_damaged_chunk_is_named_with_its_cells(copy, local, array):
    flip(copy, f"X/{array}", 3)
    with pytest.raises(CellrayError) as caught:
        Atlas.open(str(copy)).read(Span(0, CELLS))
    assert f"{copy}: X/{array}: chunk 3" in str(caught.value)
    first, last = map(int, re.findall(r"cells (\d+) to (\d+)", str(caught.value))[0])
    ends = local.read(Span(0, CELLS)).indptr
    chunk, _ = layout_of(copy, f"X/{array}")
    held = (ends[1:] > 3 * chunk) & (ends[:-1] < 4 * chunk)
    assert np.flatnonzero(held)[[0, -1]].tolist() == [first, last]
    atlas = Atlas.open(str(copy))
    assert len(atlas.read(Span(0, first))) == first
    assert len(atlas.read(Span(last + 1, CELLS))) == CELLS - last - 1


def test_damaged_row_pointers_are_named_with_their_cells(copy):
    flip(copy, "X/indptr", 0)
    with pytest.raises(CellrayError, match=r"copy: X/indptr: chunk 0.*cells 0 to \d+"):
        Atlas.open(str(copy)).read(Span(100, 110))


@pytest.mark.parametrize("array", ["X/data", "X/indices", "X/indptr"])
def test_a_damaged_index_of_a_shard_is_named(copy, array):
    file = copy / array / "c" / "0"
    shard = bytearray(file.read_bytes())
    shard[-20] ^= 0x01
    file.write_bytes(shard)
    with pytest.raises(CellrayError, match=rf"{array}.*index of shard 0, .* is corrupt"):
        Atlas.open(str(copy)).read(Span(0, 10))


def test_a_damaged_chunk_ends_a_run_with_one_line(ray_local, copy, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flip(copy, "X/data", 7)  # far from where a run looks before it starts
    recipe = {
        "encoder": {"name": "mlp", "widths": [8], "dim": 4},
        "data": {"batch_size": 64, "validation": 0.0},
        "train": {"epochs": 1, "max_failures": 0},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    words = ["--atlas", str(copy), "--recipe", "recipe.yaml", "--name", "never"]
    assert main(["pretrain", *words]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "X/data: chunk 7" in line]
    assert len(lines) == 1
    assert re.search(r"copy: X/data: chunk 7, which holds cells \d+ to \d+, is corrupt", lines[0])


def test_a_damaged_object_in_a_bucket_is_named(s3, remote, local):
    bucket = s3.bucket()
    source = urlsplit(remote).netloc
    for key in s3.keys(source):
        body = s3.client.get_object(Bucket=source, Key=key)["Body"].read()
        if key.endswith("X/data/c/0"):
            body = body[:100] + bytes([body[100] ^ 0x10]) + body[101:]
        s3.client.put_object(Bucket=bucket, Key=key, Body=body)
    atlas = Atlas.open(f"s3://{bucket}/atlas")
    with pytest.raises(CellrayError, match=rf"s3://{bucket}/atlas: X/data: chunk 0.*cells 0 to"):
        atlas.read(Span(0, 10))
    rows = atlas.read(Span(1_000, 1_100), obs=["cell_type"])
    assert_same(rows, local.read(Span(1_000, 1_100), obs=["cell_type"]))


def test_a_shard_that_is_gone_is_named(copy):
    (copy / "X" / "indices" / "c" / "0").unlink()
    with pytest.raises(CellrayError, match=r"X/indices.*shard 0, .* is gone"):
        Atlas.open(str(copy)).read(Span(0, 10))


@pytest.mark.parametrize("key", ["X/data/c", "X/indptr/c"])
def test_what_may_be_listed_but_not_read_stops_a_run_before_it_starts(
    key, s3_proxy, remote, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    s3_proxy.faults.append(Fault("status", key, times=1_000, status=403))
    with pytest.raises(CellrayError, match="refuses these credentials"):
        Atlas.open(remote).probe()
    recipe = Recipe.of({"data": {"batch_size": 64, "validation": 0.1}})
    began = time.monotonic()
    with pytest.raises(CellrayError, match="refuses these credentials"):
        pretrain(recipe, remote, "never")
    assert time.monotonic() - began < 20
    assert not list(tmp_path.iterdir()), "a run was begun"


def test_a_container_that_may_be_listed_but_not_read_is_named(s3_proxy, remote):
    s3_proxy.faults.append(Fault("status", "zarr.json", times=1_000, status=403))
    with pytest.raises(CellrayError, match="refuses these credentials"):
        Atlas.open(remote)
