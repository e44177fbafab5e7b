"""Rows, spans and ingest hold for any matrix."""

import tempfile
from itertools import pairwise
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.sparse import csc_matrix, csr_matrix, vstack

import cellray.atlas.passes as module
from cellray.atlas.splits import TRAIN, VALIDATION, SplitSpec, split_cells
from cellray.atlas.write import ingest
from cellray.core.types import Rows, Span

matrices = arrays(
    np.uint32,
    array_shapes(min_dims=2, max_dims=2, max_side=12),
    elements=st.one_of(st.just(0), st.integers(0, 300), st.sampled_from([65_536, 2**32 - 1])),
    fill=st.just(0),
)
slow = settings(max_examples=25, deadline=None)


def rows_of(dense, first=0):
    matrix = csr_matrix(dense)
    return Rows(
        matrix.data,
        matrix.indices.astype(np.uint16),
        matrix.indptr.astype(np.int64),
        dense.shape[1],
        np.arange(first, first + len(dense)),
        {"row": np.arange(first, first + len(dense), dtype=np.int32)},
    )


@given(matrices, st.data())
def test_taking_rows_equals_scipy(dense, data):
    chosen = data.draw(st.lists(st.integers(0, len(dense) - 1), max_size=20))
    taken = rows_of(dense).take(np.array(chosen, np.int64))
    np.testing.assert_array_equal(taken.to_scipy().toarray(), dense[chosen])
    assert list(taken.cells) == list(taken.obs["row"]) == chosen
    assert taken.data.dtype == dense.dtype
    assert taken.indices.dtype == np.uint16


@given(matrices, st.data())
def test_joining_rows_equals_scipy(dense, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(dense)), max_size=4)))
    edges = [0, *cuts, len(dense)]
    parts = [dense[a:b] for a, b in pairwise(edges)]
    joined = Rows.concat([rows_of(p, a) for p, a in zip(parts, edges[:-1], strict=True)])
    np.testing.assert_array_equal(
        joined.to_scipy().toarray(), vstack([csr_matrix(part) for part in parts]).toarray()
    )
    assert list(joined.cells) == list(joined.obs["row"]) == list(range(len(dense)))


@slow
@given(
    st.lists(matrices, min_size=1, max_size=3),
    st.sampled_from([csr_matrix, csc_matrix, np.asarray]),
    st.integers(1, 40),
    st.integers(0, 5),
    st.data(),
)
def test_ingest_gives_back_every_count(dense, encoding, elements, seed, data):
    n_genes = min(part.shape[1] for part in dense)
    dense[0].flat[0] = 1  # an atlas without any count is refused
    order = [data.draw(st.permutations(range(part.shape[1]))) for part in dense[1:]]
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for number, part in enumerate(dense):
            names = np.array([f"g{i}" for i in range(part.shape[1])])
            columns = np.arange(part.shape[1]) if not number else np.array(order[number - 1])
            paths.append(Path(folder, f"{number}.h5ad"))
            anndata.AnnData(
                encoding(part[:, columns].astype(np.float64)),
                var=pd.DataFrame(index=names[columns]),
                obs=pd.DataFrame(index=[f"c{number}-{i}" for i in range(len(part))]),
            ).write_h5ad(paths[-1])
        chosen, module.chunk_elements = module.chunk_elements, lambda total, budget: elements
        try:
            atlas = ingest(paths, Path(folder, "out"), seed=seed)
        finally:
            module.chunk_elements = chosen
        joined = np.concatenate([part[:, :n_genes] for part in dense])
        assert list(atlas.genes) == [f"g{i}" for i in range(n_genes)]
        obs = atlas.obs()
        starts = np.cumsum([0, *(len(part) for part in dense)])[:-1]
        place = starts[obs["cellray_source"].astype(int)] + obs["cellray_row"].to_numpy()
        assert sorted(place) == list(range(len(joined)))
        rows = atlas.read(Span(0, len(joined)))
        np.testing.assert_array_equal(rows.to_scipy().toarray(), joined[place])
        assert rows.data.min() > 0
        some = np.array(data.draw(st.lists(st.integers(0, len(joined) - 1), max_size=8)), np.int64)
        read = atlas.read_cells(some)
        np.testing.assert_array_equal(read.to_scipy().toarray(), joined[place][some])


@given(
    st.lists(st.sampled_from("abcd"), min_size=2, max_size=60).filter(lambda v: len(set(v)) > 1),
    st.floats(0.001, 0.999),
    st.integers(0, 1_000),
)
def test_splits_partition_cells_and_keep_groups_whole(donors, validation, seed):
    column = pd.Series(donors)
    for by in (None, "donor"):
        spec = SplitSpec(by=by, validation=validation, seed=seed)
        sides = split_cells(column if by else None, [len(donors)], spec)
        assert set(sides) == {TRAIN, VALIDATION}
    assert not set(column[sides == TRAIN]) & set(column[sides == VALIDATION])
