"""Which genes become tokens: sampling against NumPy, hidden values, and what must not matter."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from cellray.core.cells import Cells
from cellray.core.sparse import Sparse
from cellray.nets.covariate import Covariate
from cellray.nets.table import ENCODERS
from cellray.nets.tokens import TokenEncoder

SMALL = {"n_tokens": 8, "width": 16}
TOKENS = sorted(name for name, entry in ENCODERS.items() if issubclass(entry, TokenEncoder))
every = pytest.mark.parametrize("name", TOKENS)


class Identity(TokenEncoder):
    """The mean of the tokens, which is enough to see them."""

    def __init__(self, n_genes, n_batches=0, *, n_tokens=8, long_tail=0.0, width=4):
        super().__init__(
            n_genes, n_batches, n_tokens=n_tokens, long_tail=long_tail, width=width, dim=None
        )

    def mix(self, token_BSE, kept_BS):
        return token_BSE.sum(dim=1), token_BSE


def expression(n_cells, n_genes, share, seed=0):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(3, (n_cells, n_genes)) + 1
    kept = rng.random((n_cells, n_genes)) < share
    return torch.from_numpy(np.log1p(counts) * kept).float()


def programmes(n_cells, n_genes, *, n_programmes, size):
    """Simulate programmes of genes that vary together; -1 labels the genes of none."""
    rng = np.random.default_rng(0)
    label = np.repeat(
        [-1, *range(n_programmes)], [n_genes - n_programmes * size, *[size] * n_programmes]
    )
    label = rng.permutation(label)
    activity = np.column_stack([rng.gamma(0.5, 2, (n_cells, n_programmes)), np.ones(n_cells)])
    counts = rng.poisson(rng.gamma(1, 1, n_genes) * activity[:, label])
    return torch.from_numpy(np.log1p(counts)).float(), torch.from_numpy(label)


def sparse_of(x, seed=0):
    """Give the entries with the genes of a cell in any order, as mapped vocabularies have them."""
    rows, columns = x.nonzero().T
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    order = order[rows[order].argsort(stable=True)]
    rows, columns = rows[order], columns[order]
    return Sparse(x[rows, columns], rows, columns, tuple(x.shape))


def keyed(x, key):
    return replace(Cells.of(x), key_B=key)


def sampled(tokens, n_genes, encoder):
    """Say which genes are tokens, shape (B, G), by looking their embeddings up."""
    distance = torch.cdist(tokens.genes_BSE.flatten(0, 1), encoder.gene_GE)
    genes = distance.argmin(dim=1).view(tokens.kept_BS.shape)
    found = torch.zeros(len(genes), n_genes, dtype=torch.bool)
    cells, slots = tokens.kept_BS.nonzero().T
    found[cells, genes[cells, slots]] = True
    return found


def exact_pairs(weights):
    """Give the probability of every pair of draws without replacement, one after the other."""
    n, p = len(weights), np.asarray(weights, float) / np.sum(weights)
    return {
        (i, j): p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j])
        for i in range(n)
        for j in range(i + 1, n)
    }


def subsets_seen(encoder, x, n_cells, n_genes):
    encoder.train()
    many = x.expand(n_cells, n_genes)
    keys = torch.from_numpy(np.random.default_rng(0).integers(-(2**63), 2**63, n_cells))
    return sampled(encoder.tokens(many, keyed(many, keys)), n_genes, encoder)


@pytest.mark.parametrize("long_tail", [0.0, 1.0])
def test_sampling_is_numpys_without_replacement(long_tail):
    values = torch.tensor([0.0, 0.5, 0.5, 0.9, 1.6, 0.0, 2.5])
    encoder = Identity(7, long_tail=long_tail)
    encoder.n_tokens = 2
    found = subsets_seen(encoder, values, 20_000, 7)
    assert (found.sum(dim=1) == 2).all()
    assert not found[:, [0, 5]].any()  # not expressed
    expressed = values[values > 0].double().numpy()
    weights = expressed - expressed.min() + 1e-5 if long_tail else np.ones(5)
    exact = exact_pairs(weights)
    columns = np.flatnonzero(values > 0)
    codes = found[:, columns].numpy() @ (1 << np.arange(5))
    seen = {pair: (codes == (1 << pair[0]) + (1 << pair[1])).sum() for pair in exact}
    likely = [pair for pair in exact if exact[pair] > 1e-3]
    expected = np.array([exact[pair] for pair in likely])
    got = np.array([seen[pair] for pair in likely])
    assert got.sum() > 20_000 * 0.999
    assert chisquare(got, expected / expected.sum() * got.sum()).pvalue > 1e-3
    # NumPy's own sequential draws have the same frequencies, so the formula above is right.
    rng = np.random.default_rng(1)
    draws = [tuple(sorted(rng.choice(5, 2, False, weights / weights.sum()))) for _ in range(4000)]
    theirs = np.array([draws.count(pair) for pair in likely])
    assert chisquare(theirs, expected / expected.sum() * theirs.sum()).pvalue > 1e-3


def test_half_of_a_training_batch_is_sampled_with_weights():
    values = torch.cat([torch.full((50,), 0.5), torch.full((8,), 3.0)])
    encoder = Identity(58, long_tail=0.5)
    large = subsets_seen(encoder, values, 4000, 58)[:, 50:].sum(dim=1)
    assert abs((large == 8).float().mean() - 0.5) < 4 * (0.25 / 4000) ** 0.5  # all are large


def test_eval_mode_samples_large_values_first_and_uniform_ones_if_told():
    values = torch.cat([torch.full((50,), 0.5), torch.full((8,), 3.0)])[None]
    for long_tail, all_large in ((0.2, True), (0.0, False)):
        encoder = Identity(58, long_tail=long_tail).eval()
        found = sampled(encoder.tokens(values), 58, encoder)
        assert (found[0, 50:].sum() == 8) == all_large


def test_cells_of_few_genes_keep_them_all_with_their_values():
    x = expression(9, 40, 0.15)
    x[3] = 0
    encoder = Identity(40, n_tokens=16)
    tokens = encoder.tokens(x)
    assert torch.equal(sampled(tokens, 40, encoder), x > 0)
    assert tokens.kept_BS.shape[1] == (x > 0).sum(dim=1).max()
    for cell, values in enumerate(x):
        assert torch.equal(tokens.values_BS[cell][tokens.kept_BS[cell]], values[values > 0])
    assert not tokens.values_BS[~tokens.kept_BS].any()


def test_tokens_are_gene_plus_value_in_the_order_of_places():
    x = expression(5, 20, 0.3)
    encoder = Identity(20, n_tokens=16)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    encoder.place_G[order] = torch.arange(20)
    tokens = encoder.tokens(x)
    for cell, values in enumerate(x):
        genes = [int(g) for g in order if values[g] > 0]
        expected = encoder.gene_GE[genes] + encoder.value(values[genes][:, None])
        torch.testing.assert_close(tokens.states_BSE[cell, : len(genes)], expected)
        assert not tokens.states_BSE[cell, len(genes) :].any()


def test_a_hidden_token_is_its_gene_with_the_value_minus_one():
    x = torch.tensor([[0.0, 0.7, 1.2]])
    encoder = Identity(3)
    tokens = encoder.tokens(x, hidden_BG=torch.tensor([[True, True, False]]))
    expected = encoder.gene_GE[1:] + encoder.value(torch.tensor([[-1.0], [1.2]]))
    torch.testing.assert_close(tokens.states_BSE[0], expected)
    assert tokens.hidden_BS.tolist() == [[True, False]]
    assert torch.equal(tokens.values_BS, x[:, 1:])


def test_places_that_tie_give_the_same_order_in_any_layout():
    x = expression(5, 20, 0.9)
    encoder = Identity(20, n_tokens=20)
    encoder.place_G.fill_(3)
    assert torch.equal(encoder.tokens(x).values_BS, encoder.tokens(sparse_of(x)).values_BS)


def test_a_batch_shifts_every_token_and_an_unknown_one_none():
    x = expression(3, 20, 0.3)
    encoder = Identity(20, 2, n_tokens=16)
    assert isinstance(encoder.covariate, Covariate)
    torch.nn.init.normal_(encoder.covariate.shift)
    cells = replace(Cells.of(x), batch_B=torch.tensor([1, -1, 0]))
    plain, shifted = encoder.tokens(x), encoder.tokens(x, cells)
    change = (shifted.states_BSE - plain.states_BSE)[plain.kept_BS]
    codes = cells.batch_B[:, None].expand_as(plain.kept_BS)[plain.kept_BS]
    expected = torch.cat([encoder.covariate.shift, torch.zeros(1, 4)])[codes]
    torch.testing.assert_close(change, expected)


@every
@pytest.mark.parametrize("share", [0.1, 0.7])
@pytest.mark.parametrize("training", [True, False])
def test_hidden_values_never_reach_the_encoder(name, share, training):
    encoder = ENCODERS[name](50, 0, **SMALL, long_tail=1.0).train(training)
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    x = expression(12, 50, share)
    hidden = torch.rand(12, 50, generator=torch.Generator().manual_seed(0)) < 0.4
    hidden[0] = True
    other = torch.where(hidden & (x > 0), 20 * torch.rand(12, 50) + 0.1, x)
    one, two = (encoder.tokens(v, Cells.of(v), hidden_BG=hidden) for v in (x, other))
    assert torch.equal(one.z_BD, two.z_BD)
    assert torch.equal(one.states_BSE, two.states_BSE)
    assert torch.equal(one.hidden_BS, two.hidden_BS)
    assert one.hidden_BS[0].sum() == one.kept_BS[0].sum()
    assert not torch.equal(one.values_BS, two.values_BS)
    seen = encoder.tokens(other, Cells.of(other)).z_BD
    assert not torch.allclose(seen[0], one.z_BD[0])


def test_hidden_genes_are_sampled_as_often_as_others():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(np.log1p(rng.geometric(0.5, (400, 200)))).float()
    hidden = torch.from_numpy(rng.random((400, 200)) < 0.4)
    encoder = Identity(200, n_tokens=50, long_tail=1.0)
    tokens = encoder.tokens(x, Cells.of(x), hidden_BG=hidden)
    assert abs(tokens.hidden_BS.float().mean() - 0.4) < 5 * (0.24 / 20_000) ** 0.5


@every
def test_sampling_in_eval_mode_is_the_cells_own(name):
    encoder = ENCODERS[name](300, 0, **SMALL).eval()
    x = expression(30, 300, 0.3)
    torch.manual_seed(0)
    whole = encoder.tokens(x)
    torch.manual_seed(1)
    order = torch.randperm(30)
    turned = encoder.tokens(x[order], keyed(x[order], order * 7))
    assert torch.equal(turned.values_BS, whole.values_BS[order])
    torch.testing.assert_close(turned.z_BD, whole.z_BD[order], rtol=0, atol=1e-5)
    for start in range(0, 30, 7):
        part = encoder.tokens(sparse_of(x[start : start + 7], seed=start))
        assert torch.equal(part.values_BS, whole.values_BS[start : start + 7])
        torch.testing.assert_close(part.z_BD, whole.z_BD[start : start + 7], rtol=0, atol=1e-5)


def test_sampling_in_training_follows_the_key_and_the_view():
    encoder = Identity(300, n_tokens=20).train()
    x = expression(30, 300, 0.3)
    key = torch.arange(30) * 1_000_003
    one = encoder.tokens(x, keyed(x, key)).values_BS
    order = torch.randperm(30)
    again = encoder.tokens(sparse_of(x[order]), keyed(x[order], key[order])).values_BS
    assert torch.equal(again, one[order])
    later = encoder.tokens(x, keyed(x, key + 1)).values_BS
    assert (later != one).any(dim=1).all()
    view = torch.where(torch.arange(300) % 10 == 0, 0.0, x)
    genes = [sampled(encoder.tokens(v, keyed(v, key)), 300, encoder) for v in (x, view)]
    common = (genes[0] & genes[1]).sum(dim=1).float().mean()
    assert common < 6  # of 20 of about 90; the same bits would give about 18


@every
@pytest.mark.parametrize("training", [True, False])
def test_empty_cells_give_finite_embeddings_and_gradients(name, training):
    encoder = ENCODERS[name](50, 0, **SMALL).train(training)
    for x in (torch.zeros(3, 50), expression(3, 50, 0.5) * torch.tensor([[1.0], [0.0], [1.0]])):
        encoder.zero_grad()
        z = encoder(x)
        assert torch.isfinite(z).all()
        z.sum().backward()
        for parameter in encoder.parameters():
            assert parameter.grad is None or torch.isfinite(parameter.grad).all()


@every
def test_longer_cells_beside_it_change_no_embedding(name):
    encoder = ENCODERS[name](50, 0, **SMALL | {"n_tokens": 40}).eval()
    x = expression(8, 50, 0.1)
    x[4:] = expression(4, 50, 0.8)
    torch.testing.assert_close(encoder(x)[:4], encoder(x[:4]), rtol=0, atol=1e-5)


@every
def test_a_dim_of_its_own_is_a_last_linear_layer(name):
    encoder = ENCODERS[name](50, 0, **SMALL, dim=5)
    assert (encoder.dim, encoder.token_dim) == (5, 16)
    tokens = encoder.tokens(expression(4, 50, 0.5))
    assert tokens.z_BD.shape == (4, 5)
    assert tokens.states_BSE.shape == tokens.genes_BSE.shape == (4, 8, 16)


@every
def test_activation_bytes_grow_by_the_cell(name):
    encoder = ENCODERS[name](50, 0, **SMALL)
    one, two, five = (encoder.activation_bytes(n) for n in (1, 2, 5))
    assert one > 8 * 16 * 4
    assert five - one == 4 * (two - one)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    state = torch.get_rng_state()
    encoder.activation_bytes(3)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


@every
def test_the_seed_alone_makes_the_weights_and_a_copy_is_equal(name):
    made = []
    for _ in range(2):
        torch.manual_seed(5)
        made.append(ENCODERS[name](50, 3, **SMALL).eval())
    x = expression(4, 50, 0.5)
    z = made[0](x)
    assert torch.equal(made[1](x), z)
    assert torch.equal(copy.deepcopy(made[0])(x), z)
    assert not torch.equal(ENCODERS[name](50, 3, **SMALL).eval()(x), z)


@every
def test_it_can_be_made_without_memory(name):
    with torch.device("meta"):
        encoder = ENCODERS[name](10**7, 3, width=16)
    assert all(tensor.is_meta for tensor in encoder.state_dict().values())
    assert "place_G" in encoder.state_dict()


@every
def test_fit_learns_an_order_that_travels_with_the_weights(name):
    encoder = ENCODERS[name](60, 0, **SMALL)
    if not encoder.needs_sample:
        assert name == "transformer"  # attention has no order
        return
    assert torch.equal(encoder.place_G, torch.arange(60))
    x, label = programmes(300, 60, n_programmes=3, size=20)
    encoder.fit(sparse_of(x))
    assert torch.equal(encoder.place_G.sort().values, torch.arange(60))
    ordered = label[encoder.place_G.argsort()]
    assert (ordered[1:] == ordered[:-1]).float().mean() > 0.8
    again = ENCODERS[name](60, 0, **SMALL)
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again.eval()(x), encoder.eval()(x))
