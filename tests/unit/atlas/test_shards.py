"""Shards against zarr's own reader and writer."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from cellray.atlas.journal import Journal
from cellray.atlas.shards import (
    CRC_BYTES,
    DamagedError,
    Layout,
    ShardReader,
    checksum,
    encode_chunk,
    join_chunks,
)
from cellray.atlas.storage import fetcher, object_store
from cellray.atlas.stream import Stream


def reader(folder, path="a"):
    meta = json.loads(Path(folder, path, "zarr.json").read_text())
    return ShardReader(Layout.of(path, meta), fetcher(str(folder)))


def decoded(found, chunks):
    out = np.empty((len(chunks), found.layout.chunk), found.layout.dtype)
    for run in found.runs(np.asarray(chunks), gap=0):
        for number, packed in zip(run.tolist(), found.fetch_run(run), strict=True):
            found.decode(number, packed, out[list(chunks).index(number)])
    return out


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64, np.float32])
@pytest.mark.parametrize("size", [1, 99, 100, 101, 400, 1234])
def test_what_zarr_writes_is_read(tmp_path, dtype, size):
    values = np.random.default_rng(size).integers(1, 100, size).astype(dtype)
    array = zarr.create_array(
        tmp_path / "a",
        shape=(size,),
        dtype=dtype,
        chunks=(100,),
        shards=(400,),
        compressors=[BloscCodec(cname="lz4", shuffle="shuffle"), Crc32cCodec()],
    )
    array[:] = values
    found = reader(tmp_path)
    assert (found.layout.size, found.layout.chunk, found.layout.chunks_per_shard) == (size, 100, 4)
    chunks = list(range(-(-size // 100)))
    np.testing.assert_array_equal(decoded(found, chunks).reshape(-1)[:size], values)
    np.testing.assert_array_equal(
        decoded(found, chunks[-1:])[0, : (size - 1) % 100 + 1], values[-((size - 1) % 100 + 1) :]
    )


def stream(folder, shape, dtype, *, rows=10, declared=None):
    with ThreadPoolExecutor(2) as pool:
        folder.mkdir(exist_ok=True)
        yield Stream(
            object_store(str(folder)),
            "a",
            shape=shape,
            dtype=np.dtype(dtype),
            declared=None if declared is None else np.dtype(declared),
            rows=rows,
            pool=pool,
            journal=Journal(folder / "journal"),
        )


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr")
@pytest.mark.parametrize("shape", [(1,), (9,), (10,), (11,), (5_000,), (1_284, 3), (2, 7)])
def test_what_is_written_zarr_reads(tmp_path, shape):
    values = np.random.default_rng(0).integers(0, 60_000, shape).astype(np.uint16)
    digests = set()
    for step in (1, 7, 10_000_000):
        folder = tmp_path / str(step)
        for out in stream(folder, shape, np.uint16, declared=np.int32):
            flat = values.reshape(-1)
            for start in range(0, flat.size, step if step > 1 else max(1, flat.size // 50)):
                size = step if step > 1 else max(1, flat.size // 50)
                out.append(flat[start : start + size])
            digests.add(out.close())
        array = zarr.open_array(folder / "a", mode="r")
        assert array.dtype == np.int32
        np.testing.assert_array_equal(array[:], values)
        found = reader(folder)
        assert found.layout.dtype == np.uint16
        chunks = list(range(-(-flat.size // found.layout.chunk)))
        np.testing.assert_array_equal(decoded(found, chunks).reshape(-1)[: flat.size], flat)
    assert len(digests) == 1  # it does not depend on how the values came


def test_too_few_values_are_a_mistake_of_ours(tmp_path):
    for out in stream(tmp_path / "s", (20,), np.uint8):
        out.append(np.zeros(19, np.uint8))
        with pytest.raises(RuntimeError, match="19 of 20"):
            out.close()


def test_a_run_is_one_request_and_an_index_is_fetched_once(tmp_path):
    values = np.arange(3_000, dtype=np.uint16)
    for out in stream(tmp_path / "s", (3_000,), np.uint16):
        out.append(values)
        out.close()
    plain, asked = fetcher(str(tmp_path / "s")), []

    def counted(path, start, end):
        asked.append((path, start < 0))
        return plain(path, start, end)

    meta = json.loads((tmp_path / "s/a/zarr.json").read_text())
    found = ShardReader(Layout.of("a", meta), counted)
    for _ in range(2):
        (run,) = found.runs(np.arange(3, 9), gap=0)
        assert len(found.fetch_run(run)) == 6
    assert asked == [("a/c/0", True), ("a/c/0", False), ("a/c/0", False)]
    both = found.runs(np.array([126, 127, 128, 130]), gap=0)
    assert [run.tolist() for run in both] == [[126, 127], [128], [130]]  # a shard has 128
    near = found.runs(np.array([126, 127, 128, 130]), gap=1)
    assert [run.tolist() for run in near] == [[126, 127], [128, 130]]


@pytest.mark.parametrize("place", [0, 20, -1])
def test_any_flipped_byte_of_a_chunk_is_found(tmp_path, place):
    for out in stream(tmp_path / "s", (10,), np.uint16):
        out.append(np.arange(10, dtype=np.uint16))
        out.close()
    packed = bytearray(encode_chunk(np.arange(10, dtype=np.uint16)))
    packed[place] ^= 1
    with pytest.raises(DamagedError):
        reader(tmp_path / "s").decode(0, memoryview(packed), np.empty(10, np.uint16))


def sealed(body):
    """Close bytes with their checksum."""
    return body + checksum(body).to_bytes(CRC_BYTES, "little")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("none", ""),
        ("absent", "a chunk of shard 0.*gone"),
        ("far", "the index of shard 0.*corrupt"),
        ("large", "the index of shard 0.*corrupt"),
        ("short", "chunk 0.*corrupt"),
        ("false sizes", "chunk 0.*corrupt"),
    ],
)
def test_what_asks_for_the_impossible_is_refused_though_its_checksum_fits(tmp_path, spoil, said):
    values = np.arange(20, dtype=np.uint16)
    for out in stream(tmp_path / "s", (20,), np.uint16):
        out.append(values)
        out.close()
    first = encode_chunk(values[: 5 if spoil == "short" else 10])
    if spoil == "false sizes":
        first = sealed(first[:12] + (1 << 20).to_bytes(4, "little") + first[16:-CRC_BYTES])
    body = join_chunks([first, encode_chunk(values[10:])], 2)
    far = (1 << 50).to_bytes(8, "little")
    entry = {"absent": b"\xff" * 16, "far": far, "large": bytes(8) + far}.get(spoil, b"")
    cut = len(body) - 2 * 16 - CRC_BYTES
    index = entry + body[cut + len(entry) : -CRC_BYTES]
    (tmp_path / "s/a/c/0").write_bytes(body[:cut] + sealed(index))
    found = reader(tmp_path / "s")
    if not said:
        np.testing.assert_array_equal(decoded(found, [0, 1]).reshape(-1), values)
        return
    with pytest.raises(DamagedError, match=said):
        decoded(found, [0, 1])
