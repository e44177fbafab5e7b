"""What `cellray.submit` makes of its arguments, and refuses before anything is sent."""

import shlex
from pathlib import Path

import pytest
import ray
import yaml
from tests.unit.cluster.test_jobs import answering

import cellray
from cellray.cluster.jobs import Jobs
from cellray.core.errors import CellrayError

AT = {"address": "http://127.0.0.1:1"}
RUN = {"atlas": "s3://b/a", "name": "x", "storage": "s3://b/r"}


@pytest.fixture
def sent(tmp_path, monkeypatch):
    """What comes to a cluster that takes everything: requests, and the files of their jobs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    found = []

    def take(self, request):
        job = Path(request.runtime_env["working_dir"])
        files = {path.name: path.read_text() for path in job.rglob("*") if path.is_file()}
        found.append((request, files))

    monkeypatch.setattr(Jobs, "submit", take)
    with answering(200, f'{{"ray_version": "{ray.__version__}"}}') as url:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", url)
        yield found


def test_keywords_are_the_verbs_options(sent):
    recipe = cellray.Recipe().with_(["train.epochs=3"])
    job = cellray.submit(
        "pretrain",
        recipe=recipe,
        num_workers=2,
        set={"seed": 7, "optim.lr": 0.01},
        experiment=None,
        env={"A": "b c"},
        resources={"CPU": 1, "zone": "a", "memory": "1GiB"},
        code=False,
        **RUN,
    )
    ((request, files),) = sent
    assert job.id == request.id
    assert yaml.safe_load(files["recipe.yaml"])["train"]["epochs"] == 3
    words = request.entrypoint.split()
    assert words[:4] == ["python", "-m", "cellray", "pretrain"]
    assert {"--num-workers=2", "--set=seed=7", "--set=optim.lr=0.01", "--name=x"} <= {*words}
    assert request.runtime_env["env_vars"]["A"] == "b c"
    assert request.resources == {
        "entrypoint_num_cpus": 1.0,
        "entrypoint_label_selector": {"zone": "a"},
        "entrypoint_memory": 2**30,
    }


def test_a_sweep_and_arguments_and_flags(sent):
    space = {"optim.lr": {"loguniform": [1e-4, 1e-2]}}
    cellray.submit("sweep", recipe=cellray.Sweep.of({"space": space}), code=False, **RUN)
    cellray.submit(
        "evaluate", "models:/x@champion", atlas="s3://b/a", label=["a", "b, c"], gate=False
    )
    (_, files), (evaluation, _) = sent
    assert yaml.safe_load(files["recipe.yaml"])["space"] == space
    words = shlex.split(evaluation.entrypoint)
    assert words[-1] == "models:/x@champion"
    assert '--label=a,"b, c"' in words
    assert "--gate" not in words


@pytest.mark.parametrize(
    ("verb", "options", "said"),
    [
        ("pretrian", {}, "no verb 'pretrian' to submit; did you mean 'pretrain'"),
        ("pretrain", {"nmae": "x"}, "No such option: --nmae"),
        ("pretrain", {"num_workers": "two"}, "see 'cellray pretrain --help'"),
        ("pretrain", {"set": {"trian.epochs": 1}}, "did you mean 'train"),
        ("inspect", {"env": {"MY_TOKEN": "x"}}, "looks like a secret"),
    ],
)
def test_a_slip_is_said_before_anything_is_sent(verb, options, said):
    with pytest.raises(CellrayError, match=said):
        cellray.submit(verb, *(["s3://b/a"] if verb == "inspect" else []), **options, **AT)
