"""Sums of objectives, and what all objectives of the table share."""

from dataclasses import replace

import pytest
import torch

from cellray.core.cells import Cells
from cellray.core.errors import CellrayError
from cellray.core.parts import Part, build_part
from cellray.core.sparse import Sparse
from cellray.nets.mlp import MLP
from cellray.nets.transformer import Transformer
from cellray.objectives.table import OBJECTIVES

G = 24


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return MLP(G, 2, widths=(), dim=6, dropout=0)


@pytest.fixture
def cells():
    x = torch.rand(10, G, generator=torch.Generator().manual_seed(0)) * 5
    return replace(Cells.of(x), batch_B=torch.arange(10) % 2, totals_B=torch.full((10,), 300.0))


@pytest.fixture
def views(cells):
    hidden = torch.rand(2, 10, G, generator=torch.Generator().manual_seed(1)) < 0.4
    return [(cells.x_BG.masked_fill(h, 0), h) for h in hidden]


def build(encoder, *parts):
    torch.manual_seed(5)
    return build_part("objective", OBJECTIVES, Part(name="sum", parts=parts), encoder)


THREE = (
    {"name": "masked", "weight": 0.5, "widths": [8]},
    {"name": "simclr", "weight": 2.0, "temperature": 0.3},
    {"name": "byol", "hidden": 8, "dim": 4},
)


def test_the_loss_is_the_weighted_sum_of_the_parts(encoder, cells, views):
    objective = build(encoder, *THREE)
    out = objective(encoder, views, cells)
    alone = {name: part(encoder, views, cells) for name, part in objective.parts.items()}
    expected = sum(w * alone[n]["loss"] for n, w in (("masked", 0.5), ("simclr", 2), ("byol", 1)))
    torch.testing.assert_close(out["loss"], expected)
    wanted = {f"{name}_{key}" for name, found in alone.items() for key in found}
    assert set(out) == wanted | {"loss"}
    assert {"masked_explained_variance", "simclr_alignment", "byol_target_distance"} < set(out)
    for name, found in alone.items():
        for key, value in found.items():
            torch.testing.assert_close(out[f"{name}_{key}"], value.detach())


def test_only_the_sum_has_a_gradient_and_it_is_the_sum_s(encoder, cells, views):
    objective = build(encoder, *THREE)
    weight = encoder.blocks[0].weight
    out = objective(encoder, views, cells)
    assert [name for name, value in out.items() if value.requires_grad] == ["loss"]
    (found,) = torch.autograd.grad(out["loss"], weight)
    expected = sum(
        objective.weights[name]
        * torch.autograd.grad(part(encoder, views, cells)["loss"], weight)[0]
        for name, part in objective.parts.items()
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_each_view_is_embedded_once(encoder, cells, views, kind):
    objective = build(
        encoder, *THREE, {"name": "scmae"}, {"name": "bigan"}, {"name": "batch_adversary"}
    )
    if kind == "sparse":
        views = [(stored(x), hidden) for x, hidden in views]
    seen = []
    encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    objective(encoder, views, cells)
    assert len(seen) == 2
    assert seen[0] is views[0][0]
    assert seen[1] is views[1][0]


def stored(x_BG):
    rows, columns = x_BG.nonzero(as_tuple=True)
    return Sparse(x_BG[rows, columns], rows, columns, tuple(x_BG.shape))


def test_the_next_step_embeds_anew(encoder, cells, views):
    objective = build(encoder, *THREE)
    before = objective(encoder, views, cells)["masked_loss"]
    with torch.no_grad():
        encoder.blocks[0].weight.mul_(2)
    assert objective(encoder, views, cells)["masked_loss"] != before


def test_tokens_reach_a_part_that_needs_them(cells, views):
    torch.manual_seed(0)
    encoder = Transformer(G, 0, n_tokens=8, width=16, layers=1, heads=2, dropout=0).eval()
    objective = build(encoder, {"name": "mvc", "width": 8}, {"name": "simclr"})
    assert objective.needs_tokens
    out = objective(encoder, views, cells)
    torch.testing.assert_close(out["loss"], out["mvc_loss"] + out["simclr_loss"])


def test_a_sum_needs_what_its_parts_need(encoder):
    one = build(encoder, {"name": "expression_prediction"})
    assert (one.n_views, one.needs_target, one.needs_tokens, one.shardable) == (1, 1, 0, 1)
    two = build(encoder, {"name": "vicreg"}, {"name": "bigan"})
    assert (two.n_views, two.needs_target, two.needs_tokens, two.shardable) == (2, 0, 0, 0)


def test_parts_follow_the_encoder(encoder, cells, views):
    objective = build(encoder, *THREE, {"name": "moco", "queue": 16})
    with torch.no_grad():
        encoder.blocks[0].weight.add_(1)
    weight = encoder.blocks[0].weight
    targets = [objective.parts[name].target_encoder for name in ("byol", "moco")]
    objective.after_step(encoder, 0.0)
    assert all(not torch.equal(t.blocks[0].weight, weight) for t in targets)
    out = objective(encoder, views, cells)
    assert min(out["byol_target_distance"], out["moco_target_distance"]) > 0
    objective.begin(encoder)
    assert all(torch.equal(t.blocks[0].weight, weight) for t in targets)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([{"name": "simclr"}, {"name": "simclr", "temperature": 1}], "each once"),
        ([{"name": "masked"}, {"name": "sum"}], "name other objectives"),
        ([{"name": "simclt"}], "simclr"),
        ([], "parts"),
        ([{"name": "simclr", "weight": 0}], "weight"),
        ([{"name": "simclr", "temperature": 0}], "temperature"),
        ([{"weight": 1}], "name"),
    ],
)
def test_sums_that_are_none_are_refused_with_the_mend(encoder, parts, words):
    with pytest.raises(CellrayError) as caught:
        build(encoder, *parts)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_losses_are_float32_under_autocast(cells, views, name):
    torch.manual_seed(0)
    encoder = MLP(G, 2, widths=(), dim=6, dropout=0)
    if OBJECTIVES[name].needs_tokens:
        encoder = Transformer(G, 2, n_tokens=8, width=16, layers=1, heads=2, dropout=0)
    objective = OBJECTIVES[name](encoder).eval()
    exact = objective(encoder.eval(), views, cells)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = objective(encoder, views, cells)
    assert out["loss"].dtype == torch.float32
    torch.testing.assert_close(out["loss"], exact["loss"], rtol=0.05, atol=0.02)
    out["loss"].backward()


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_monitors_have_no_gradients(cells, views, name):
    encoder = MLP(G, 2, widths=(), dim=6, dropout=0)
    if OBJECTIVES[name].needs_tokens:
        encoder = Transformer(G, 2, n_tokens=8, width=16, layers=1, heads=2, dropout=0)
    out = OBJECTIVES[name](encoder)(encoder, views, cells)
    assert [key for key, value in out.items() if value.requires_grad] == ["loss"]
    assert all(value.ndim == 0 for value in out.values())
