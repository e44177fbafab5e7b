"""Starting from another model, freezing, and low-rank updates."""

import pytest
import torch

from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe
from cellray.learn.adapt import frozen_names, named_axes, plain_state
from cellray.learn.learner import Learner
from cellray.nets.mlp import MLP

GENES = [f"g{i}" for i in range(30)]
SMALL = {
    "encoder": {"name": "mlp", "widths": [16, 12], "dim": 8, "dropout": 0},
    "objective": {"name": "masked", "widths": [12]},
}


def make(genes=GENES, seed=0, **values):
    return Learner.of(Recipe.of({"seed": seed} | SMALL | values), genes)


def batch(genes=GENES):
    counts = torch.poisson(
        torch.full((20, len(genes)), 2.0), generator=torch.Generator().manual_seed(0)
    )
    return counts, counts.sum(1), torch.arange(20), 0


def test_axes_of_genes_and_batches_are_found_by_building_again():
    axes = named_axes(lambda n, batches: MLP(n, batches, widths=(16,), dim=4), 3)
    found = {name: axis for name, axis in axes.items() if axis}
    assert found == {"blocks.0.0.weight": ((1, 0),), "covariate.shift": ((0, 1),)}


def test_batches_are_matched_by_name():
    recipe = Recipe.of(SMALL)
    source = Learner.of(recipe, GENES, batches=("A", "B", "C"))
    mine = Learner.of(recipe, GENES, batches=("D", "B", "A"))
    with torch.no_grad():
        source.encoder.covariate.shift.normal_()
    mine.start_from(source)
    shift, given = mine.encoder.covariate.shift, source.encoder.covariate.shift
    assert torch.equal(shift[1:], given[[1, 0]])
    assert not shift[0].any()


def test_the_order_of_fewer_genes_is_an_order_again():
    tokens = {"name": "transformer", "width": 8, "heads": 2, "layers": 1, "n_tokens": 8}
    source = make(encoder=tokens, objective={"name": "simclr"})
    source.encoder.place_G.copy_(torch.randperm(30, generator=torch.Generator().manual_seed(0)))
    mine = make(GENES[::3], encoder=tokens, objective={"name": "simclr"}, seed=1)
    mine.start_from(source)
    expected = source.encoder.place_G[::3].argsort().argsort()
    assert torch.equal(mine.encoder.place_G, expected)
    counts, totals, *_ = batch(GENES[::3])
    singly = torch.cat([mine.embed(counts[i : i + 1], totals[i : i + 1]) for i in range(20)])
    torch.testing.assert_close(mine.embed(counts, totals), singly, rtol=0, atol=1e-5)


def test_an_objective_with_its_defaults_written_out_is_the_same():
    source = make(objective={"name": "masked"})
    found = make(objective={"name": "masked", "widths": [256, 256, 512, 512]}, seed=1).start_from(
        source
    )
    assert found.fresh == ()
    other = make(objective={"name": "scmae"}, seed=1).start_from(source)
    assert "objective.mask_head.weight" in other.fresh


def test_the_same_genes_give_the_same_model():
    one, two = make(seed=1), make(seed=2)
    found = two.start_from(one)
    assert (found.genes, found.of, found.fresh) == (30, 30, ())
    assert all(torch.equal(w, two.state_dict()[name]) for name, w in one.state_dict().items())


def test_other_genes_are_matched_by_name_and_new_ones_stay_as_they_were():
    source = make(seed=1)
    genes = ["new", *GENES[5:][::-1]]
    mine = make(genes, seed=2)
    before = mine.encoder.blocks[0][0].weight.clone()
    found = mine.start_from(source)
    assert (found.genes, found.of) == (25, 26)
    weight, given = mine.encoder.blocks[0][0].weight, source.encoder.blocks[0][0].weight
    assert torch.equal(weight[:, 1:], given[:, 5:].flip(1))
    assert torch.equal(weight[:, 0], before[:, 0])
    last, its = mine.objective.decoder.layers[-1], source.objective.decoder.layers[-1]
    assert torch.equal(last.bias[1:], its.bias[5:].flip(0))
    # Cells that express only genes that both have get the very same embedding.
    counts, totals, *_ = batch()
    counts[:, :5] = 0
    moved = torch.cat([torch.zeros(20, 1), counts[:, 5:].flip(1)], dim=1)
    torch.testing.assert_close(mine.embed(moved, totals), source.embed(counts, totals))


