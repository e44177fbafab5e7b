"""Expression from the dot product of cell and gene embeddings, against NumPy."""

import pytest
import torch

from cellray.core.cells import Cells
from cellray.nets.mlp import MLP
from cellray.objectives.expression import ExpressionPrediction

G = 30


@pytest.fixture
def parts():
    torch.manual_seed(0)
    x = torch.rand(16, G) * 6
    hidden = torch.rand(16, G) < 0.3
    encoder = MLP(G, 0, widths=(), dim=5)
    objective = ExpressionPrediction(encoder)
    objective.bias_G.data = torch.rand(G)
    return objective, encoder, x, x.masked_fill(hidden, 0), hidden


def test_loss_equals_numpy(parts):
    objective, encoder, x, view, hidden = parts
    out = objective(encoder, [(view, hidden)], Cells.of(x))
    z, genes, bias = (
        t.detach().double().numpy() for t in (encoder(view), objective.gene_GD, objective.bias_G)
    )
    h = hidden.numpy()
    error = (z @ genes.T + bias - x.double().numpy())[h]
    assert out["loss"].item() == pytest.approx((error**2).mean(), rel=1e-5)
    assert out["target_fraction"].item() == pytest.approx(h.mean())


def test_visible_entries_of_the_target_do_not_matter(parts):
    objective, encoder, x, view, hidden = parts
    one = objective(encoder, [(view, hidden)], Cells.of(x))["loss"]
    other = objective(encoder, [(view, hidden)], Cells.of(torch.where(hidden, x, 99.0)))["loss"]
    assert torch.equal(one, other)


def test_only_targets_teach_their_genes(parts):
    objective, encoder, x, view, hidden = parts
    hidden = hidden.clone()
    hidden[:, :10] = False
    objective(encoder, [(view, hidden)], Cells.of(x))["loss"].backward()
    taught = objective.gene_GD.grad.any(dim=1)
    assert taught.tolist() == hidden.any(dim=0).tolist()


def test_nothing_hidden_gives_zero(parts):
    objective, encoder, x, view, hidden = parts
    assert objective(encoder, [(view, torch.zeros_like(hidden))], Cells.of(x))["loss"] == 0
