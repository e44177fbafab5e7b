"""What requests may hold, and what is refused with which status."""

import asyncio
import io
import json
import pickle
import time

import anndata
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy.sparse import csc_matrix, csr_matrix
from starlette.requests import ClientDisconnect

from cellray.serving import bodies
from cellray.serving.bodies import (
    H5AD,
    JSON,
    LINGERING,
    RequestError,
    hear_out,
    parse,
    taken,
    to_arrow,
)

GENES = ["CD3D", "MS4A1", "LYZ"]
COUNTS = np.array([[0, 2, 0], [1, 0, 300], [0, 0, 0]])


def document(**changed):
    return json.dumps({"genes": GENES, "counts": COUNTS.tolist()} | changed).encode()


def h5ad(tmp_path, matrix, **more):
    data = anndata.AnnData(
        matrix, pd.DataFrame(index=["a", "b", "c"]), pd.DataFrame(index=GENES), **more
    )
    data.write_h5ad(tmp_path / "cells.h5ad", compression="gzip")
    return (tmp_path / "cells.h5ad").read_bytes()


def refusal(body, kind=JSON, **how):
    with pytest.raises(RequestError) as caught:
        parse(body, kind, **how)
    return caught.value.status, str(caught.value)


@pytest.mark.parametrize(
    "rows",
    [
        COUNTS.tolist(),
        [{"MS4A1": 2}, {"LYZ": 300, "CD3D": 1}, {}],
        [[0, 2, 0], {"CD3D": 1, "LYZ": 300}, [0.0, 0.0, 0.0]],
    ],
    ids=["dense", "sparse", "both"],
)
def test_json_holds_counts(rows):
    cells = parse(document(counts=rows), "application/json; charset=utf-8")
    np.testing.assert_array_equal(cells.counts.toarray(), COUNTS)
    assert list(cells.genes) == GENES
    assert cells.names == ["0", "1", "2"]
    assert parse(document(cells=["x", "y", "z"]), JSON).names == ["x", "y", "z"]


@pytest.mark.parametrize("kind", [csr_matrix, csc_matrix, np.asarray])
def test_an_h5ad_holds_counts(tmp_path, kind):
    cells = parse(h5ad(tmp_path, kind(COUNTS.astype(np.float32))), H5AD)
    np.testing.assert_array_equal(cells.counts.toarray(), COUNTS)
    assert list(cells.genes) == GENES
    assert list(cells.names) == ["a", "b", "c"]


def test_a_layer_of_an_h5ad(tmp_path):
    layered = h5ad(tmp_path, csr_matrix(COUNTS / 2), layers={"counts": csr_matrix(COUNTS)})
    np.testing.assert_array_equal(parse(layered, H5AD, layer="counts").counts.toarray(), COUNTS)
    status, said = refusal(layered, H5AD)
    assert status == 422
    assert "layer 'counts' looks like counts" in said
    assert refusal(layered, H5AD, layer="count")[0] == 400


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"hello", "the body: Invalid JSON"),
        (b"[]", "the body: Input should be an object"),
        (document(genes=[]), "genes: List should have at least 1 item"),
        (document(counts=[]), "the request holds no cells"),
        (document(counts=[[1, 2]]), "counts.0 has 2 numbers for 3 genes"),
        (document(counts=[{"CD3D": 1, "CD3": 2}]), "gene 'CD3' is not among genes"),
        (document(counts=[[1, "x", 2]]), "counts.0"),
        (document(cells=["a"]), "1 names for 3 cells"),
        (document(gene_names=GENES), "gene_names: Extra inputs are not permitted"),
    ],
)
def test_json_that_cannot_be_read_is_named(body, said):
    status, found = refusal(body)
    assert status == 400
    assert said in found
    assert "\n" not in found


@pytest.mark.parametrize("body", [b"", b"hello", pickle.dumps(GENES), b"\x89HDF\r\n\x1a\n" + b"x"])
def test_what_is_no_h5ad_is_named(body, tmp_path):
    status, said = refusal(body, H5AD)
    assert status == 400
    assert "counts.h5ad" in said
    assert "/" not in said.replace("10x", "")  # no path of this machine


