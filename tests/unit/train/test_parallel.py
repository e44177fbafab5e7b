"""What parallelism does to one process: precision, memory, compiled functions, refusals."""

import time

import pytest
import torch
from tests.contracts.groups import PAIRS, SMALLEST, batch, make, trained
from torch import nn

from cellray.core.errors import CellrayError
from cellray.core.sections import Train
from cellray.core.sparse import Sparse
from cellray.learn.optim import make_optimizer
from cellray.train.comms import CommClock, _covered
from cellray.train.parallel import accumulating, amp_dtype, autocast, parallelise, recompute, scaler

CPU = torch.device("cpu")
MLP = ("masked", "mlp")
# Every objective, and every encoder.
COMPILED = [pair for pair in PAIRS if pair in SMALLEST or pair[0] == "masked"]
# Compiling takes a minute or more on a CPU; of objectives, BYOL has most parts.
COMPILED_ON_CPU = [("masked", "transformer"), ("byol", "mlp")]
DROPOUT = {"mlp": {"widths": [64, 64, 64], "dim": 8, "dropout": 0.3}}
DROPOUT |= {"transformer": {"width": 16, "layers": 4, "heads": 2, "n_tokens": 16, "dropout": 0.3}}
DROPOUT |= {"cnn": {"width": 16, "layers": 4, "n_tokens": 16}}
# Compiling, torch calls functions that it has deprecated, and looks at every tensor's gradient.
of_torch = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script:DeprecationWarning",
    "ignore:.torch._prims_common.check:FutureWarning",
    "ignore:.*should not be instantiated:DeprecationWarning",
    "ignore:The .grad attribute:UserWarning",
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def losses(learner, module, *, steps=3):
    """Train on sparse cells, of which there are others at each step."""
    optimizer = make_optimizer(learner, learner.recipe.optim)
    found = []
    for step in range(steps):
        counts, totals, cells, batches = (values[step:] for values in batch())
        places = counts.nonzero().T
        counts = Sparse(counts[tuple(places)], *places, tuple(counts.shape))
        torch.manual_seed(step)  # of dropout
        loss = module(counts, totals, cells, step, batches)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        learner.objective.after_step(learner.encoder, (step + 1) / steps)
        found.append(loss.detach())
    return torch.stack(found)


def gradients(learner):
    return torch.cat([p.grad.ravel() for p in trained(learner)])


def kept_bytes(learner):
    """What a training step keeps for its backward pass, without the parameters."""
    known = {p.untyped_storage().data_ptr() for p in learner.parameters()}
    kept = {}

    def keep(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        z_BD = learner.encoder(batch()[0])
    z_BD.sum().backward()
    return sum(kept.values())


@pytest.mark.parametrize("net", sorted(DROPOUT))
def test_what_is_computed_again_is_the_same_to_the_bit_and_keeps_less(net):
    train = Train(activation_checkpointing=True)
    plain, again = (make(("masked", net), encoder={"name": net} | DROPOUT[net]) for _ in "ab")
    names = list(again.state_dict())
    module = parallelise(again, train, CPU)
    assert list(again.state_dict()) == names
    assert torch.equal(losses(again, module), losses(plain, plain))
    for key, value in plain.state_dict().items():  # running statistics among them
        assert torch.equal(again.state_dict()[key], value)
    assert kept_bytes(again) < 0.6 * kept_bytes(plain)


def test_statistics_are_those_of_one_pass_where_a_block_runs_twice():
    block = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.SELU())
    recompute(block)
    block(torch.randn(8, 3)).sum().backward()
    assert block[1].num_batches_tracked == 1


