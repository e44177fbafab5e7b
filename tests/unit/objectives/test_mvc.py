"""Masked values with cell vector against NumPy, from what the encoder made of the tokens."""

import numpy as np
import pytest
import torch
from torch import nn

from cellray.core.cells import Cells
from cellray.core.errors import CellrayError
from cellray.nets.mlp import MLP
from cellray.nets.transformer import Transformer
from cellray.objectives.mvc import MVC

G = 30


@pytest.fixture
def parts():
    torch.manual_seed(0)
    x = torch.rand(12, G) * (torch.rand(12, G) < 0.7) * 6
    hidden = torch.rand(12, G) < 0.4
    encoder = Transformer(G, 0, n_tokens=16, width=16, layers=1, heads=2, dim=6, dropout=0)
    return MVC(encoder, width=9), encoder.eval(), Cells.of(x), [(x, hidden)]


def selu_net(net, x):
    """Run linear layers with SELU between them."""
    linears = [m for m in net.modules() if isinstance(m, nn.Linear)]
    for place, linear in enumerate(linears):
        x = x @ linear.weight.detach().double().numpy().T + linear.bias.detach().double().numpy()
        if place < len(linears) - 1:
            x = 1.0507009873554805 * (x.clip(0) + 1.6732632423543772 * np.expm1(x.clip(max=0)))
    return x


def test_both_losses_equal_numpy(parts):
    objective, encoder, cells, views = parts
    out = objective(encoder, views, cells)
    tokens = encoder.tokens(cells.x_BG, cells, hidden_BG=views[0][1])
    z, states, genes, values = (
        t.detach().double().numpy()
        for t in (tokens.z_BD, tokens.states_BSE, tokens.genes_BSE, tokens.values_BS)
    )
    hidden = tokens.hidden_BS.numpy()
    from_token = selu_net(objective.decoder, states)[..., 0]
    from_cell = (selu_net(objective.query, genes) * z[:, None]).sum(-1) / np.sqrt(z.shape[1])
    token_loss = ((from_token - values)[hidden] ** 2).mean()
    cell_loss = ((from_cell - values)[hidden] ** 2).mean()
    assert out["token_loss"].item() == pytest.approx(token_loss, rel=1e-5)
    assert out["cell_loss"].item() == pytest.approx(cell_loss, rel=1e-5)
    assert out["loss"].item() == pytest.approx(token_loss + cell_loss, rel=1e-5)
    share = hidden.sum() / tokens.kept_BS.sum().item()
    assert out["target_fraction"].item() == pytest.approx(share)
    assert 0.2 < share < 0.6


def test_hidden_values_are_those_of_the_cell_and_not_of_the_view(parts):
    _, encoder, cells, views = parts
    tokens = encoder.tokens(cells.x_BG, cells, hidden_BG=views[0][1])
    values = tokens.values_BS[tokens.hidden_BS]
    assert set(values.tolist()) <= set(cells.x_BG[views[0][1]].tolist())
    assert values.min() > 0


def test_the_cell_s_loss_does_not_reach_gene_embeddings_through_the_query(parts):
    objective, encoder, cells, views = parts

    def gene_grad():
        encoder.zero_grad()
        objective(encoder, views, cells)["loss"].backward()
        return encoder.gene_GE.grad.clone()

    found = gene_grad()
    genes_BSE = encoder.tokens(cells.x_BG, cells, hidden_BG=views[0][1]).genes_BSE
    query_BSD = objective.query(genes_BSE)
    objective.query.forward = lambda _: query_BSD.detach()
    torch.testing.assert_close(gene_grad(), found)
    objective.query.forward = lambda _: query_BSD  # now it would
    assert not torch.allclose(gene_grad(), found)


def test_nothing_hidden_gives_zero(parts):
    objective, encoder, cells, views = parts
    out = objective(encoder, [(views[0][0], torch.zeros_like(views[0][1]))], cells)
    assert out["loss"] == 0
    assert all(value.isfinite() for value in out.values())


def test_an_encoder_without_tokens_is_refused():
    with pytest.raises(CellrayError, match="gene tokens") as caught:
        MVC(MLP(G, 0))
    assert "transformer" in str(caught.value)
