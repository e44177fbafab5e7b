"""Faults, injected for real into a run in a process of its own: it ends as if nothing had been."""

import json
import os
import shutil
import signal
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest
from tests.integration.driver import RECIPE, check_undisturbed, history, start
from tests.integration.mlflow_server import start_server
from tests.integration.proxy import Fault
from tests.planted import plant_index, plant_value

from cellray.atlas.simulate import Simulation, simulate_anndata
from cellray.atlas.write import ingest
from cellray.core.recipe import Recipe
from cellray.track.life import ALIVE, Sign
from cellray.train.checkpoint import whole_checkpoints
from cellray.train.storage import file_system

OUTAGE = 30  # seconds


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("counts")
    cells = simulate_anndata(Simulation(n_cells=1_000, n_genes=200, seed=3))
    cells.write_h5ad(folder / "cells.h5ad")
    return folder / "cells.h5ad"


@pytest.fixture(scope="module")
def atlas(counts, tmp_path_factory):
    return ingest([counts], tmp_path_factory.mktemp("atlas") / "cells.zarr").url


@pytest.fixture
def launch(atlas, tmp_path, monkeypatch):
    """Give a function that starts a run of the small recipe, changed, on the atlas or another."""
    started = []

    def launch(*changes, on=atlas, words=(), store=None, env=None):
        recipe = Recipe.of(RECIPE).with_(list(changes))
        (tmp_path / "recipe.yaml").write_text(recipe.dump())
        where = store or f"sqlite:///{tmp_path}/mlflow.db"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", where)
        options = ["--recipe", "recipe.yaml", "--atlas", on, "--name", "faulty", *words]
        started.append(start(tmp_path, *options, store=where, env=env))
        return started[-1], recipe

    yield launch
    for driver in started:
        if driver.process.poll() is None:
            driver.kill()


@pytest.mark.slow
def test_a_driver_that_is_killed_is_resumed_from_its_runs_id(launch, atlas, tmp_path):
    driver, recipe = launch()
    run_id = driver.until_step(20)
    workers = driver.workers()
    driver.kill()
    assert workers
    assert not psutil.wait_procs(workers, timeout=60)[1]  # Ray's processes end with their driver
    assert driver.client.get_run(run_id).info.status == "RUNNING"

    newest = max(
        (tmp_path / ".cellray" / "runs" / run_id).rglob("state.json"), key=os.path.getmtime
    )
    half = newest.parents[1] / "checkpoint_9999-01-01"
    (half / "dcp").mkdir(parents=True)
    (half / "state.json").write_text(
        json.dumps({"state": {"step": 95}, "records": [], "epoch": {}})
    )
    metadata = newest.parent / "dcp" / ".metadata"
    (half / "dcp" / ".metadata").write_bytes(metadata.read_bytes())
    shard = next((newest.parent / "dcp").glob("*.distcp"))
    (half / "dcp" / shard.name).write_bytes(shard.read_bytes()[:-100])

    again = start(tmp_path, "--resume", run_id, store=driver.store)
    assert again.ended() == 0, again.said()
    check_undisturbed(again, run_id, recipe, atlas)
    version = again.client.get_model_version("faulty", "1")
    assert version.run_id == run_id

    third = start(tmp_path, "--resume", run_id, store=driver.store)
    assert third.ended() == 2
    assert f"error: run {run_id} has finished; start a new one" in third.said()


@pytest.mark.slow
def test_a_run_is_resumed_with_other_workers(launch, atlas, tmp_path):
    driver, recipe = launch("train.num_workers=2", "train.strategy=fsdp")
    run_id = driver.until_step(20)
    driver.kill()
    words = ["--resume", run_id, "--num-workers", "1", "--strategy", "ddp"]
    again = start(tmp_path, *words, store=driver.store)
    assert again.ended() == 0, again.said()
    check_undisturbed(again, run_id, recipe, atlas)
    tags = again.client.get_run(run_id).data.tags
    assert tags["cellray.resumed_with"] == "train.strategy=ddp train.num_workers=1"


