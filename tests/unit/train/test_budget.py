import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from cellray import answers
from cellray.atlas.forecast import forecast
from cellray.atlas.simulate import Simulation, simulate_anndata
from cellray.atlas.store import Atlas
from cellray.atlas.write import ingest
from cellray.cli import main
from cellray.console import dump
from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe
from cellray.feed.session import OBJECT_STORE
from cellray.learn.learner import Learner
from cellray.track.folder import save_model
from cellray.train import limits as here
from cellray.train.budget import budget
from cellray.train.limits import Limits, check, dry_run
from cellray.train.local import fit
from cellray.train.needs import PROCESS, check_trace, memory_limit
from cellray.train.setup import prepare

GIB = 2**30
SMALL = Recipe().with_(["data.batch_size=64", "data.slab_batches=2", "train.epochs=5"])
TOKENS = {"name": "transformer", "n_tokens": 40, "width": 32, "layers": 4, "heads": 2}


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    folder = tmp_path_factory.mktemp("budget")
    simulate_anndata(Simulation(n_cells=700, n_genes=60, seed=1)).write_h5ad(folder / "a.h5ad")
    return Atlas.open(ingest([folder / "a.h5ad"], folder / "atlas").url)


@pytest.fixture
def of(atlas):
    def make(*changes, recipe=SMALL):
        recipe = recipe.with_(list(changes))
        setup = prepare(recipe, atlas)
        return budget(recipe, atlas, setup, setup.learner(recipe))

    return make


def mended(found, limit, what="memory"):
    """Do what a refusal says, in each of its ways, and give the words of all."""
    with pytest.raises(CellrayError) as refused:
        check(found, Limits(**{what: limit}))
    assert refused.value.mend.startswith("set ")
    ways = refused.value.mend.removeprefix("set ").split(", or ")
    return [[pair.replace(" to ", "=") for pair in way.split(" and ")] for way in ways]


def test_the_plan_and_the_reads_are_those_of_the_forecast(of, atlas):
    found = of("train.num_workers=[1,2]", "train.keep=3")
    plan = prepare(found.recipe, atlas).choice.plan
    read = forecast(atlas, prepare(found.recipe, atlas).choice, world=2)
    assert found.steps == 5 * found.steps_per_epoch == plan.steps
    assert found.epoch_cells == found.steps_per_epoch * 64
    assert found.read == pytest.approx(5 * found.read_epoch, abs=5)
    assert found.read_epoch == round(read["bytes"]["epoch"])
    assert found.decoded == read["memory"]["slab"] * plan.slabs
    assert found.flops == found.flops_per_cell * 64 * plan.steps
    assert (found.workers, found.checkpoints) == ((1, 2), 4)


def test_a_checkpoint_is_as_large_as_is_said(of, tmp_path):
    found = of("optim.name=sgd", "optim.momentum=0.0")
    save_model(found.needs.learner, tmp_path / "model", facts={})
    written = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    assert found.checkpoint == pytest.approx(written, rel=0.05)
    assert of().checkpoint == 3 * found.checkpoint


def test_ddp_copies_gradients_and_fsdp_shares_the_state(of):
    alone, ddp = of(), of("train.num_workers=2")
    assert alone.memory.gathered == 0
    assert ddp.memory.gathered == ddp.memory.gradients == alone.memory.gradients
    assert of("train.num_workers=2", "train.compression=powersgd").memory.gathered == (
        2 * ddp.memory.gathered
    )
    fsdp = of("train.num_workers=2", "train.strategy=fsdp")
    assert fsdp.memory.moments == ddp.memory.moments // 2
    assert fsdp.memory.gradients == ddp.memory.gradients // 2
    assert fsdp.memory.activations == ddp.memory.activations
    learner = fsdp.needs.learner
    blocks = [sum(p.nbytes for p in block.parameters()) for block in learner.encoder.blocks]
    outside = sum(p.nbytes for p in learner.objective.parameters())
    assert fsdp.memory.gathered == 2 * (outside + max(blocks)) + max(blocks)
    passes = of("train.num_workers=2", "train.strategy=fsdp", "train.accumulate=2")
    whole = sum(p.nbytes for p in learner.parameters())
    assert passes.memory.gathered == outside + 2 * max(blocks) + whole


