"""Jobs submitted from outside: the client ends, others follow, stop and find what came of them."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest
import yaml
from mlflow import MlflowClient
from prometheus_client.parser import text_string_to_metric_families
from tests.integration.conftest import started_cluster
from tests.integration.driver import history
from tests.integration.mlflow_server import start_server

from cellray.atlas.simulate import Simulation, simulate_anndata
from cellray.atlas.write import ingest
from cellray.cluster.address import Address
from cellray.cluster.jobs import Jobs
from cellray.cluster.settings import resources
from cellray.cluster.ship import Shipment
from cellray.cluster.submit import make_request
from cellray.core.recipe import Recipe
from cellray.feed.meters import TRAFFIC_COUNTERS
from cellray.train.gauges import CELLS, GAUGES

RECIPE = {
    "encoder": {"name": "mlp", "widths": [64], "dim": 8, "dropout": 0.0},
    "objective": {"name": "masked", "widths": [32]},
    "data": {"batch_size": 64, "slab_batches": 2, "mix": 2, "validation": 0.1},
    "train": {"epochs": 2, "log_every": 1},
}


@dataclass(frozen=True)
class Place:
    """A cluster with an MLflow server and a bucket, and a folder to submit from."""

    cluster: object
    mlflow: str
    bucket: str
    atlas: str
    folder: Path

    def start(self, *words, python=("-m", "cellray"), **env):
        """Start ``cellray WORDS`` as a user would, in a process of its own."""
        told = {
            "RAY_API_SERVER_ADDRESS": self.cluster.dashboard,
            "MLFLOW_TRACKING_URI": self.mlflow,
        }
        return subprocess.Popen(
            [sys.executable, *python, *map(str, words)],
            cwd=self.folder,
            env={**os.environ, **self.cluster.env, **told, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words, status=0, **env):
        """Run it to its end; what it has said on stdout and stderr."""
        with self.start(*words, **env) as process:
            out, err = process.communicate(timeout=500)
        assert process.returncode == status, out + err
        return out, err

    def document(self, *words, status=0):
        """Run it with --json, and give its answer."""
        return json.loads(self.run(*words, "--json", status=status)[0])

    def submit(self, verb, *words):
        """Submit a verb, and give the job's id; the client ends."""
        return self.document("submit", verb, *words)["id"]

    def pretrain(self, name, *words):
        """Submit a pre-training run on the bucket's atlas."""
        where = ["--atlas", self.atlas, "--storage", f"s3://{self.bucket}/runs"]
        return self.submit("pretrain", "--recipe", "recipe.yaml", "--name", name, *where, *words)

    def mlflow_runs(self, job):
        """Find the MLflow runs that carry a job's id."""
        api = MlflowClient(self.mlflow)
        experiments = [found.experiment_id for found in api.search_experiments()]
        return api.search_runs(experiments, f"tags.ray_submission_id = '{job}'")


