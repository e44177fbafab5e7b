"""The feed from an object store: exact from any step, past faults, and ahead of training."""

import time

import numpy as np
import pytest
import ray
from tests.integration.proxy import Fault

from cellray.atlas.plan import make_plan, share_cells
from cellray.atlas.selection import Selection
from cellray.atlas.simulate import Simulation, simulate
from cellray.atlas.store import Atlas
from cellray.atlas.write import ingest
from cellray.feed.source import train_dataset
from cellray.train.worker import PREFETCHED_SHARES, stream

CELLS = 2_000


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    folder = tmp_path_factory.mktemp("atlas")
    simulate(folder / "cells.h5ad", Simulation(n_cells=CELLS, n_genes=60))
    return ingest([folder / "cells.h5ad"], folder / "atlas")


@pytest.fixture(scope="module")
def remote(s3_server, local):
    """The URL of the same atlas in a bucket."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.env.items():
            patch.setenv(name, value)
        source = local.manifest.sources[0]["path"]
        return ingest([source], f"s3://{s3_server.bucket()}/atlas").url


@ray.remote(num_cpus=0)
def drive(url, plan, selection, step, work):
    """Feed a run, `work` seconds of training a slab; give its cells, sums and waits."""
    atlas = Atlas.open(url)
    dataset = train_dataset(atlas, plan, selection, step=step, obs=["cell_type"])
    tables = dataset.iter_batches(
        batch_size=1, batch_format="pyarrow", prefetch_batches=PREFETCHED_SHARES
    )
    batches = stream(tables, plan, step)
    cells, sums, columns, waits = [], [], [], []
    while True:
        began = time.monotonic()
        rows = next(batches, None)
        if rows is None:
            return np.stack(cells), np.stack(sums), np.stack(columns), np.array(waits)
        waits.append(time.monotonic() - began)
        cells.append(rows.cells)
        sums.append(
            np.add.reduceat(rows.data.astype(np.int64) * (1 + rows.indices), rows.indptr[:-1])
        )
        columns.append(rows.obs["cell_type"])
        time.sleep(work / plan.slab_batches)


def driven(env, *args):
    """Run it where cellray's processes have the environment that a cluster's nodes would have."""
    names = {name: value for name, value in env.items() if name.startswith("AWS_")}
    return ray.get(drive.options(runtime_env={"env_vars": names}).remote(*args))


def test_a_run_from_a_bucket_resumes_at_a_step_and_outlasts_faults(
    ray_local, s3_proxy, s3, local, remote
):
    plan = make_plan(CELLS, batch_size=64, slab_batches=4, epochs=3, seed=2)
    everything = Selection.everything(CELLS)
    for kind, status in (("status", 503), ("status", 500), ("reset", 0), ("truncate", 0)):
        s3_proxy.faults += [Fault(kind, key, 2, status) for key in ("X/data/c", "X/indices/c")]
    env = {**s3.env, "AWS_ENDPOINT_URL": s3_proxy.url}
    cells, sums, columns, _ = driven(env, remote, plan, everything, 6, 0.0)
    assert s3_proxy.hits() == 16
    slabs = [share_cells(plan, everything, slab) for slab in range(plan.slabs)]
    steps = np.stack(slabs).reshape(plan.steps, plan.batch_size)
    assert np.array_equal(cells, steps[6:])
    rows = local.read_cells(cells.ravel(), obs=["cell_type"])
    values = rows.data.astype(np.int64) * (1 + rows.indices)
    assert np.array_equal(sums.ravel(), np.add.reduceat(values, rows.indptr[:-1]))
    assert np.array_equal(columns.ravel(), rows.obs["cell_type"])


def test_the_next_slab_is_read_while_this_one_trains(ray_local, s3_proxy, s3, remote):
    plan = make_plan(CELLS, batch_size=64, slab_batches=4, epochs=1, seed=2)
    slow, work = 0.4, 0.6
    s3_proxy.faults.append(Fault("delay", "X/data/c", times=1_000, seconds=slow))
    env = {**s3.env, "AWS_ENDPOINT_URL": s3_proxy.url}
    _, _, _, waits = driven(env, remote, plan, Selection.everything(CELLS), 0, work)
    slabs = waits.reshape(plan.slabs, plan.slab_batches)[:, 0]
    assert s3_proxy.hits() >= plan.slabs
    # Had it waited for its own read, every slab would have come that late.
    assert np.median(slabs[1:]) < slow / 4
