"""Small counts on disk."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix, issparse, random_array


def random_counts(n_cells, n_genes, *, seed=0, density=0.2, most=300):
    """Random whole counts, CSR, float32."""
    rng = np.random.default_rng(seed)
    matrix = csr_matrix(random_array((n_cells, n_genes), density=density, rng=rng, format="csr"))
    matrix.data = rng.integers(1, most, matrix.nnz).astype(np.float32)
    return matrix


@pytest.fixture(scope="session")
def counted():
    """Make an AnnData of random counts with a category, a number and a truth value."""

    def make(n_cells=40, n_genes=30, *, seed=0, genes=None, **settings):
        rng = np.random.default_rng(seed)
        names = [f"g{i}" for i in range(n_genes)] if genes is None else list(genes)
        obs = {
            "kind": pd.Categorical(rng.choice(["a", "b", "c"], n_cells)),
            "score": rng.random(n_cells),
            "passed": rng.random(n_cells) < 0.5,
        }
        return anndata.AnnData(
            random_counts(n_cells, len(names), seed=seed, **settings),
            obs=pd.DataFrame(obs, index=[f"cell{i}" for i in range(n_cells)]),
            var=pd.DataFrame({"length": np.arange(len(names))}, index=names),
        )

    return make


@pytest.fixture(scope="session")
def together():
    """Put chunks, sparse or dense, together again as one array."""

    def add_up(chunks, n_cells, n_columns):
        total = np.zeros((n_cells, n_columns))
        for chunk in chunks:
            assert (np.diff(chunk.rows) > 0).all()
            values = chunk.counts
            if issparse(values):
                assert values.has_canonical_format
                values = values.toarray()
            total[chunk.rows] += values
        return total

    return add_up


@pytest.fixture(scope="session")
def whole(together):
    """Read all counts of a source, which must be unsigned, in chunks of about so many elements."""

    def read(source, elements):
        chunks = list(source.chunks(elements))
        assert {chunk.counts.dtype.kind for chunk in chunks} <= {"u"}
        return together(chunks, source.n_cells, len(source.genes))

    return read


@pytest.fixture
def h5ad(tmp_path):
    """Write an AnnData and give its path."""

    def write(data, name="a.h5ad", **settings) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data.write_h5ad(path, **settings)
        return path

    return write


@pytest.fixture
def tenx_h5(tmp_path):
    """Write a 10x .h5 of version 3 and give its path."""
    import h5py

    def write(counts, features, name="filtered.h5") -> Path:
        path = tmp_path / name
        with h5py.File(path, "w") as file:
            group = file.create_group("matrix")
            group["barcodes"] = np.array([f"AAAC{i}-1" for i in range(counts.shape[0])], "S")
            group["data"] = counts.data.astype(np.int32)
            group["indices"] = counts.indices.astype(np.int64)
            group["indptr"] = counts.indptr.astype(np.int64)
            group["shape"] = np.array(counts.shape[::-1], np.int32)
            for column, values in features.items():
                group[f"features/{column}"] = np.array(values, "S")
        return path

    return write


@pytest.fixture
def mtx(tmp_path):
    """Write a 10x mtx folder and give its path."""
    import gzip

    def write(counts, features, name="folder", *, packed=True, shuffle=False) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        cells, genes = counts.nonzero()
        order = np.random.default_rng(0).permutation(len(cells)) if shuffle else slice(None)
        values = np.asarray(counts[cells, genes]).ravel().astype(int)
        lines = [f"{g + 1} {c + 1} {v}" for g, c, v in zip(genes, cells, values, strict=True)]
        lines = list(np.array(lines)[order])
        head = "%%MatrixMarket matrix coordinate integer general"
        size = f"{counts.shape[1]} {counts.shape[0]} {len(lines)}"
        texts = {
            "matrix.mtx": [head, '%metadata_json: {"format_version": 2}', size, *lines],
            "features.tsv" if "feature_type" in features else "genes.tsv": [
                "\t".join(row) for row in zip(*features.values(), strict=True)
            ],
            "barcodes.tsv": [f"AAAC{i}-1" for i in range(counts.shape[0])],
        }
        for file, text in texts.items():
            data = "".join(f"{line}\n" for line in text)
            if packed:
                (folder / f"{file}.gz").write_bytes(gzip.compress(data.encode()))
            else:
                (folder / file).write_text(data)
        return folder

    return write


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """Keep what goes to ``s3://bucket/`` in a folder, written object by object."""
    from obstore.store import LocalStore

    from cellray.atlas import contents, manifest, passes, staging, storage

    folder = tmp_path / "bucket"

    def open_folder(url, *, create=False):
        place = folder / url.removeprefix("s3://bucket/")
        return LocalStore(place, mkdir=True, automatic_cleanup=True)

    monkeypatch.chdir(tmp_path)
    for module in (staging, storage, manifest, passes, contents):
        monkeypatch.setattr(module, "object_store", open_folder)
    return folder


@pytest.fixture(scope="session")
def files():
    """Read all files below a folder."""

    def read(folder):
        # "#" is in the names of objects that a thread is still writing.
        found = [path for path in folder.rglob("*") if path.is_file() and "#" not in path.name]
        return {path: path.read_bytes() for path in found}

    return read
