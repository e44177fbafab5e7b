"""Pre-training for real: Ray Data into Ray Train workers, an MLflow run, a registered version."""

import json
import signal
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from cellray.atlas.simulate import Simulation, simulate
from cellray.atlas.store import Atlas
from cellray.atlas.write import ingest
from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe
from cellray.track.models import resolve
from cellray.track.store import client, experiment_id
from cellray.train.local import fit
from cellray.train.run import pretrain
from cellray.train.setup import prepare

SMALL = {
    "encoder": {"name": "mlp", "widths": [32], "dim": 8, "dropout": 0.0},
    "objective": {"name": "masked", "widths": [32]},
    "data": {"batch_size": 64, "slab_batches": 2, "validation": 0.15},
    "train": {"epochs": 3, "log_every": 1},
}


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    folder = tmp_path_factory.mktemp("atlas")
    simulate(folder / "cells.h5ad", Simulation(n_cells=1_000, n_genes=200, seed=3))
    return ingest([folder / "cells.h5ad"], folder / "cells.zarr").url


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A working folder of its own: runs and the MLflow store of the module go there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("work"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


def trained(atlas, *changes, **kwargs):
    recipe = Recipe.of(SMALL).with_(list(changes))
    ref = pretrain(recipe, atlas, "test", **kwargs)
    history = client().get_metric_history(ref.run_id, "train_loss")
    return ref, [(point.step, point.value) for point in history]


def parameters(ref):
    learner = resolve(ref.uri).learner
    return torch.cat([p.detach().flatten() for p in learner.parameters()])


@pytest.fixture(scope="module")
def alone(atlas, work, ray_local):
    return trained(atlas)


def test_a_run_is_one_mlflow_run_with_every_step_once(alone, atlas):
    ref, history = alone
    plan = prepare(Recipe.of(SMALL), Atlas.open(atlas)).choice.plan
    assert [step for step, _ in history] == list(range(1, plan.steps + 1))
    run = client().get_run(ref.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["atlas_digest"] == Atlas.open(atlas).digest
    assert run.data.params["train.epochs"] == "3"
    assert {"validation_loss", "cells_per_s", "feed_wait_share", "lr"} <= set(run.data.metrics)
    assert history[-1][1] < 0.9 * history[0][1]


def test_the_tail_of_every_epoch_is_listed(alone, atlas, tmp_path):
    file = client().download_artifacts(alone[0].run_id, "plan.json", str(tmp_path))
    plan = json.loads(Path(file).read_text())
    spans = plan["tail_positions_by_epoch"]
    assert plan["tail_cells"] == 850 - 6 * 128
    assert client().get_run(alone[0].run_id).data.params["epoch_cells_dropped"] == "82"
    assert len(spans) == plan["epochs"]
    for listed in spans.values():
        assert sum(span["stop"] - span["start"] for span in listed) == plan["tail_cells"]


def test_the_same_is_trained_without_ray(alone, atlas):
    records = []
    learner = fit(Recipe.of(SMALL), Atlas.open(atlas), report=records.append)
    theirs = [value for _, value in alone[1]]
    np.testing.assert_allclose([r["train_loss"] for r in records], theirs, rtol=1e-5)
    metrics = client().get_run(alone[0].run_id).data.metrics
    assert records[-1]["validation_loss"] == pytest.approx(metrics["validation_loss"], rel=1e-5)
    assert not learner.training


def test_a_run_without_ray_that_diverges_does_not_end_as_if_it_had_not(atlas):
    changes = ["optim.lr=1e30", "optim.warmup=0", "optim.clip=null"]
    with pytest.raises(CellrayError, match=r"not a finite number at step \d+ \(epoch 1\)"):
        fit(Recipe.of(SMALL).with_(changes), Atlas.open(atlas))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_workers_follow_one_worker(alone, atlas, strategy):
    _, shared = trained(atlas, "train.num_workers=2", f"train.strategy={strategy}")
    ours, theirs = np.array(shared), np.array(alone[1])
    assert np.array_equal(ours[:, 0], theirs[:, 0])
    np.testing.assert_allclose(ours[0, 1], theirs[0, 1], rtol=1e-5)
    np.testing.assert_allclose(ours[:20, 1], theirs[:20, 1], rtol=1e-3)


def test_a_killed_worker_costs_no_cell_and_no_second_run(alone, atlas):
    killed = []

    def kill_once(stage, step, steps, facts=None):
        if not killed and 4 <= step < steps:
            ours = psutil.Process().children(
                recursive=True
            )  # other tests may train beside this one
            worker = next(p for p in ours if "RayTrainWorker" in p.name())
            killed.append(step)
            worker.send_signal(signal.SIGKILL)

    before = len(client().search_runs([experiment_id("cellray")]))
    ref, history = trained(atlas, "train.checkpoint_every=2", progress=kill_once)
    assert killed
    # Had a cell come twice or not at all, these would not be the uninterrupted run's numbers.
    assert history == alone[1]
    assert torch.equal(parameters(ref), parameters(alone[0]))
    assert len(client().search_runs([experiment_id("cellray")])) == before + 1


def test_what_cannot_be_trained_is_refused_before_ray_starts(atlas, work):
    with pytest.raises(CellrayError, match=r"data\.batch_size"):
        pretrain(Recipe.of({"data": {"batch_size": 4096}}), atlas, "test")
    with pytest.raises(CellrayError, match="needs a view that hides"):
        pretrain(Recipe.of({**SMALL, "views": []}), atlas, "test")
    with pytest.raises(CellrayError, match="did you mean 'donor'"):
        pretrain(Recipe.of(SMALL).with_(["data.split_by=donr"]), atlas, "test")


@pytest.mark.slow
def test_a_run_starts_from_a_registered_model_and_trains_its_last_layer(alone, atlas):
    source = resolve(alone[0].uri).learner
    ref, history = trained(
        atlas, f"init.model={alone[0].uri}", "init.freeze=shallow", "data.genes=150", "seed=4"
    )
    learner = resolve(ref.uri).learner
    assert len(learner.genes) == 150
    mine = [source.genes.index(gene) for gene in learner.genes]
    first, given = learner.encoder.blocks[0][0].weight, source.encoder.blocks[0][0].weight
    assert torch.equal(first, given[:, mine])
    assert not torch.equal(learner.encoder.blocks[-1].weight, source.encoder.blocks[-1].weight)
    params = client().get_run(ref.run_id).data.params
    assert params["init_genes_matched"] == "150 of 150"
    assert history[0][1] < 0.8 * alone[1][0][1]  # it does not begin anew


@pytest.mark.slow
def test_batches_are_a_covariate_and_an_adversary_of_two_workers(atlas, work, ray_local):
    parts = "[{name: masked, widths: [32]}, {name: batch_adversary, weight: 0.1}]"
    ref, _ = trained(
        atlas,
        f"objective={{name: sum, parts: {parts}}}",
        "data.batch_key=donor",
        "train.num_workers=2",
    )
    learner = resolve(ref.uri).learner
    assert learner.batches == tuple(Atlas.open(atlas).categories("donor"))
    assert learner.encoder.covariate.shift.abs().sum() > 0
    run = client().get_run(ref.run_id)
    assert 0 < run.data.metrics["train_batch_adversary_batch_accuracy"] <= 1
    assert run.data.metrics["effective_rank"] > 1.5
    assert {"embedding_std", "alignment", "uniformity", "train_grad_norm"} <= set(run.data.metrics)
    assert "cellray.collapsed" not in run.data.tags


def test_a_batch_key_that_holds_numbers_is_refused(atlas, work):
    recipe = Recipe.of(SMALL).with_(["data.batch_key=cellray_row"])
    with pytest.raises(CellrayError, match="holds no categories"):
        prepare(recipe, Atlas.open(atlas))
