"""What is said of jobs: their names, why they failed, where their logs are, how they go on."""

import json

import pytest
import ray
from tests.unit.cluster.answering import answering

from cellray.answers_jobs import why
from cellray.cli import main
from cellray.cluster.address import ClusterError, find_address
from cellray.cluster.follow import resumption
from cellray.cluster.jobs import Jobs
from cellray.track.runs import start_run


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """A working folder without a cluster, and an environment that names none."""
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_job_is_named_after_its_pipeline_or_the_run_that_it_goes_on_with(
    alone, monkeypatch, capfd
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{alone}/mlflow.db")
    run_id = start_run(experiment="x", run_name="masked cells", params={}, tags={})
    (alone / "file.yaml").write_text(
        "name: plates\n"
        "ingest: {sources: [s3://b/x.h5ad], out: s3://b/a}\n"
        "pretrain: {storage: s3://b/runs}\n"
        "evaluate: {label: cell_type}\n"
        "promote: {if_better: model/knn/macro_f1}\n"
    )
    unknown = "0" * 32
    options = ["--dry-run", "--no-code", "--json", "--env", "MLFLOW_TRACKING_URI=http://nodes:1"]
    with answering(200, f'{{"ray_version": "{ray.__version__}"}}') as url:
        for words, begins in (
            (["pipeline", "file.yaml"], "pipeline-plates-20"),
            (["pretrain", "--resume", run_id], "pretrain-masked-cells-20"),
            (["pretrain", "--resume", unknown], f"pretrain-{unknown}-20"),
            (["pretrain", "--resume", run_id, "--job-name", "mine"], "pretrain-mine-20"),
        ):
            assert main(["submit", *words, *options, "--address", url]) == 0
            assert json.loads(capfd.readouterr().out)["id"].startswith(begins)


def test_a_log_whose_node_is_gone_is_said_in_a_line(alone, capfd):
    """The head answers with the traceback of its own failure to reach the node."""
    job = {"type": "SUBMISSION", "submission_id": "a", "status": "FAILED", "entrypoint": "x"}
    gone = (
        "Traceback (most recent call last):\n  File ...\n"
        "aiohttp.client_exceptions.ClientConnectorError: Cannot connect to host 10.0.0.7:52365 "
        "ssl:default [Connect call failed ('10.0.0.7', 52365)]\n"
    )
    paths = {
        "/api/version": f'{{"ray_version": "{ray.__version__}"}}',
        "/api/jobs/": json.dumps([job]),
    }
    with answering(500, gone, by_path=paths) as url:
        assert main(["jobs", "logs", "a", "--address", url]) == 2
        found = Jobs(find_address(url))
        with pytest.raises(ClusterError) as error:
            found.stop("a")
    line = capfd.readouterr().err
    assert line == (
        "error: the log of job a lies on the node of its own process, which is gone; see 'cellray "
        "jobs status a': how it ended, and its runs in MLflow\n"
    )
    assert error.value.what.endswith("refuses this: cannot connect to 10.0.0.7:52365")


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (["error: no atlas at x; check it", "(raylet) a worker ended"], ["error: no atlas at x"]),
        (["Traceback (most recent call last):", "  File x", "ray.x.OddError: b"], ["OddError: b"]),
        (["one", "two", "three", "four"], ["two", "three", "four"]),
        ([], ["Job entrypoint command failed with exit code 2"]),
    ],
)
def test_a_failed_job_says_its_own_last_error(written, said):
    """Ray puts lines of its own into the log, and the whole log's end into its message."""
    rays = [
        "2026-11-29 10:00:00,123\tINFO job_manager.py:568 -- Runtime env is setting up.",
        "\x1b[36m2026-11-29 10:00:01,123\tINFO worker.py:1 -- Connected\x1b[0m",
    ]
    header = "Job entrypoint command failed with exit code 2, last available logs (truncated to"
    message = "\n".join([f"{header} 20,000 chars):", *rays, *written, rays[0]])
    found = why({"message": message})
    assert len(found) == len(said)
    assert all(part in line for part, line in zip(said, found, strict=True))
    assert why({"message": None}) == []


@pytest.mark.parametrize(
    ("verb", "on"),
    [
        ("pretrain", "cellray submit pretrain --resume 4f1c9e2a"),
        ("sweep", "cellray submit sweep --resume 77ab"),
        (None, "cellray submit sweep --resume 77ab"),
        ("pipeline", None),
        ("evaluate", None),
    ],
)
def test_the_command_that_goes_on_with_a_job_is_of_its_verb_and_goes_to_the_cluster(verb, on):
    """A sweep's trials may say how they go on by themselves."""
    log = "x\nto go on with this run: cellray pretrain --resume 4f1c9e2a\n"
    log += "to go on with this sweep: cellray sweep --resume 77ab\nterminated\n"
    assert resumption(log, verb) == on
    assert resumption(log.replace("cellray ", "cellray submit "), verb) == on  # as jobs say it
    assert resumption("nothing", verb) is None