def test_other_kinds_are_refused():
    assert refusal(document(), "text/csv")[0] == 415
    assert refusal(pickle.dumps(GENES), "application/python-pickle")[0] == 415


def test_too_many_cells_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(bodies, "MAX_CELLS", 2)
    assert refusal(document())[0] == 413
    assert refusal(h5ad(tmp_path, COUNTS.astype(np.float32)), H5AD)[0] == 413


def test_a_small_body_may_not_unpack_to_a_large_one(tmp_path):
    body = h5ad(tmp_path, csr_matrix(COUNTS))
    with io.BytesIO(body) as held:
        with h5py.File(held, "r+") as file:
            file.create_dataset("uns/zeros", (1 << 31,), "u1", chunks=(1 << 20,), compression=9)
        large = held.getvalue()
    assert len(large) < 1 << 20
    status, said = refusal(large, H5AD)
    assert status == 413
    assert "2,048 MiB" in said


def link_out(file, secret):
    file["uns/other"] = h5py.ExternalLink(str(secret), "/X")


def read_out(file, secret):
    file.create_dataset("uns/other", (8,), "u1", external=[(str(secret), 0, 8)])


def map_out(file, secret):
    layout = h5py.VirtualLayout((3,), "u1")
    layout[:] = h5py.VirtualSource(str(secret), "X", (3,))
    file.create_virtual_dataset("uns/other", layout)


@pytest.mark.parametrize("how", [link_out, read_out, map_out])
def test_a_file_may_not_read_others_of_the_server(tmp_path, how):
    h5ad(tmp_path, csr_matrix(COUNTS))
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        how(file, tmp_path / "secret")
    status, said = refusal((tmp_path / "cells.h5ad").read_bytes(), H5AD)
    assert status == 400
    assert "refers to other files" in said


def test_a_body_is_taken_up_to_the_limit():
    async def parts():
        for _ in range(3):
            yield b"1234"

    assert asyncio.run(taken(parts(), "12", 12)) == b"1234" * 3
    for declared, limit in (("13", 12), (None, 11), ("4", 11)):
        with pytest.raises(RequestError) as caught:
            asyncio.run(taken(parts(), declared, limit))
        assert caught.value.status == 413


@pytest.mark.parametrize(
    ("sent", "heard"), [(LINGERING // 2, LINGERING // 2), (4 * LINGERING, LINGERING)]
)
def test_a_refused_body_is_heard_out_but_not_for_ever(sent, heard):
    """Who finds the connection closed while it sends does not see the answer."""
    part, seen = bytes(1 << 18), 0

    async def parts():
        nonlocal seen
        while seen < sent:
            seen += len(part)
            yield part

    async def refused():
        body = parts()
        with pytest.raises(RequestError, match="larger than 1 MiB"):
            await taken(body, None, 1 << 20)
        first = seen
        await hear_out(body)
        return first

    first = asyncio.run(refused())
    assert first == (1 << 20) + len(part)
    assert seen == min(sent, first + heard)


def test_a_slow_or_gone_sender_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(bodies, "LINGERING_SECONDS", 0.05)

    async def slow():
        while True:
            yield b"x"
            await asyncio.sleep(0.01)

    async def gone():
        yield b"x"
        raise ClientDisconnect

    began = time.monotonic()
    asyncio.run(hear_out(slow()))
    asyncio.run(hear_out(gone()))
    assert time.monotonic() - began < 2


def test_embeddings_as_arrow():
    z = np.arange(6, dtype=np.float32).reshape(2, 3)
    table = pa.ipc.open_stream(to_arrow(z, ["a", "b"], {"model": "models:/m/1"})).read_all()
    assert table["cell"].to_pylist() == ["a", "b"]
    np.testing.assert_array_equal(np.stack(table["embedding"].to_numpy()), z)
    assert table.schema.metadata[b"model"] == b"models:/m/1"
