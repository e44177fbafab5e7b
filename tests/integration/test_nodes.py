"""Clusters of several raylets: workers on many nodes, a node that goes, and one that comes."""

import pytest
from ray.cluster_utils import Cluster
from ray.util.state import list_actors, list_tasks
from tests.integration.driver import RECIPE, check_undisturbed, history, start

from cellray.atlas.simulate import Simulation, simulate_anndata
from cellray.atlas.write import ingest
from cellray.cli import main
from cellray.cluster.address import Address
from cellray.cluster.follow import follow, wait
from cellray.cluster.jobs import Jobs, Request
from cellray.cluster.processes import free_ports
from cellray.cluster.settings import resources
from cellray.core.recipe import Recipe

pytestmark = pytest.mark.slow
NODE = {"num_cpus": 1, "object_store_memory": 200_000_000}


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    folder = tmp_path_factory.mktemp("atlas")
    cells = simulate_anndata(Simulation(n_cells=1_000, n_genes=200, seed=3))
    cells.write_h5ad(folder / "cells.h5ad")
    return ingest([folder / "cells.h5ad"], folder / "cells.zarr").url


@pytest.fixture
def cluster(request):
    """A head with room for the driver and the reads, to which nodes are added."""
    head = {"num_cpus": 2, "object_store_memory": 300_000_000}
    head["include_dashboard"] = getattr(request, "param", False)
    head["dashboard_port"], head["dashboard_agent_listen_port"] = free_ports(2)
    made = Cluster(initialize_head=True, head_node_args=head)
    yield made
    made.shutdown()


@pytest.fixture
def launch(cluster, atlas, tmp_path, monkeypatch):
    started = []

    def launch(*changes):
        recipe = Recipe.of(RECIPE).with_(list(changes))
        (tmp_path / "recipe.yaml").write_text(recipe.dump())
        store = f"sqlite:///{tmp_path}/mlflow.db"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
        words = ["--recipe", "recipe.yaml", "--atlas", atlas, "--name", "nodes"]
        env = {"RAY_ADDRESS": cluster.address}
        started.append(start(tmp_path, *words, store=store, env=env))
        return started[-1], recipe

    yield launch
    for driver in started:
        if driver.process.poll() is None:
            driver.kill()


def test_a_node_that_is_removed_costs_no_cell(cluster, launch, atlas):
    node = cluster.add_node(**NODE)
    cluster.wait_for_nodes()
    driver, recipe = launch("train.num_workers=2", "train.placement=SPREAD", "train.epochs=40")
    run_id = driver.until_step(20)
    cluster.remove_node(node, allow_graceful=False)
    assert driver.ended(400) == 0, driver.said()
    assert "failed" in driver.said()  # a worker was on that node
    check_undisturbed(driver, run_id, recipe, atlas)


def test_an_elastic_run_shrinks_with_its_cluster(cluster, launch, atlas):
    node = cluster.add_node(**NODE, resources={"seat": 1})
    cluster.add_node(**NODE, resources={"seat": 1})
    cluster.wait_for_nodes()
    driver, recipe = launch(
        "train.num_workers=[1, 2]",
        "train.strategy=fsdp",
        "train.resources_per_worker={seat: 1}",
        "train.epochs=40",
    )
    run_id = driver.until_step(20)
    cluster.remove_node(node, allow_graceful=False)
    assert driver.ended(400) == 0, driver.said()
    check_undisturbed(driver, run_id, recipe, atlas)
    worlds = {value for _, value in history(driver.client, run_id, "workers")}
    assert worlds == {1.0, 2.0}


@pytest.mark.parametrize("cluster", [True], indirect=True, ids=["dashboard"])
def test_workers_reads_and_jobs_run_on_the_nodes_that_have_their_labels(cluster, launch, atlas):
    nodes = {
        role: cluster.add_node(**NODE, labels={"cellray/role": role}).node_id
        for role in ("feed", "train")
    }
    cluster.wait_for_nodes()
    driver, _ = launch(
        "train.num_workers=2",
        "train.labels={cellray/role: train}",
        "train.read_labels={cellray/role: feed}",
        "train.epochs=40",
    )
    driver.until_step(5)
    ids = {"address": f"http://{cluster.webui_url}", "limit": 1_000, "detail": True}
    workers = [one.node_id for one in list_actors(**ids) if "RayTrainWorker" in one.class_name]
    reads = [one.node_id for one in list_tasks(**ids) if one.name.startswith("Read")]
    reads = [node for node in reads if node is not None]  # those that wait have none yet
    assert workers == 2 * [nodes["train"]]
    assert reads
    assert set(reads) == {nodes["feed"]}
    driver.kill()

    # A job's own process too, where it asks: twice, since chance finds one node of three.
    jobs = Jobs(Address(ids["address"], "test"))
    for role in ("feed", "train"):
        taken = resources(["CPU=0.1", f"cellray/role={role}"])
        done = wait(jobs, jobs.submit(Request(role, "true", {}, resources=taken)), 120)
        assert (done.status.value, done.driver_node_id) == ("SUCCEEDED", nodes[role]), done


@pytest.mark.parametrize("cluster", [True], indirect=True, ids=["dashboard"])
def test_a_job_whose_node_is_lost_is_followed_to_its_end(cluster, capfd):
    """Its log is gone with the node; how it ended is not."""
    node = cluster.add_node(**NODE, resources={"seat": 1})
    cluster.wait_for_nodes()
    url = f"http://{cluster.webui_url}"
    jobs, seat = Jobs(Address(url, "test")), resources(["seat=1"])
    job = jobs.submit(Request("lost", "echo begun; sleep 1000", {}, resources=seat))
    written = []

    def write(text):
        written.append(text)
        if text.startswith("begun") or "\nbegun" in text:
            cluster.remove_node(node, allow_graceful=False)

    assert follow(jobs, job, write).status.value == "FAILED"
    assert "begun\n" in "".join(written)
    # And by who comes later.
    assert main(["jobs", "logs", job, "--follow", "--address", url]) == 1
    assert "lost: failed, " in capfd.readouterr().err
