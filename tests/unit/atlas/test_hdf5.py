import h5py
import numpy as np
import pytest

from cellray.atlas.hdf5 import flat_reader, h5_file, threads
from cellray.core.errors import CellrayError

LAYOUTS = {
    "contiguous": {},
    "chunked": {"chunks": (100,)},
    "gzip": {"chunks": (100,), "compression": "gzip"},
    "gzip and shuffle": {"chunks": (100,), "compression": "gzip", "shuffle": True},
    "shuffle": {"chunks": (100,), "shuffle": True},
    "lzf": {"chunks": (100,), "compression": "lzf"},
    "checksummed": {"chunks": (100,), "fletcher32": True},
    "one chunk": {"chunks": (1_037,), "compression": "gzip"},
}


@pytest.fixture
def stored(tmp_path):
    """Write an array and give its file."""

    def write(values, name="a.h5", **layout):
        path = tmp_path / name
        with h5py.File(path, "w") as file:
            file.create_dataset("values", data=values, **layout)
        return path

    return write


def check(path, ranges):
    with h5_file(path) as file, threads() as pool:
        read = flat_reader(file["values"], pool)
        for start, stop in ranges:
            found, expected = read(start, stop), file["values"][start:stop]
            assert found.dtype == expected.dtype.newbyteorder("=")
            assert found.tobytes() == expected.astype(found.dtype).tobytes()
        return read


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<i4", ">i8", "u1", "<u2", "<f2", "?"])
def test_every_layout_reads_as_h5py_reads_it(stored, layout, dtype):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 250, 1_037).astype(dtype)
    path = stored(values, **LAYOUTS[layout])
    check(path, [(0, 1_037), (0, 0), (0, 1), (99, 101), (250, 251), (123, 1_036), (1_036, 1_037)])


def test_what_hdf5_need_not_read_is_read_past_it(stored, monkeypatch):
    def refuse(*_):
        raise AssertionError

    past = [name for name in LAYOUTS if name not in {"lzf", "checksummed"}]
    paths = {name: stored(np.arange(1_037), f"{name}.h5", **LAYOUTS[name]) for name in LAYOUTS}
    monkeypatch.setattr(h5py.Dataset, "__getitem__", refuse)
    for name, path in paths.items():
        with h5_file(path) as file, threads() as pool:
            read = flat_reader(file["values"], pool)
            if name in past:
                np.testing.assert_array_equal(read(5, 1_000), np.arange(5, 1_000))
            else:
                with pytest.raises(AssertionError):
                    read(5, 1_000)


def test_chunks_that_lie_far_apart_or_out_of_order_are_found(tmp_path):
    path = tmp_path / "a.h5"
    values = np.random.default_rng(0).integers(0, 9, 5_000)
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("values", (5_000,), "i8", chunks=(100,), compression="gzip")
        for number in np.random.default_rng(1).permutation(50):
            dataset[number * 100 : number * 100 + 100] = values[number * 100 : number * 100 + 100]
            file.create_dataset(f"between{number}", data=np.zeros(3_000))
    check(path, [(0, 5_000), (150, 4_901)])


def test_chunks_that_were_never_written_hold_the_fill_value(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("values", (500,), "i4", chunks=(100,), fillvalue=7)
        dataset[100:200] = 3
    check(path, [(0, 500)])


def test_a_chunk_stored_without_its_filter_is_read(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("values", (200,), "i4", chunks=(100,), compression="gzip")
        dataset[:100] = 3
        dataset.id.write_direct_chunk((100,), np.arange(100, dtype="i4").tobytes(), filter_mask=1)
    check(path, [(0, 200)])


def test_tiny_and_empty_arrays_are_read(stored, tmp_path):
    check(stored(np.zeros(0)), [(0, 0)])
    path = tmp_path / "compact.h5"
    with h5py.File(path, "w") as file:
        create = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        create.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple((4,))
        made = h5py.h5d.create(file.id, b"values", h5py.h5t.NATIVE_INT32, space, create)
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.arange(4, dtype=np.int32))
    check(path, [(0, 4), (1, 3)])


def test_a_file_with_a_block_of_its_users_is_read(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", userblock_size=512) as file:
        file["values"] = np.arange(1_000)
    check(path, [(0, 1_000)])


def test_damaged_chunks_are_named(stored):
    path = stored(np.arange(1_000), **LAYOUTS["gzip"])
    with h5py.File(path) as file:
        place = file["values"].id.get_chunk_info(4).byte_offset
    data = bytearray(path.read_bytes())
    data[place : place + 20] = bytes(20)
    path.write_bytes(data)
    with (
        pytest.raises(CellrayError, match=r"a\.h5 is damaged"),
        h5_file(path) as file,
        threads() as pool,
    ):
        flat_reader(file["values"], pool)(0, 1_000)


def test_what_was_cut_off_while_reading_is_named(stored):
    path = stored(np.arange(100_000))

    def read():
        with h5_file(path) as file, threads() as pool:
            read = flat_reader(file["values"], pool)
            with path.open("r+b") as raw:
                raw.truncate(400_000)
            read(0, 100_000)

    with pytest.raises(CellrayError, match=r"a\.h5 is cut short"):
        read()
