"""Importing cellray is cheap and changes nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SIDE_EFFECTS = """
import importlib, logging, os, pkgutil, sys, warnings

def load():
    import cellray
    names = [m.name for m in pkgutil.walk_packages(cellray.__path__, "cellray.")]
    assert len(names) > 30, names
    for name in names:
        importlib.import_module(name)

# Others may do at import what they like: they are loaded by the first round, and stay.
load()
for name in [name for name in sys.modules if name.partition(".")[0] == "cellray"]:
    del sys.modules[name]
import ray, torch, zarr

def state():
    return {
        "environment": dict(os.environ),
        "working folder": os.getcwd(),
        "files": sorted(os.listdir(".")),
        "warning filters": list(warnings.filters),
        "log handlers": list(logging.getLogger().handlers),
        "log level": logging.getLogger().level,
        "random numbers": torch.initial_seed(),
        "threads": torch.get_num_threads(),
        "zarr": zarr.config.get("codec_pipeline.path"),
        "ray": ray.is_initialized(),
    }

before = state()
load()
after = state()
for key in before:
    assert before[key] == after[key], (key, before[key], after[key])
assert os.listdir(".") == []
"""

SUBMIT = "from cellray.cli import main; assert main(['submit', '--address', 'h:1',"
HEAVY = ("torch", "ray", "mlflow", "anndata", "zarr", "scanpy", "pandas", "scipy", "numpy")


def run(code, folder):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=240
    )


def test_no_module_has_side_effects_at_import(tmp_path):
    done = run(SIDE_EFFECTS, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "code",
    [
        "import cellray; cellray.__version__; dir(cellray)",
        "from cellray.cli import main; main(['--help'])",
        "from cellray.cli import main; main(['pretrain', '--help'])",
        "from cellray.cli import main; main(['--version'])",
        "from cellray.cli import main; assert main(['pretrain', '--nonsense']) == 2",
        "from cellray.cli import main; assert main(['pretrain', '--name', 'x']) == 2",
        "from cellray.cli import main; assert main(['submit', 'pretrian']) == 2",
        f"{SUBMIT} 'pretrain', '--name', 'x']) == 2",
        f"{SUBMIT} 'pretrain', '--set', 'train.epoch=3']) == 2",
        f"{SUBMIT} 'embed', 'models:/x/1', '--atlas', 's3://b/a', '--out', 'z.csv']) == 2",
    ],
)
def test_help_and_import_stay_light(code, tmp_path):
    loaded = f"import sys; print([n for n in {HEAVY} if n in sys.modules], file=sys.stderr)"
    done = run(f"{code}\n{loaded}", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("module", "besides"),
    [
        ("feed.source", ("torch",)),  # read tasks
        ("evaluation.writer", ("torch",)),
        ("evaluation.embedder", ()),
        ("train.worker", ()),
        ("train.setup", ()),  # goes to Ray Train's controller
    ],
)
def test_workers_load_what_they_need(module, besides, tmp_path):
    """Every worker of a run is a new process: what it loads in vain, it loads each time."""
    vain = (*besides, "mlflow", "anndata", "xarray", "scanpy", "sklearn", "matplotlib")
    code = f"import sys, cellray.{module}; print([n for n in {vain} if n in sys.modules])"
    done = run(code, tmp_path)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stdout + done.stderr


def test_the_verbs_are_functions_of_the_package():
    import cellray

    for name in ("ingest", "pretrain", "evaluate", "embed"):
        assert callable(getattr(cellray, name))
        assert name in dir(cellray)
    with pytest.raises(AttributeError, match="nonsense"):
        cellray.nonsense  # noqa: B018 - the access is the test