@pytest.mark.slow
def test_what_cannot_be_resumed_is_refused_in_a_line(launch, atlas, tmp_path):
    driver, _ = launch("train.epochs=2000")
    run_id = driver.until_step(5)
    for words, said in [
        (["0" * 32], "no run 00000000000000000000000000000000 in this tracking store"),
        ([run_id], f"run {run_id} is still going on in this machine's process"),
        ([run_id, "--atlas", atlas], "--atlas beside --resume"),
    ]:
        refused = start(tmp_path, "--resume", *words, store=driver.store)
        assert refused.ended() == 2
        assert said in refused.said()
    driver.kill()
    sign = driver.client.get_run(run_id).data.tags[ALIVE]
    assert Sign.read(sign).here  # so that its process was looked for
    elsewhere = replace(Sign.read(sign), when=datetime.now(UTC), host="node7")
    driver.client.set_tag(run_id, ALIVE, str(elsewhere))
    refused = start(tmp_path, "--resume", run_id, store=driver.store)
    assert refused.ended() == 2
    assert f"error: run {run_id} is going on on node7: its last sign of life is" in refused.said()
    driver.client.set_tag(run_id, ALIVE, sign)
    for change in ("seed=3", "train.epochs=3"):
        refused = start(tmp_path, "--resume", run_id, "--set", change, store=driver.store)
        assert refused.ended() == 2
        assert f"{change.partition('=')[0]} cannot change" in refused.said()


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_with_its_cells_and_a_checkpoint(launch, tmp_path):
    driver, recipe = launch("optim.lr=1e30", "optim.warmup=0", "optim.clip=null")
    assert driver.ended() == 2
    said = driver.said()
    assert "the loss or a gradient is not a finite number at step" in said
    assert "Traceback" not in said
    run_id = driver.run_id()
    assert driver.client.get_run(run_id).info.status == "FAILED"
    failure = json.loads(
        Path(driver.client.download_artifacts(run_id, "failure.json", str(tmp_path))).read_text()
    )
    system, folder = file_system(str(tmp_path / ".cellray" / "runs" / run_id))
    last = whole_checkpoints(system, folder)[-1]
    assert last.step == failure["step"] - 1
    assert len(set(failure["cells"])) == recipe.data.batch_size
    assert "worker 0 failed" not in said  # it was not tried again


@pytest.mark.slow
def test_a_run_that_is_interrupted_writes_a_checkpoint_and_goes_on(launch, atlas, tmp_path):
    driver, recipe = launch("train.epochs=60", "train.checkpoint_every=10000")
    run_id = driver.until_step(10)
    driver.process.send_signal(signal.SIGINT)
    assert driver.ended(120) == 130
    said = driver.said().splitlines()
    assert "stopping in a checkpoint; Ctrl-C again ends at once" in said
    how = f"to go on with this run: cellray pretrain --resume {run_id}"
    assert said[-2:] == [how, "interrupted"]
    assert driver.client.get_run(run_id).info.status == "KILLED"

    system, folder = file_system(str(tmp_path / ".cellray" / "runs" / run_id))
    last = whole_checkpoints(system, folder)[-1]
    known = history(driver.client, run_id)
    assert last.step == known[-1][0]

    again = start(tmp_path, "--resume", run_id, store=driver.store)
    assert again.ended() == 0, again.said()
    assert history(driver.client, run_id)[-1][0] > last.step
    check_undisturbed(again, run_id, recipe, atlas)


@pytest.mark.slow
def test_two_workers_that_are_terminated_stop_at_one_step_and_go_on(launch, atlas, tmp_path):
    # One long epoch, and no other place for a checkpoint: the only one is that of the stop.
    driver, recipe = launch(
        "train.num_workers=2",
        "train.epochs=1",
        "train.checkpoint_every=10000",
        "data.balance=cell_type",
        "data.replacement=true",
        "data.epoch_cells=38400",
    )
    driver.until_said(r"train [1-9]\d*/600 steps")
    run_id = driver.run_id()
    assert len(driver.workers()) == 2
    driver.process.send_signal(signal.SIGTERM)
    assert driver.ended(120) == 143, driver.said()
    said = driver.said().splitlines()
    assert "stopping in a checkpoint; Ctrl-C again ends at once" in said
    how = f"to go on with this run: cellray pretrain --resume {run_id}"
    assert said[-2:] == [how, "terminated"]
    assert driver.client.get_run(run_id).info.status == "KILLED"

    system, folder = file_system(str(tmp_path / ".cellray" / "runs" / run_id))
    (only,) = whole_checkpoints(system, folder)
    assert 0 < only.step < 600
    assert [step for step, _ in history(driver.client, run_id)] == [*range(1, only.step + 1)]

    again = start(tmp_path, "--resume", run_id, store=driver.store)
    assert again.ended() == 0, again.said()
    assert [*Path(folder).glob(f"from-{only.step}-*")]
    check_undisturbed(again, run_id, recipe, atlas)


