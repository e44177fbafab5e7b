"""From counts to a loss: normalisation, seeds, views and what a recipe may ask for."""

import numpy as np
import pytest
import torch

from cellray.core.cells import Cells
from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe
from cellray.learn.build import check_recipe
from cellray.learn.learner import Learner, normalise

GENES = [f"g{i}" for i in range(30)]
SMALL = {"encoder": {"name": "mlp", "widths": [16], "dim": 8}}


pytestmark = pytest.mark.usefixtures("one_thread")


def learner(**values):
    return Learner.of(Recipe.of(SMALL | values), GENES)


def counts(n=12):
    return torch.poisson(torch.full((n, 30), 2.0), generator=torch.Generator().manual_seed(0))


def test_normalise_equals_numpy_and_keeps_empty_cells():
    x = counts()
    x[4] = 0
    totals = x.sum(1) * 3  # the model's genes are a third of what was measured
    scaled = x.double().numpy() / np.maximum(totals.numpy(), 1)[:, None] * 1e4
    torch.testing.assert_close(normalise(x, totals).double(), torch.from_numpy(np.log1p(scaled)))
    assert not normalise(x, totals)[4].any()


def test_normalise_leaves_the_counts_alone():
    x = counts()
    before = x.clone()
    normalise(x, x.sum(1))
    assert torch.equal(x, before)


