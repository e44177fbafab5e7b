"""The GPU benchmark at tiny size, on whatever device there is."""

import json
import subprocess
import sys
from pathlib import Path

import gpu
import numpy as np
import pytest
import torch
from gpu_feed import NONZEROS, ring, simulated

ROOT = Path(__file__).parents[2]
SMALL = ["--cells", "32", "--genes", "200", "--steps", "2", "--rounds", "1", "--batches", "2"]

# None of these can be imported, as on a machine where they are not installed.
ALONE = """
import sys
for name in ("ray mlflow anndata zarr h5py scanpy umap pyarrow obstore fsspec s3fs boto3 numcodecs "
             "google_crc32c optuna typer rich jinja2 matplotlib safetensors psutil").split():
    sys.modules[name] = None
sys.path.insert(0, "tests/benchmarks")
import gpu
print(*sorted({n.partition(".")[0] for n, m in sys.modules.items() if m is not None}))
"""


def test_it_needs_the_learner_and_no_more():
    done = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    needs = {"torch", "numpy", "scipy", "pandas", "numba", "pydantic", "yaml"}
    assert needs <= loaded
    assert not loaded & {"ray", "mlflow", "zarr", "anndata", "h5py", "sklearn"}


def measured(modes, folder):
    gpu.main([*SMALL, "--modes", *modes, "--out", str(folder)])
    return json.loads((folder / "gpu.json").read_text())


def check(document, modes):
    assert list(document["modes"]) == modes
    for found in document["modes"].values():
        assert min(found["cells_per_s"].values()) > 0
        assert list(found["cells_per_s"]) == ["resident", "in line", "ring"]
        assert sum(found["split"].values()) == pytest.approx(1)
        assert min(found["split"][part] for part in gpu.PARTS) > 0
        assert found["split"]["other"] < 0.2
        # Its limit is timed on this processor, for moments that others may have: no bound above.
        assert found["gemm_share"] > 0
        assert np.isfinite(found["loss"])


def test_it_measures_writes_and_prints(tmp_path, capsys):
    document = measured(["float32", "bfloat16"], tmp_path)
    check(document, ["float32", "bfloat16"])
    text = (tmp_path / "gpu.md").read_text()
    assert text in capsys.readouterr().out
    assert f"torch: {torch.__version__}" in text
    assert "command: python tests/benchmarks/gpu.py --cells 32" in text
    assert "| bfloat16 |" in text
    assert document["cells"] == 32


@pytest.mark.slow
@pytest.mark.filterwarnings(  # of torch's compiler
    "ignore:.torch.jit.script:DeprecationWarning",
    "ignore:.torch._prims_common.check:FutureWarning",
    "ignore:.*should not be instantiated:DeprecationWarning",
    "ignore:The .grad attribute:UserWarning",
)
def test_compiled_modes_train_alike(tmp_path):
    modes = ["float32", "float32 compiled"]
    document = measured(modes, tmp_path)
    check(document, modes)


def test_counts_have_the_papers_share_of_non_zeros():
    one, other = simulated(2, 100, 2_000)
    share = np.mean([len(rows.data) / 200_000 for rows in (one, other)])
    assert share == pytest.approx(NONZEROS, rel=0.1)
    assert one.indptr[-1] == len(one.data) == len(one.indices)
    assert one.data.min() == 1
    assert not np.array_equal(one.data[:50], other.data[:50])
    assert other.cells[0] == 100


def test_the_ring_gives_every_batch_whole_and_in_order():
    pool = [simulated(1, cells, 300)[0] for cells in (8, 64, 16, 64, 32, 8, 40)]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # All are kept, so that a slot that is filled too early would show.
    ours = list(ring(pool, device))
    for mine, rows in zip(ours, pool, strict=True):
        assert mine.data.device.type == device.type
        assert np.array_equal(mine.dense().cpu().numpy(), rows.to_scipy().toarray())
        assert np.array_equal(mine.cells_B.cpu().numpy(), rows.cells)


def test_the_ring_says_what_its_source_raises():
    def broken():
        yield simulated(1, 8, 50)[0]
        raise OSError("the source broke")

    with pytest.raises(OSError, match="the source broke"):
        list(ring(broken(), torch.device("cpu")))


def test_a_step_is_the_learners(tmp_path):
    """The stages change nothing: as many steps by hand give the same weights."""
    recipe = gpu.Recipe.load(gpu.RECIPE, ["train.precision=float32", "data.batch_size=32"])
    batch = gpu.Batch.of(simulated(1, 32, 200)[0])
    training = gpu.Training.of(recipe, 200, torch.device("cpu"))
    learner = gpu.Learner.of(recipe, training.learner.genes)
    optimizer = gpu.make_optimizer(learner, recipe.optim)
    for module in (training.learner, learner):
        module.objective.eval()
        module.encoder.eval()  # no dropout
    stages = []
    training.stage = stages.append
    for _ in range(2):
        found = training.step(batch)
        loss = learner(batch.dense(), batch.totals(), batch.cells_B, 0)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        assert found.item() == pytest.approx(loss.item(), rel=1e-6)
    assert stages == [*gpu.PARTS[1:], ""] * 2
