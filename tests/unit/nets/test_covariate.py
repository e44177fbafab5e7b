"""A batch's shift reaches the cells of that batch and no others."""

from dataclasses import replace

import pytest
import torch

from cellray.core.cells import UNKNOWN, Cells
from cellray.nets.covariate import Covariate
from cellray.nets.decoders import Decoder
from cellray.nets.mlp import MLP


def cells_of(batches, n_genes=7):
    cells = Cells.of(torch.rand(len(batches), n_genes, generator=torch.Generator().manual_seed(0)))
    return replace(cells, batch_B=torch.tensor(batches, dtype=torch.int64))


def shifted(module):
    module.shift.data = torch.arange(module.shift.numel(), dtype=torch.float32).view_as(
        module.shift
    )
    return module


@pytest.mark.parametrize("middle", [(), (4,), (2, 3)])
def test_each_cell_gets_its_batch_s_vector(middle):
    covariate = shifted(Covariate(3, 5))
    h = torch.rand(4, *middle, 5)
    found = covariate(h, cells_of([2, 0, UNKNOWN, 2])) - h
    expected = [covariate.shift[2], covariate.shift[0], torch.zeros(5), covariate.shift[2]]
    for row, vector in zip(found, expected, strict=True):
        torch.testing.assert_close(row, vector.detach().expand_as(row), atol=1e-5, rtol=0)


def test_it_equals_a_one_hot_column_a_batch():
    covariate = shifted(Covariate(3, 5))
    one_hot = torch.eye(3)[[1, 2, 2, 0]]
    found = covariate(torch.zeros(4, 5), cells_of([1, 2, 2, 0]))
    torch.testing.assert_close(found, one_hot @ covariate.shift)


def test_unknown_cells_teach_it_nothing():
    covariate = Covariate(2, 5)
    covariate(torch.ones(3, 5), cells_of([1, UNKNOWN, 1])).sum().backward()
    assert covariate.shift.grad.tolist() == [[0.0] * 5, [2.0] * 5]


@pytest.mark.parametrize("covariate", [Covariate(0, 5), Covariate(2, 5)])
def test_without_batches_or_cells_nothing_changes(covariate):
    h = torch.rand(3, 5)
    cells = None if covariate.shift is not None else cells_of([0, 1, 0])
    assert covariate(h, cells) is h
    assert covariate(torch.rand(0, 5), cells_of([])).shape == (0, 5)


def test_the_layer_keeps_its_dtype():
    h = torch.rand(3, 5).bfloat16()
    assert Covariate(2, 5)(h, cells_of([0, 1, 0])).dtype == torch.bfloat16


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_encoder_and_decoder_are_told_of_the_batch(part):
    cells, others = cells_of([0, 0, 1]), cells_of([0, 1, 1])
    if part == "encoder":
        net, x = MLP(7, 2, widths=(6,), dim=3, dropout=0), cells.x_BG
    else:
        net, x = Decoder(4, (6,), 7, n_batches=2, dropout=0), torch.rand(3, 4)
    assert torch.equal(net(x, cells), net(x, others))  # as long as nothing is learnt
    shifted(net.covariate)
    same = (net(x, cells) == net(x, others)).all(dim=1)
    assert same.tolist() == [True, False, True]
    plain = (net(x, cells_of([UNKNOWN] * 3)) == net(x)).all()
    assert plain