def test_another_objective_begins_anew_and_its_copy_follows():
    source = make(seed=1)
    mine = make(seed=2, objective={"name": "byol", "hidden": 16, "dim": 8})
    mine.start_from(source)
    for name, weight in source.encoder.state_dict().items():
        assert torch.equal(mine.encoder.state_dict()[name], weight)
        assert torch.equal(mine.objective.target_encoder.state_dict()[name], weight)


def test_a_model_without_a_gene_or_weight_in_common_is_refused():
    with pytest.raises(CellrayError, match="none of the atlas's genes"):
        make().start_from(make([f"h{i}" for i in range(30)]))
    other = {"name": "mlp", "widths": [7, 7, 7], "dim": 5}
    with pytest.raises(CellrayError, match="no weight"):
        make(encoder=other, objective={"name": "simclr"}).start_from(make())


@pytest.mark.parametrize(
    ("freeze", "trained"),
    [
        ("none", {"blocks.0.0", "blocks.1.0", "blocks.2"}),
        ("all", set()),
        ("shallow", {"blocks.2"}),
        (r"^blocks\.0|bias$", {"blocks.1.0", "blocks.2"}),
    ],
)
def test_what_is_frozen_gets_no_gradient_and_does_not_move(freeze, trained):
    learner = make(init={"freeze": freeze})
    learner(*batch())["loss"].backward()
    moved = {n for n, p in learner.encoder.named_parameters() if p.grad is not None}
    assert {name.rpartition(".")[0] for name in moved} == trained
    assert all(p.grad is not None for p in learner.objective.parameters())


def test_updates_wider_than_a_layer_are_refused():
    with pytest.raises(CellrayError, match=r"init\.lora_rank 9 is above 8"):
        make(init={"lora_rank": 9})


@pytest.mark.parametrize("freeze", ["blokcs", "("])
def test_a_pattern_that_fits_nothing_is_refused(freeze):
    with pytest.raises(CellrayError, match=r"init\.freeze"):
        make(init={"freeze": freeze})


def test_low_rank_updates_begin_as_nothing_and_are_all_that_is_trained():
    plain, learner = make(), make(init={"lora_rank": 2})
    counts, totals, *_ = batch()
    learner.start_from(plain)
    torch.testing.assert_close(learner.embed(counts, totals), plain.embed(counts, totals))
    trained = {n for n, p in learner.encoder.named_parameters() if p.requires_grad}
    assert {name for name in trained if "weight" in name} == {
        f"blocks.{block}.parametrizations.weight.0.{half}"
        for block in ("0.0", "1.0", "2")
        for half in ("up", "down")
    }
    optimizer = torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        learner(*batch())["loss"].backward()
        optimizer.step()
    layer = learner.encoder.blocks[1][0]
    update = layer.weight - layer.parametrizations.weight.original
    assert torch.linalg.matrix_rank(update) == 2
    assert torch.equal(layer.parametrizations.weight.original, plain.encoder.blocks[1][0].weight)
    # Another model may start from the updated weights.
    state = plain_state(learner.encoder)
    torch.testing.assert_close(state["blocks.1.0.weight"], layer.weight)
    heir = make(seed=5)
    heir.start_from(learner)
    torch.testing.assert_close(heir.embed(counts, totals), learner.embed(counts, totals))


def test_shallow_names_leave_the_last_block_with_parameters():
    names = frozen_names(MLP(9, 0, widths=(4,), dim=2), "shallow")
    assert names == {"blocks.0.0.weight", "blocks.0.0.bias"}