@pytest.fixture(scope="module")
def place(s3_server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("submit")
    (folder / "recipe.yaml").write_text(Recipe.of(RECIPE).dump())
    cells = simulate_anndata(Simulation(n_cells=1_000, n_genes=120, seed=2))
    cells.write_h5ad(folder / "cells.h5ad")
    bucket = s3_server.bucket()
    (folder / "mlflow").mkdir()
    server = start_server(folder / "mlflow")
    env = {**s3_server.env, "RAY_JOB_START_TIMEOUT_SECONDS": "3600"}  # for a queue
    try:
        with pytest.MonkeyPatch.context() as patch, started_cluster(env) as cluster:
            for name, value in s3_server.env.items():
                patch.setenv(name, value)
            patch.setenv("MLFLOW_TRACKING_URI", server.url)
            atlas = ingest([folder / "cells.h5ad"], f"s3://{bucket}/atlas").url
            yield Place(cluster, server.url, bucket, atlas, folder)
    finally:
        server.stop()


def test_a_job_outlives_its_client_and_registers_its_model(place):
    out, err = place.run(
        *("submit", "pretrain", "--recipe", "recipe.yaml", "--name", "plates"),
        *("--atlas", place.atlas, "--storage", f"s3://{place.bucket}/runs"),
    )
    job = re.match(r"submitted (pretrain-plates-\d{8}-\d{6}-[0-9a-f]+) to ", out)[1]
    assert re.search(r"shipped    \d+ files of code \([\d.]+ MB\) from .*/cellray\n", out)
    assert f"cellray jobs logs {job} --follow" in out
    assert f"{place.cluster.dashboard}/#/jobs/{job}" in out
    assert place.mlflow in out
    assert not err

    # Another client, which knows the beginning of the id alone.
    log, _ = place.run("jobs", "logs", job[:-3], "--follow")
    assert "registered" in log
    (found,) = (one for one in place.document("jobs", "list") if one["id"] == job)
    assert (found["status"], found["verb"], found["name"]) == ("succeeded", "pretrain", "plates")

    (run,) = place.mlflow_runs(job)
    assert run.info.status == "FINISHED"
    url = f"{place.mlflow}/api/2.0/mlflow/registered-models/get?name=plates"
    with urlopen(url, timeout=30) as answer:
        (version,) = json.load(answer)["registered_model"]["latest_versions"]
    assert (version["version"], version["run_id"]) == ("1", run.info.run_id)

    told = place.document("jobs", "status", job)
    assert (told["runs"], told["models"]) == ([run.info.run_id], ["models:/plates/1"])
    assert told["links"] == [
        f"{place.mlflow}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    ]

    _, err = place.run("jobs", "stop", job, status=2)
    assert f"job {job} has ended before: succeeded" in err
    _, err = place.run("jobs", "status", f"{job}0", status=2)
    assert f"no job '{job}0' at {place.cluster.dashboard}; did you mean '{job}'?" in err


NOTEBOOK = """
import asyncio
import cellray
from cellray.core.errors import CellrayError

async def cell():  # a notebook's loop runs while its cells do
    job = cellray.submit("inspect", "s3://no-such-bucket/atlas", job_name="cell", env={"A": "b"})
    try:
        job.wait()
    except CellrayError as error:
        print("error", error)
    assert cellray.jobs()[0] == job and job.status() == "failed" and job.models() == []
    assert "no-such-bucket" in job.logs()
    try:
        job.stop()
    except CellrayError as error:
        print("error", error)

asyncio.run(cell())
"""


@pytest.mark.slow
def test_a_notebook_submits_a_job_and_learns_why_it_failed(place):
    out, _ = place.run(NOTEBOOK, python=("-c",))
    failed, ended = re.findall(r"^error (.*)$", out, re.MULTILINE)
    assert re.match(r"job inspect-cell-\S+ failed: error: .*no-such-bucket", failed)
    assert re.search("has ended before: failed; see 'cellray jobs logs inspect-cell-", ended)
    assert "no-such-bucket" in out.partition("error ")[0]  # the log was shown


@pytest.mark.slow
def test_ctrl_c_leaves_a_job_alone_and_a_stop_ends_it_in_a_checkpoint(place):
    job = place.pretrain("stopped", "--set", "train.epochs=400")
    with place.start("jobs", "logs", job, "--follow") as client:
        while "Running entrypoint" not in (line := client.stdout.readline()):
            assert line
        client.send_signal(signal.SIGINT)
        _, err = client.communicate(timeout=120)
    assert client.returncode == 130
    assert f"detached: {job} goes on; 'cellray jobs logs {job} --follow'" in err

    until(lambda: [run for run in place.mlflow_runs(job) if steps(place, run)])
    (run,) = place.mlflow_runs(job)
    keys = ("step", "train_loss", "cells_per_s", "feed_wait_share")
    watched = {CELLS[0], TRAFFIC_COUNTERS["requests"][0], *(GAUGES[key][0] for key in keys)}
    until(lambda: watched <= {name for name, value in published(place, run).items() if value > 0})
    found = place.document("jobs", "stop", job)
    (run,) = place.mlflow_runs(job)
    assert (found["status"], run.info.status) == ("stopped", "KILLED")
    assert found["resume"] == f"cellray submit pretrain --resume {run.info.run_id}"
    log, _ = place.run("jobs", "logs", job, "--follow", status=143)
    assert "stopping in a checkpoint\n" in log  # nobody sits at the job's Ctrl-C
    assert f"to go on with this run: {found['resume']}\n" in log
    assert log.splitlines()[-1] == "terminated"
    reached = steps(place, run)[-1]

    _, err = place.run("submit", "pretrain", "--resume", "0" * 32, status=2)
    assert err == f"error: no run '{'0' * 32}' at {place.mlflow}; see the runs with 'cellray ui'\n"
    # Every planned cell comes once, or the run would fail.
    again = place.submit("pretrain", "--resume", run.info.run_id, "--set", "train.patience=1")
    _, err = place.run("jobs", "logs", again, "--follow")
    assert f"{again}: succeeded" in err
    assert [one.info.run_id for one in place.mlflow_runs(again)] == [run.info.run_id]
    after = steps(place, run)
    assert after == list(range(1, after[-1] + 1))
    assert after[-1] > reached


@pytest.mark.slow
def test_a_stopped_sweep_goes_on_as_another_job(place):
    words = ["--recipe", sweep_file(place, {"train": {"epochs": 400}}), "--atlas", place.atlas]
    storage = ["--storage", f"s3://{place.bucket}/runs"]
    job = place.submit("sweep", *words, *storage, "--name", "stopped-sweep")
    until(lambda: any(steps(place, run) for run in place.mlflow_runs(job)))
    found = place.document("jobs", "stop", job)
    sweep, trial = sorted(place.mlflow_runs(job), key=lambda run: run.info.start_time)
    assert trial.data.tags["mlflow.parentRunId"] == sweep.info.run_id
    assert found["resume"] == f"cellray submit sweep --resume {sweep.info.run_id}"
    assert {run.info.status for run in (sweep, trial)} == {"KILLED"}
    log, _ = place.run("jobs", "logs", job, "--follow", status=143)
    assert f"to go on with this sweep: {found['resume']}\n" in log
    reached = steps(place, trial)[-1]

    again = place.submit("sweep", "--resume", sweep.info.run_id)
    until(lambda: steps(place, trial)[-1] > reached + 5)
    place.run("jobs", "stop", again)
    after = steps(place, trial)
    assert after == list(range(1, after[-1] + 1))
    ids = {run.info.run_id for run in (sweep, trial)}
    assert {run.info.run_id for run in place.mlflow_runs(again)} == ids


@pytest.mark.slow
def test_evaluations_and_sweeps_carry_their_jobs_id(place):
    sweep = place.submit(
        *("sweep", "--recipe", sweep_file(place), "--atlas", place.atlas, "--name", "swept"),
        *("--storage", f"s3://{place.bucket}/runs"),
    )
    place.run("jobs", "logs", sweep, "--follow")
    tagged = place.mlflow_runs(sweep)
    assert len(tagged) == 2  # the sweep and its trial
    words = ["models:/swept@challenger", "--atlas", place.atlas, "--label", "cell_type"]
    evaluation = place.submit("evaluate", *words, "--job-name", "mine")
    assert evaluation.startswith("evaluate-mine-")
    log, _ = place.run("jobs", "logs", evaluation, "--follow")
    (run,) = place.mlflow_runs(evaluation)
    assert run.info.status == "FINISHED"
    page = f"{place.mlflow}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    assert f"{page}/artifacts/report.html" in log
    assert ".cellray/reports" not in log  # of the job's folder, which is gone


@pytest.mark.slow
def test_a_job_that_lacks_a_module_says_which_and_how_to_bring_it(place):
    plugin = place.folder / "plugin"
    plugin.mkdir()
    (plugin / "zarr.py").write_text("import absent_module\n")
    words = ["inspect", place.atlas, "--env", f"PYTHONPATH={plugin}"]
    out, err = place.run("submit", *words, "--follow", status=2)
    said = [line for line in out.splitlines() if line.startswith("error:")]
    assert said == [out.splitlines()[-1]]
    assert "the module absent_module is not installed where this ran" in said[0]
    assert "'cellray submit --pip PACKAGE'" in said[0]
    assert "failed with status 2" in err
    status, _ = place.run("jobs", "status", "last")
    assert "absent_module" in status


@pytest.mark.slow
def test_fifty_jobs_in_a_queue_end_in_order(place, tmp_path):
    """Two at a time, as the cluster has two CPUs and each job asks for one."""
    token = Path(place.cluster.env["RAY_AUTH_TOKEN_PATH"]).read_text()
    headers = {"Authorization": f"Bearer {token}"}
    jobs = Jobs(Address(place.cluster.dashboard, "test", headers))
    shipment = Shipment(tmp_path)
    shipment.add_code()
    env = {"MLFLOW_TRACKING_URI": place.mlflow}
    one = resources(["CPU=1"])
    submitted = {}
    for number in range(50):
        words = ["inspect", "s3://no-such-bucket/atlas"] if number % 12 == 5 else ["--version"]
        request = make_request("load", words, shipment, name=str(number), env=env, resources=one)
        submitted[jobs.submit(request)] = number
    last = max(submitted, key=submitted.get)
    until(lambda: left_behind(place))  # the jobs' processes are known by it
    assert jobs.info(last).status.value == "PENDING"
    assert jobs.stop(last)

    def states():
        return {job.submission_id: job for job in jobs.list() if job.submission_id in submitted}

    busy = 0
    until_all = time.monotonic() + 500
    while not ended(found := states()):
        running = [job for job in found.values() if job.status.value == "RUNNING"]
        busy = max(busy, len(running))
        assert time.monotonic() < until_all, jobs_by_status(found)
        time.sleep(1)
    assert busy <= 2
    for job, number in submitted.items():
        expected = "STOPPED" if job == last else "FAILED" if number % 12 == 5 else "SUCCEEDED"
        assert found[job].status.value == expected, found[job].message
    failed = [job for job in found.values() if job.status.value == "FAILED"]
    assert {job.driver_exit_code for job in failed} == {2}
    assert all("error: " in job.message for job in failed)
    until(lambda: not left_behind(place), seconds=60)


def left_behind(place):
    """Give the processes of the cluster's node that still belong to jobs."""
    folder = str(Path(place.cluster.env["RAY_AUTH_TOKEN_PATH"]).parent)
    nodes = [one for one in psutil.process_iter(["name"]) if one.info["name"] == "raylet"]
    found = []
    for process in nodes:
        with contextlib.suppress(psutil.Error):  # another's, which ends
            if folder in " ".join(process.cmdline()):
                family = [" ".join(one.cmdline()) for one in process.children(recursive=True)]
                assert family
                found += [
                    line for line in family if "JobSupervisor" in line or "-m cellray" in line
                ]
    return found


def ended(found):
    return all(job.status.is_terminal() for job in found.values())


def jobs_by_status(found):
    return sorted((job.status.value, name) for name, job in found.items())


def steps(place, run):
    """Give the steps whose losses MLflow holds."""
    return [step for step, _ in history(MlflowClient(place.mlflow), run.info.run_id)]


def published(place, run):
    """Give what the node's endpoint for Prometheus says of a run, and of the object store."""
    with urlopen(place.cluster.metrics, timeout=10) as told:
        families = text_string_to_metric_families(told.read().decode())
    samples = [sample for family in families for sample in family.samples]
    ours = [one for one in samples if one.labels.get("run", run.info.run_id) == run.info.run_id]
    return {one.name.removeprefix("ray_"): one.value for one in ours}


def until(condition, seconds=300):
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.5)


def sweep_file(place, recipe=None):
    """Write a sweep of one trial, of the place's recipe but for what is given."""
    file = place.folder / "sweep.yaml"
    space = {"optim.lr": {"loguniform": [1e-3, 2e-3]}}
    recipe = {"base": "recipe.yaml"} | (recipe or {})
    wanted = {"recipe": recipe, "space": space, "budget": {"trials": 1}}
    file.write_text(yaml.safe_dump(wanted))
    return file