def test_parameters_follow_from_the_recipes_seed_alone():
    torch.manual_seed(1)
    one = learner(seed=3).state_dict()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    two = learner(seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    other = learner(seed=4).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_cells_view_follows_from_seed_epoch_draw_and_cell():
    made, x, cells = learner(), torch.rand(12, 30) + 1, torch.arange(12)
    view, hidden = made.view(Cells.of(x), cells, epoch=2, draw=0)
    back = torch.arange(11, -1, -1)
    again, hidden_again = made.view(Cells.of(x[back]), cells[back], epoch=2, draw=0)
    assert torch.equal(again[back], view)
    assert torch.equal(hidden_again[back], hidden)
    for change in ({"epoch": 3, "draw": 0}, {"epoch": 2, "draw": 1}):
        assert not torch.equal(made.view(Cells.of(x), cells, **change)[1], hidden)
    assert not torch.equal(learner(seed=9).view(Cells.of(x), cells, epoch=2, draw=0)[1], hidden)


def test_views_follow_one_another_and_hide_their_union():
    mask = {"name": "random_mask", "fraction": 0.3}
    made, x, cells = learner(views=[mask, mask]), torch.rand(400, 30) + 1, torch.arange(400)
    view, hidden = made.view(Cells.of(x), cells, epoch=0, draw=0)
    assert hidden.float().mean().item() == pytest.approx(1 - 0.7**2, abs=0.02)
    assert not view[hidden].any()
    torch.testing.assert_close(view[~hidden], x[~hidden] / 0.7**2)


def test_hidden_counts_never_reach_the_encoder():
    made, x = learner(), counts()
    cells, totals = torch.arange(12), x.sum(1)
    seen = []
    made.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    hidden = made.view(Cells.of(normalise(x, totals)), cells, epoch=0, draw=0)[1]
    for changed in (x, torch.where(hidden, x + 50, x)):  # the library sizes stay as measured
        made(changed, totals, cells, 0)
    assert torch.equal(seen[0], seen[1])


def test_forward_is_exact_for_any_order_of_cells():
    made, x, cells = learner().eval(), counts(), torch.arange(12)
    one = made(x, x.sum(1), cells, 0)["loss"]
    back = torch.arange(11, -1, -1)
    torch.testing.assert_close(made(x[back], x[back].sum(1), cells[back], 0)["loss"], one)


def masked(fraction, **values):
    return learner(views=[{"name": "random_mask", "fraction": fraction}], **values)


def loss(made, x):
    return made(x, x.sum(1), torch.arange(len(x)), 0)["loss"]


def test_validation_losses_compare_under_the_same_validation_views():
    x, shared = counts(), {"validation_views": [{"name": "random_mask", "fraction": 0.4}]}
    one, two = masked(0.2, **shared).eval(), masked(0.7, **shared).eval()
    assert torch.equal(loss(one, x), loss(two, x))
    assert torch.equal(loss(one, x), loss(masked(0.4).eval(), x))
    assert not torch.equal(loss(masked(0.2).eval(), x), loss(masked(0.7).eval(), x))


def test_training_and_monitors_keep_the_views_of_training():
    x, plain = counts(), {"name": "mlp", "widths": [16], "dim": 8, "dropout": 0}
    shared = {"validation_views": [{"name": "random_mask", "fraction": 0.9}], "encoder": plain}
    one, two = masked(0.2, encoder=plain), masked(0.2, **shared)
    assert torch.equal(loss(one.train(), x), loss(two.train(), x))
    pairs = [made.eval().embed_pair(x, x.sum(1), torch.arange(len(x))) for made in (one, two)]
    assert torch.equal(pairs[0][1], pairs[1][1])
    assert not torch.equal(loss(one, x), loss(two, x))


def test_embed_has_no_dropout_and_leaves_the_mode():
    made, x = learner(), counts()
    made.train()
    one, two = made.embed(x, x.sum(1)), made.embed(x, x.sum(1))
    assert torch.equal(one, two)
    assert made.training
    assert made.encoder.training
    assert torch.equal(made.eval().encoder(normalise(x, x.sum(1))), one)


def test_masked_prediction_of_unseen_cells_beats_the_genes_means():
    """On counts of three programmes the hidden genes follow from the visible ones."""
    rng = np.random.default_rng(0)
    rates = rng.gamma(0.4, 1, (600, 3)) @ rng.gamma(0.3, 2, (3, 100)) * 20
    counts = torch.from_numpy(rng.poisson(rates)).float()
    totals, cells, seen = counts.sum(1), torch.arange(600), torch.arange(500)
    small = {"widths": [64]}
    recipe = Recipe.of(
        {
            "encoder": {"name": "mlp", "dim": 8, "dropout": 0} | small,
            "objective": {"name": "masked"} | small,
        }
    )
    made = Learner.of(recipe, [f"g{i}" for i in range(100)])
    optimizer = torch.optim.AdamW(made.parameters(), lr=3e-3)
    for epoch in range(40):
        for rows in seen.split(100):
            optimizer.zero_grad()
            made(counts[rows], totals[rows], cells[rows], epoch)["loss"].backward()
            optimizer.step()
    out = made.eval()(counts[500:], totals[500:], cells[500:], 0)
    x = normalise(counts, totals)
    _, hidden = made.view(Cells.of(x[500:]), cells[500:], epoch=0, draw=0)
    at_mean = (x[500:] - x[:500].mean(0))[hidden].square().mean()
    assert out["loss"] < 0.7 * at_mean
    assert out["explained_variance"] > 0.25


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"objective": {"name": "maskd"}}, "did you mean 'masked'"),
        ({"encoder": {"name": "mpl"}}, "did you mean 'mlp'"),
        ({"views": [{"name": "random_masks"}]}, "did you mean 'random_mask'"),
        ({"views": [{"name": "random_mask", "fractoin": 0.2}]}, "did you mean 'fraction'"),
        ({"views": [{"name": "random_mask", "fraction": 1.0}]}, "fraction"),
        ({"encoder": {"name": "mlp", "dropout": 1.0}}, "dropout"),
        ({"encoder": {"name": "mlp", "widths": [0]}}, "widths"),
        ({"objective": {"name": "simclr", "temperature": 0}}, "temperature"),
        ({"objective": {"name": "simclr", "widths": []}}, "widths"),
        ({"views": []}, "objective 'masked' needs a view that hides genes; add views"),
        (
            {"validation_views": []},
            "objective 'masked' needs a validation view that hides genes; add validation_views",
        ),
        (
            {"validation_views": [{"name": "random_masks"}]},
            "unknown validation view 'random_masks'",
        ),
        (
            {"validation_views": [{"name": "random_mask", "fraction": 1.0}]},
            "--set validation_views.NUMBER.KEY=VALUE",
        ),
        (
            {"validation_views": [], "objective": {"name": "simclr"}},
            "equal without a validation view that changes it",
        ),
        ({"views": [], "objective": {"name": "simclr"}}, "compares 2 views"),
        (
            {
                "encoder": {"name": "transformer"},
                "objective": {"name": "mvc"},
                "views": [{"name": "random_mask"}, {"name": "gaussian_noise"}],
            },
            "view 'gaussian_noise' is none; name programme_mask or random_mask alone",
        ),
        (
            {"objective": {"name": "bigan"}, "views": [], "train": {"strategy": "fsdp"}},
            "cannot be sharded",
        ),
    ],
)
def test_recipes_that_cannot_be_trained_are_refused(values, what):
    recipe = Recipe.of(values)
    for refuse in (check_recipe, lambda r: Learner.of(r, GENES)):
        with pytest.raises(CellrayError) as error:
            refuse(recipe)
        assert what in str(error.value)


def test_the_default_recipe_is_fine():
    check_recipe(Recipe())