@of_torch
@pytest.mark.parametrize(
    "pair",
    [MLP, *(pytest.param(pair, marks=pytest.mark.slow) for pair in COMPILED_ON_CPU)],
    ids="-".join,
)
def test_compiled_losses_equal_eager_ones_without_compiling_again(pair):
    import torch._dynamo

    torch._dynamo.reset()
    # AdamW makes whole steps of rounding errors, and large steps make them grow.
    plain, learner = (make(pair, optim={"name": "sgd", "lr": 1e-5}) for _ in "ab")
    names = list(learner.state_dict())
    module = parallelise(learner, Train(compile=True), CPU)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=4):
        found = losses(learner, module, steps=6)
    assert list(learner.state_dict()) == names
    torch.testing.assert_close(found, losses(plain, plain, steps=6), rtol=1e-5, atol=0)
    wanted = gradients(plain)
    small = 1e-4 * wanted.abs().max().item()
    torch.testing.assert_close(gradients(learner), wanted, rtol=1e-4, atol=small)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    losses(learner, module, steps=6)
    assert graphs > 0
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


@pytest.mark.parametrize(
    ("choices", "key"),
    [
        ({"compression": "bfloat16"}, "train.compression"),
        ({"compression": "powersgd", "precision": "float16"}, "train.compression"),
    ],
)
def test_choices_that_exclude_each_other_are_refused(choices, key):
    with pytest.raises(CellrayError, match=key):
        parallelise(make(MLP), Train(**choices), CPU)


def test_offload_excludes_a_loss_scale_on_a_gpu():
    train = Train(strategy="fsdp", cpu_offload=True, precision="float16")
    with pytest.raises(CellrayError, match=r"train\.cpu_offload"):
        parallelise(make(MLP), train, torch.device("cuda"))


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("auto", None),
        ("float32", None),
        ("bfloat16", torch.bfloat16),
        ("float16", torch.float16),
    ],
)
def test_precision_decides_products_and_whether_losses_are_scaled(precision, dtype):
    assert amp_dtype(precision, CPU) is dtype
    x = torch.ones(2, 2)
    with autocast(precision, CPU):
        assert (x @ x).dtype is (dtype or torch.float32)
    scale = scaler(precision, CPU)
    assert scale.is_enabled() == (precision == "float16")
    assert (scale.scale(torch.ones(())) > 1) == (precision == "float16")


def test_one_process_needs_no_wrapper():
    learner = make(MLP)
    assert parallelise(learner, Train(), CPU) is learner
    with accumulating(learner, last=False):
        pass


def test_overlapping_spans_count_once():
    assert _covered([(0.0, 2.0), (1.0, 3.0), (5.0, 6.0), (5.2, 5.4)]) == pytest.approx(4.0)
    assert _covered([(4.0, 6.0), (-1.0, 1.0)]) == pytest.approx(4.0)


def test_the_clock_starts_anew_at_each_lap():
    clock = CommClock()
    assert clock.lap() == 0
    stop = clock.start(CPU)
    time.sleep(0.02)
    stop()
    assert 0.02 <= clock.lap() < 5
    assert clock.lap() == 0


@pytest.mark.gpu
@needs_gpu
def test_the_clock_measures_a_gpu_by_its_events():
    clock, device = CommClock(), torch.device("cuda", 0)
    stop = clock.start(device)
    torch.cuda._sleep(100_000_000)
    stop()
    assert clock.lap() > 0.01


@pytest.mark.gpu
@needs_gpu
@of_torch
@pytest.mark.parametrize("pair", COMPILED, ids="-".join)
def test_compiled_losses_equal_eager_ones_on_a_gpu(pair):
    device = torch.device("cuda", 0)
    plain, learner = (make(pair, optim={"name": "sgd", "lr": 1e-5}).to(device) for _ in "ab")
    module = parallelise(learner, Train(compile=True), device)
    values = [value.to(device) for value in batch()]
    for epoch in range(3):
        wanted = plain(*values[:3], epoch, values[3])["loss"]
        found = module(*values[:3], epoch, values[3])["loss"]
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=0)


@pytest.mark.gpu
@needs_gpu
def test_the_right_precision_is_chosen_on_a_gpu():
    wanted = torch.bfloat16 if torch.cuda.is_bf16_supported() else None
    assert amp_dtype("auto", torch.device("cuda", 0)) is wanted
