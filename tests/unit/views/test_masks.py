"""What a mask hides never reaches the encoder, and what it keeps is scaled."""

import pytest
import torch
from scipy import stats

from cellray.core.bits import keys
from cellray.core.cells import Cells
from cellray.core.errors import CellrayError
from cellray.core.genes import Genes
from cellray.core.parts import Part, build_part
from cellray.core.sparse import Sparse
from cellray.views.table import VIEWS

X = torch.rand(64, 500, generator=torch.Generator().manual_seed(0)) * 5
CELLS, GENES = Cells.of(X), Genes(tuple(map(str, range(500))))
KEY = keys(0, 0, 0, torch.arange(64))


@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.9])
def test_fraction_is_binomial_and_what_stays_is_scaled(fraction):
    view, hidden = VIEWS["random_mask"](GENES, fraction=fraction)(X, KEY, CELLS)
    test = stats.binomtest(int(hidden.sum()), hidden.numel(), fraction)
    assert test.pvalue > 1e-3
    assert not view[hidden].any()
    torch.testing.assert_close(view[~hidden], X[~hidden] / (1 - fraction))


def test_the_input_is_left_alone_and_keeps_its_mean():
    before = X.clone()
    view, _ = VIEWS["random_mask"](GENES, fraction=0.5)(X, KEY, CELLS)
    assert torch.equal(before, X)
    assert abs(view.mean() / X.mean() - 1) < 0.02


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -7.0, 1e30])
def test_changing_hidden_entries_leaves_the_view_bit_identical(value):
    view, hidden = VIEWS["random_mask"](GENES, fraction=0.4)(X, KEY, CELLS)
    again, hidden_again = VIEWS["random_mask"](GENES, fraction=0.4)(
        X.masked_fill(hidden, value), KEY, CELLS
    )
    assert torch.equal(hidden, hidden_again)
    assert torch.equal(view.view(torch.int32), again.view(torch.int32))


def test_sparse_cells_get_the_very_view_of_dense_ones():
    x = torch.where(torch.rand(X.shape, generator=torch.Generator().manual_seed(1)) < 0.1, X, 0)
    rows, columns = x.nonzero().T
    sparse = Sparse(x[rows, columns], rows, columns, tuple(x.shape))
    view = VIEWS["random_mask"](GENES, fraction=0.4)
    seen, hidden = view(x, KEY, CELLS)
    sparse_seen, sparse_hidden = view(sparse, KEY, CELLS)
    assert torch.equal(sparse_seen.dense(), seen)
    assert torch.equal(sparse_hidden, hidden)
    assert len(sparse_seen.values) < 0.7 * len(sparse.values)  # hidden entries are gone
    assert view(sparse, KEY, CELLS, needs_target=False)[1] is None
    assert view(x, KEY, CELLS, needs_target=False)[1] is None


@pytest.mark.parametrize("probability", [0.3, 1.0])
def test_some_cells_are_masked_and_others_are_left_alone(probability):
    x = torch.rand(2000, 50, generator=torch.Generator().manual_seed(0)) + 1
    view = VIEWS["random_mask"](GENES, fraction=0.4, probability=probability)
    key = keys(0, 0, 0, torch.arange(2000))
    seen, hidden = view(x, key, Cells.of(x))
    masked = hidden.any(dim=1)
    assert stats.binomtest(int(masked.sum()), 2000, probability).pvalue > 1e-3
    assert torch.equal(seen[~masked], x[~masked])
    whole, all_hidden = VIEWS["random_mask"](GENES, fraction=0.4)(x, key, Cells.of(x))
    assert torch.equal(seen[masked], whole[masked])
    assert torch.equal(hidden[masked], all_hidden[masked])


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, "half"])
def test_fractions_that_hide_nothing_or_all_are_refused(fraction):
    with pytest.raises(CellrayError, match="fraction"):
        build_part("view", VIEWS, Part(name="random_mask", fraction=fraction), GENES)