def test_passes_workers_and_checkpointing_need_less(of):
    recipe = SMALL.with_([f"encoder={TOKENS}"])
    whole = of(recipe=recipe).memory.activations
    for change in ("train.accumulate=2", "train.num_workers=2", "data.batch_size=32"):
        assert of(change, recipe=recipe).memory.activations == pytest.approx(whole / 2, rel=0.02)
    again = of("train.activation_checkpointing=true", recipe=recipe).memory.activations
    assert again < 0.6 * whole  # of 4 blocks one at a time


def test_sums_hold_all_parts(of):
    found = of("train.num_workers=2")
    memory = found.memory
    parts = ("parameters", "gradients", "moments", "gathered", "activations", "feed", "checkpoint")
    assert memory.host == PROCESS + sum(getattr(memory, part) for part in parts)
    assert memory.device == 0
    assert found.machine == 2 * memory.host + PROCESS + OBJECT_STORE


def test_a_gpu_holds_what_the_machine_then_does_not(of):
    found = of("train.num_workers=2", "train.strategy=fsdp")
    needs = replace(found.needs, gpu=True)
    memory = needs.memory(found.recipe, 2)
    state = memory.parameters + memory.gradients + memory.moments
    assert memory.host == found.memory.host - state - memory.gathered - memory.activations
    assert memory.device > state + memory.gathered + memory.activations
    offloaded = needs.memory(found.recipe.with_(["train.cpu_offload=true"]), 2)
    assert offloaded.device == memory.device - state
    assert offloaded.host == memory.host + state


@pytest.mark.parametrize("share", [0.7, 0.3, 0.1])
def test_what_does_not_fit_is_refused_with_the_values_that_do(of, share):
    found = of("data.batch_size=512", "data.slab_batches=1")
    fixed = found.machine - found.memory.activations
    limit = int(fixed + share * found.memory.activations)
    check(found, Limits(memory=found.machine))
    check(found, Limits())
    ways = mended(found, limit)
    assert [way[0].partition("=")[0] for way in ways] == ["train.accumulate", "data.batch_size"]
    for way in ways:
        assert of(*way, recipe=found.recipe).machine <= limit
    # One pass less, or a batch twice as large, would not.
    passes = int(ways[0][0].partition("=")[2])
    fewer = max(n for n in range(1, passes) if 512 % n == 0)
    assert of(f"train.accumulate={fewer}", recipe=found.recipe).machine > limit
    size = int(ways[1][0].partition("=")[2])
    assert of(f"data.batch_size={2 * size}", recipe=found.recipe).machine > limit


