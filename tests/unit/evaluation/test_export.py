"""Where embeddings are written: what is refused, in what order, whole or not at all."""

import errno

import numpy as np
import pandas as pd
import pytest

from cellray.core.errors import CellrayError
from cellray.evaluation.export import Target, source_order, whole_file
from cellray.evaluation.write import prepare


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cells.csv", "name it .parquet or .h5ad"),
        ("cells", "name it .parquet or .h5ad"),
        ("folder.h5ad", "is a folder"),
        ("file/cells.h5ad", "is a file, not a folder"),
        ("file/deep/cells.h5ad", "is a file, not a folder"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_any_work(tmp_path, name, message):
    (tmp_path / "folder.h5ad").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(CellrayError, match=message):
        Target.of(tmp_path / name)


def test_a_url_is_refused():
    with pytest.raises(CellrayError, match="give a local file"):
        Target.of("s3://bucket/cells.parquet")


@pytest.mark.parametrize("key", ["", "a/b", "..", ".hidden", "a b"])
def test_a_key_that_obsm_cannot_have_is_refused_first(key):
    with pytest.raises(CellrayError, match="cannot name embeddings in obsm"):
        prepare("none.zarr", "models:/none", out="z.zarr", key=key)


def test_checking_a_target_makes_nothing(tmp_path):
    assert Target.of(tmp_path / "new" / "cells.parquet").kind == "parquet"
    assert Target.of(str(tmp_path / "cells.h5ad")).kind == "h5ad"
    assert not list(tmp_path.iterdir())


def test_cells_go_back_to_the_order_of_their_sources():
    sources = pd.Categorical(["b", "a", "b", "a", "b"], categories=["b", "a"])
    obs = pd.DataFrame({"cellray_source": sources, "cellray_row": [2, 1, 0, 0, 1]})
    assert source_order(obs).tolist() == [2, 4, 0, 3, 1]


def test_a_file_is_replaced_only_when_the_new_one_is_whole(tmp_path):
    path = tmp_path / "cells.parquet"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError), whole_file(path) as written:
        written.write_text("half \udc80", encoding="utf-8")
    assert path.read_text() == "old"
    with whole_file(path) as written:
        written.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    path = tmp_path / "cells.parquet"
    with pytest.raises(CellrayError, match="is full"), whole_file(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_other_errors_of_the_system_pass(tmp_path):
    with pytest.raises(PermissionError), whole_file(tmp_path / "cells.parquet"):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_order_is_a_permutation():
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.permutation(50), rng.permutation(30)])
    sources = pd.Categorical.from_codes(np.repeat([0, 1], [50, 30]), ["a", "b"])
    mixed = rng.permutation(80)
    obs = pd.DataFrame({"cellray_source": sources, "cellray_row": rows}).iloc[mixed]
    order = source_order(obs)
    assert obs["cellray_row"].to_numpy()[order].tolist() == [*range(50), *range(30)]