@pytest.mark.slow
def test_a_planted_checkpoint_is_refused_and_nothing_of_it_runs(launch, tmp_path):
    driver, _ = launch("train.epochs=2000")
    run_id = driver.until_step(20)
    family = psutil.Process(driver.process.pid).children(recursive=True)
    trains = [one for one in family if "Train" in " ".join(one.cmdline())]
    driver.kill()
    # Workers that still train, and their controller, would put other checkpoints in its place.
    assert len(trains) == 2
    assert not psutil.wait_procs(trains, timeout=60)[1]
    system, folder = file_system(str(tmp_path / ".cellray" / "runs" / run_id))
    last, file = Path(whole_checkpoints(system, folder)[-1].path), tmp_path / "ran"
    whole = shutil.copytree(last, tmp_path / "whole")
    for plant, why in (
        (lambda: plant_index(last, file), "was tampered with: it asks for posix.mknod"),
        (  # the worker finds it
            lambda: plant_value(last, "optim.param_groups.0.lr", file),
            "cannot be loaded (UnpicklingError: ",
        ),
    ):
        shutil.copytree(whole, last, dirs_exist_ok=True)
        plant()
        refused = start(tmp_path, "--resume", run_id, store=driver.store)
        assert refused.ended() == 2, refused.said()
        said = refused.said().splitlines()
        (error,) = (line for line in said if line.startswith("error: "))
        assert error.startswith(f"error: the checkpoint {last} {why}")
        assert "Traceback" not in refused.said()
        assert not file.exists()
        assert driver.client.get_run(run_id).info.status == "FAILED"


@pytest.mark.slow
def test_ctrl_c_a_second_time_ends_a_run_at_once(launch, tmp_path):
    driver, _ = launch("train.epochs=60", "train.timeout_s=600")
    run_id = driver.until_step(10)
    (worker,) = driver.workers()
    worker.suspend()  # it takes no more steps
    driver.process.send_signal(signal.SIGINT)
    time.sleep(3)
    assert driver.process.poll() is None
    driver.process.send_signal(signal.SIGINT)
    assert driver.ended(60) == 130
    assert driver.client.get_run(run_id).info.status == "KILLED"


def _leave_no_room(worker, room, seconds=5):
    """Let a process map so many bytes more than it does between its steps."""
    end, mapped = time.monotonic() + seconds, []
    while time.monotonic() < end:
        mapped.append(worker.memory_info().vms)
        time.sleep(0.01)
    _, hard = worker.rlimit(psutil.RLIMIT_AS)
    worker.rlimit(psutil.RLIMIT_AS, (min(mapped) + room, hard))


@pytest.mark.slow
def test_a_worker_without_memory_says_so_and_is_not_tried_again(launch):
    # An activation is 256 MiB: malloc keeps none so large, each step asks for it. Half as much is
    # left, so that Ray's threads beside the step find what little they need.
    driver, _ = launch(
        "train.epochs=300",
        "train.checkpoint_every=1000",
        "data.batch_size=512",
        "data.slab_batches=1",
        "encoder.widths=[131072]",
    )
    driver.until_step(2)
    (worker,) = driver.workers()
    _leave_no_room(worker, 128 << 20)
    assert driver.ended() == 2, driver.said()
    said = driver.said()
    assert "worker 0 ran out of memory at step" in said
    assert "a batch of 512 cells" in said
    assert "set train.accumulate to 2" in said
    assert driver.client.get_run(driver.run_id()).info.status == "FAILED"


@pytest.mark.slow
def test_mlflow_may_be_away(launch, atlas, tmp_path):
    (tmp_path / "mlflow").mkdir()
    server = start_server(tmp_path / "mlflow")
    try:
        driver, recipe = launch("train.epochs=30", store=server.url)
        run_id = driver.until_step(10)
        server.kill()
        time.sleep(OUTAGE)
        server = start_server(server.folder, server.port)
        assert driver.ended() == 0, driver.said()
        check_undisturbed(driver, run_id, recipe, atlas)
    finally:
        server.stop()


@pytest.mark.slow
def test_s3_may_be_away(launch, counts, s3_proxy, s3, tmp_path):
    bucket = s3.bucket()
    on_s3 = ingest([counts], f"s3://{bucket}/atlas").url
    driver, recipe = launch("train.epochs=30", on=on_s3, words=["--storage", f"s3://{bucket}/runs"])
    run_id = driver.until_step(10)
    s3_proxy.faults.append(Fault("reset", times=10**9))
    time.sleep(OUTAGE)
    hits = s3_proxy.hits()
    s3_proxy.faults.clear()
    assert driver.ended() == 0, driver.said()
    assert hits > 0
    check_undisturbed(driver, run_id, recipe, on_s3)
    assert [key for key in s3.keys(bucket, f"runs/{run_id}/") if key.endswith("state.json")]