def test_what_no_smaller_batch_mends_is_mended_otherwise(of):
    found = of("train.num_workers=4", "encoder.widths=[4096,4096]")
    for limit in (found.machine - found.memory.parameters, found.machine // 2):
        (*ways,) = mended(found, limit)
        for way in ways:
            assert of(*way, recipe=found.recipe).machine <= limit
    with pytest.raises(CellrayError, match=r"make the encoder smaller .* [\d.]+ GiB of mem"):
        check(found, Limits(memory=GIB))


def test_gpus_that_are_too_small_are_refused(of):
    found = of()
    found = replace(found, needs=replace(found.needs, gpu=True))
    needed = found.needs.device(found.recipe)
    check(found, Limits(gpu_memory=needed, memory=found.machine))
    with pytest.raises(CellrayError, match=r"a worker needs .* of GPU memory .* set train\.acc"):
        check(found, Limits(gpu_memory=needed - 1))


def test_disks_that_are_too_small_are_refused(of):
    found = of("train.keep=4")
    check(found, Limits(scratch=found.checkpoint, storage=6 * found.checkpoint))
    with pytest.raises(CellrayError, match=r"first written to .* set TMPDIR"):
        check(found, Limits(scratch=found.checkpoint - 1))
    with pytest.raises(CellrayError, match=r"6 checkpoints .* set train\.keep to 3, or choose"):
        check(found, Limits(storage=6 * found.checkpoint - 1))
    check(of("train.keep=3"), Limits(storage=6 * found.checkpoint - 1))
    with pytest.raises(CellrayError, match="free in the storage; choose another --storage"):
        check(found, Limits(storage=found.checkpoint))


def test_limits_are_those_of_this_machine(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found = Limits.of(SMALL, str(tmp_path / "not" / "yet"))
    assert found.memory == memory_limit()
    assert found.storage == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)
    assert found.scratch == pytest.approx(shutil.disk_usage(tempfile.gettempdir()).free, rel=0.05)
    assert Limits.of(SMALL, "s3://bucket/runs").storage is None
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert Limits.of(SMALL, "s3://bucket/runs") == Limits()


def test_a_learner_too_large_to_try_is_refused():
    learner = Learner.of(Recipe().with_([f"encoder={TOKENS}"]), [f"g{i}" for i in range(60)])
    needed = learner.encoder.activation_bytes(8)
    check_trace(learner, needed)
    with pytest.raises(CellrayError, match=r"8 cells alone take .*\(encoder\.n_tokens"):
        check_trace(learner, needed - 1)


def test_a_fit_in_this_process_is_checked_too(atlas, monkeypatch):
    monkeypatch.setattr(here, "memory_limit", lambda: GIB // 2)
    with pytest.raises(CellrayError, match=r"1 worker of .* there are 0\.5 GiB"):
        fit(SMALL, atlas)


def test_a_dry_run_tells_and_writes_nothing(atlas, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    document = json.loads(dump(dry_run(SMALL, atlas.url).document()))
    assert list(tmp_path.iterdir()) == []
    assert document["parameters"] == document["trained"] > 0
    assert math.isfinite(document["flops"])
    text = answers.budget_text(document)
    assert f"{document['parameters']:,}" in text
    assert answers.size(document["memory"]["activations"]) in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_command_prints_a_budget_or_one_line(atlas, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    command = ["pretrain", "--atlas", atlas.url, "--dry-run", "--num-workers", "2"]
    assert main([*command, "--json"]) == 0
    out, _ = capfd.readouterr()
    document = json.loads(out)
    assert document["workers"] == [2, 2]
    assert main(command) == 0
    out, _ = capfd.readouterr()
    assert f"{document['parameters']:,} of them trained" in out
    monkeypatch.setattr(here, "memory_limit", lambda: 2 * GIB)
    assert main(command) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert re.fullmatch(r"error: 2 workers of .*; .*set train\.num_workers to 1.*\n", err)
    assert list(tmp_path.iterdir()) == []


# Chunks beyond glibc's largest threshold for its heap, so that nothing but the step is measured.
MEASURED = {
    "mlp": {"data": {"batch_size": 2048}},
    "transformer": {
        "data": {"batch_size": 128},
        "encoder": {"name": "transformer", "n_tokens": 256, "layers": 2},
    },
    "checkpointing": {
        "data": {"batch_size": 128},
        "encoder": {"name": "transformer", "n_tokens": 256, "layers": 3},
        "train": {"activation_checkpointing": True},
    },
    "simclr": {
        "data": {"batch_size": 2048},
        "objective": {"name": "simclr"},
        "encoder": {"name": "mlp", "widths": [64]},
    },
}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.parametrize(
    "name", ["mlp", *(pytest.param(n, marks=pytest.mark.slow) for n in MEASURED if n != "mlp")]
)
def test_a_step_takes_the_memory_that_is_said(name):
    """Two steps in a process of their own: by how much it grows is said to a factor of 1.5."""
    script = Path(__file__).with_name("step_in_memory.py")
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(MEASURED[name])],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["measured"] > 200 << 20
    assert found["measured"] / 1.5 < found["said"] < found["measured"] * 1.5, found
