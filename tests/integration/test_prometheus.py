"""A real Prometheus beside a real Ray cluster: what it makes of the configuration, and what it
answers to every query of the dashboard, put as Grafana puts them."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
from tests.integration.conftest import process, started_cluster, wait_for
from tests.pages import ROOT, blocks, commands

from cellray.cluster.processes import free_ports
from cellray.feed.meters import TRAFFIC_COUNTERS
from cellray.serving import gauges as serving
from cellray.train.gauges import CELLS, GAUGES, PHASES

CONFIG = ROOT / "cluster" / "prometheus.yml"
DASHBOARD = json.loads((ROOT / "cluster" / "grafana" / "cellray.json").read_text())
PAGE = ROOT / "docs" / "observability.md"
LABELS = ("run", "rank", "phase", "path", "status", "model")
WINDOW = 20
"""Seconds of ``$__rate_interval``; Grafana makes it as long as four scrapes at least."""
STEP = 15
"""Seconds between two points: Grafana asks for no closer ones, unless the data source says so."""
PATIENCE = 120


def record(scale, ranks):
    """Give what each rank of a run tells."""
    told = [{key: scale + i + rank / 4 for i, key in enumerate(GAUGES)} for rank in range(ranks)]
    for rank, one in enumerate(told):
        one |= {f"seconds_{phase}": scale / 8 + i + rank for i, phase in enumerate(PHASES)}
        one["cells"] = 256 + rank
    del told[-1]["seconds_allreduce"]
    return told


ON, ONCE = "0c4d2f9be1a34c0d8b2f61de5a7c9e13", "f7a91c3e5b7d4f0f9a8c6d2e4b1f0a35"
"""A run whose records come all the time; one whose rank came back elsewhere, and fell silent."""
TRAINING = {ON: record(8.0, 2), ONCE: record(3.0, 1)}
TRAFFIC = {"requests": 12, "retries": 3, "bytes": 4096}
SERVED = {
    "models:/served.on-two/1": {"path": "/embed", "status": 200, "seconds": 0.02, "replicas": 2},
    "models:/other/7": {"path": "/model", "status": 401, "seconds": 0.3, "replicas": 1},
}
QUANTILES = {  # straight lines between the bounds of the bucket that the seconds lie in
    0.5: {"/embed": 0.01 + 0.5 * 0.015, "/model": 0.25 + 0.5 * 0.25},
    0.99: {"/embed": 0.01 + 0.99 * 0.015, "/model": 0.25 + 0.99 * 0.25},
}
DRIFT = {key: (i + 1) / 8 for i, key in enumerate(serving.DRIFT)}

WORKERS = """
import json, sys, time
import ray

@ray.remote(num_cpus=0.1)
class Worker:
    def train(self, record, run, rank):
        from cellray.train.gauges import publish
        publish(record, run=run, rank=rank)

    def read(self, amounts):
        from cellray.atlas.traffic import TRAFFIC  # this process's own
        from cellray.feed.meters import publish_traffic
        TRAFFIC.add(**amounts)
        publish_traffic()

    def serve(self, model, told, drift, number):
        from cellray.serving import gauges
        gauges.answered(told["path"], told["status"], told["seconds"], model=model)
        gauges.embedded(5, 0.5 + number / 4, model=model)
        gauges.drifted(drift, model=model)

training, traffic, served, drift = map(json.loads, sys.argv[1:])
(on, ranks), (once, (record,)) = training.items()
ray.init(address="auto", log_to_driver=False)
workers = [Worker.remote() for _ in range(2)]
ray.get([worker.train.remote(record, once, 0) for worker in workers])
while True:
    doing = [workers[rank].train.remote(told, on, rank) for rank, told in enumerate(ranks)]
    doing += [worker.read.remote(traffic) for worker in workers]
    doing += [
        workers[number].serve.remote(model, told, drift, number)
        for model, told in served.items()
        for number in range(told["replicas"])
    ]
    ray.get(doing)
    time.sleep(0.25)
"""


def program(name):
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} on the PATH (Debian: prometheus)")
    return found


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus.

    Attributes
    ----------
    url
        Where it answers.
    end
        The time until which tests ask, in seconds since 1970.
    """

    url: str
    end: float = 0.0

    def ask(self, path, **words):
        with urlopen(f"{self.url}/api/v1/{path}?{urlencode(words, doseq=True)}") as answer:
            document = json.load(answer)
        assert document["status"] == "success", document
        assert not document.get("warnings"), document
        return document["data"]

    def series(self, query, **words):
        return self.ask("query", query=query, **words)["result"]

    def last(self, query):
        """Give the labels and the last value of every series of a panel's query."""
        words = {"start": self.end - 4 * STEP, "end": self.end, "step": STEP}
        for series in self.ask("query_range", query=query, **words)["result"]:
            when, value = series["values"][-1]
            if when == self.end:
                yield series["metric"], float(value)

    def targets(self):
        return {one["scrapeUrl"]: one["health"] for one in self.ask("targets")["activeTargets"]}


def until(look):
    end = time.monotonic() + PATIENCE
    while not (found := look()):
        assert time.monotonic() < end, "Prometheus does not see what is asked for"
        time.sleep(0.25)
    return found


@contextmanager
def prometheus(folder, discovery):
    """Start it as observability.md does, at a port of its own, looking every second.

    Of its configuration only the intervals and the place of Ray's list are others.
    """
    listed = "/tmp/ray/prom_metrics_service_discovery.json"
    config = re.sub(r"(interval:) \d+s", r"\1 1s", CONFIG.read_text())
    assert listed in config
    (folder / "prometheus.yml").write_text(config.replace(listed, str(discovery)))
    (port,) = free_ports(1)
    test = Path(__file__).relative_to(ROOT).as_posix()
    (block,) = (one for one in blocks(PAGE) if (one.how, one.what) == ("run", test))
    (words,) = commands(block.text)
    ours = {
        "prometheus": program("prometheus"),
        "cluster/prometheus.yml": folder / "prometheus.yml",
        "127.0.0.1:9090": f"127.0.0.1:{port}",
    }
    assert set(ours) < set(words)
    command = [ours.get(word, word) for word in words]
    log = folder / "prometheus.log"
    with process([*command, f"--storage.tsdb.path={folder / 'data'}"], log):
        wait_for(f"http://127.0.0.1:{port}/-/ready", log)
        yield Prometheus(f"http://127.0.0.1:{port}")


@pytest.fixture(scope="module")
def ray_cluster():
    """Give one of its own: what other tests have trained and served would be in the same panels."""
    with started_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def watching(ray_cluster, tmp_path_factory):
    """Prometheus when it has seen workers publish for as long as rates look back."""
    folder = tmp_path_factory.mktemp("prometheus")
    program("prometheus")
    told = map(json.dumps, (TRAINING, TRAFFIC, SERVED, DRIFT))
    env = {**os.environ, **ray_cluster.env, "RAY_ADDRESS": ray_cluster.address}
    publishing = process([sys.executable, "-c", WORKERS, *told], folder / "workers.log", env=env)
    with prometheus(folder, ray_cluster.discovery) as server, publishing as driver:

        def seen():
            assert driver.poll() is None, (folder / "workers.log").read_text()
            return server.series(f'ray_{serving.CELLS[0]}{{model="models:/other/7"}}')

        until(seen)
        time.sleep(WINDOW + 2)
        yield Prometheus(server.url, end=math.floor(time.time()))


def put(query, chosen):
    """Put in the variables as Grafana does: all are ``.*``, one is escaped, several are joined."""
    for name, values in chosen.items():
        escaped = [re.sub(r"([\\$^*{}\[\]'+?.()|])", r"\\\\\1", value) for value in values]
        one = escaped[0] if len(escaped) == 1 else f"({'|'.join(escaped)})"
        query = query.replace(f"${name}", one if values else ".*")
    query = query.replace("$__rate_interval", f"{WINDOW}s")
    assert "$" not in query
    return query


def ranks(key):
    return {
        (run, str(rank)): told[key]
        for run, records in TRAINING.items()
        for rank, told in enumerate(records)
        if key in told
    }


def runs(key):
    return {(run,): max(told[key] for told in records) for run, records in TRAINING.items()}


def phases():
    found = {}
    for run, records in TRAINING.items():
        for phase in PHASES:
            if values := [told[key] for told in records if (key := f"seconds_{phase}") in told]:
                found[run, phase] = sum(values) / len(values)
    return found


def served(value):
    return {(model,): value for model in SERVED}


def quantile(share):
    return {(told["path"],): QUANTILES[share][told["path"]] for told in SERVED.values()}


LEVELS = {
    ("Cells trained on a second", "A"): runs("cells_per_s"),
    ("Training loss", "A"): ranks("train_loss"),
    ("Steps done", "A"): runs("step"),
    ("Seconds of a step, by phase", "A"): phases(),
    ("Memory of the workers", "A"): ranks("worker_memory_gib"),
    ("Memory of the workers", "B"): ranks("gpu_memory_gib"),
    ("Share of the device's peak FLOP/s", "A"): ranks("mfu"),
    ("Share of time spent waiting for batches", "A"): ranks("feed_wait_share"),
    ("Seconds of an answer", "A"): quantile(0.5),
    ("Seconds of an answer", "B"): quantile(0.99),
    ("Share of the model's genes in requests", "A"): served(0.5),
    ("Library sizes and genes detected", "A"): served(DRIFT["library"]),
    ("Library sizes and genes detected", "B"): served(DRIFT["detected"]),
    ("Detection rates of genes", "A"): served(DRIFT["detection"]),
    ("Log expression of genes", "A"): served(DRIFT["expression"]),
    ("Embeddings", "A"): served(DRIFT["embedding"]),
}
"""What each query gives of what is published: values by labels."""
RATES = {
    ("Cells trained on a second", "B"): (CELLS, ("run",)),
    ("Reads a second", "A"): (TRAFFIC_COUNTERS["requests"], ()),
    ("Reads a second", "B"): (TRAFFIC_COUNTERS["retries"], ()),
    ("Bytes a second", "A"): (TRAFFIC_COUNTERS["bytes"], ()),
    ("Requests a second", "A"): (serving.REQUESTS, ("path", "status")),
    ("Cells embedded a second", "A"): (serving.CELLS, ("model",)),
}
"""The counter of each query of rates, and the labels over which it adds up."""
QUERIES = [(panel, target) for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]


def slopes(server, counter, labels, chosen):
    """Add up by hand how fast the series of a counter grow."""
    found = Counter()
    for series in server.series(f"ray_{counter[0]}[{WINDOW}s]", time=server.end):
        tags = series["metric"]
        ours = {"run": TRAINING, "model": SERVED}
        if all(tags[key] in (chosen[key] or ours[key]) for key in ours if key in tags):
            (began, first), *_, (ended, last) = series["values"]
            rate = (float(last) - float(first)) / (ended - began)
            found[tuple(tags[label] for label in labels)] += rate
    return found


CHOICES = {
    "all": {"run": [], "model": []},
    "one": {"run": [ON], "model": ["models:/served.on-two/1"]},
    "two": {"run": [ONCE, ON], "model": [*SERVED]},
}


@pytest.mark.parametrize("choice", CHOICES)
def test_every_panel_shows_what_is_published(watching, choice):
    chosen = CHOICES[choice]
    runs, models = chosen["run"] or TRAINING, chosen["model"] or SERVED
    kept = {*runs, *models, *(SERVED[model]["path"] for model in models)}
    names = Counter()
    assert {*LEVELS, *RATES} == {(panel["title"], one["refId"]) for panel, one in QUERIES}
    for panel, target in QUERIES:
        key = panel["title"], target["refId"]
        found, expected = {}, slopes(watching, *RATES[key], chosen) if key in RATES else {}
        for tags, value in watching.last(put(target["expr"], chosen)):
            found[tuple(tags[label] for label in LABELS if label in tags)] = value
            legend = re.sub(
                r"{{(\w+)}}", lambda label, tags=tags: tags[label[1]], target["legendFormat"]
            )
            names[panel["title"], legend] += 1
        if key in LEVELS:
            expected = {tags: value for tags, value in LEVELS[key].items() if tags[0] in kept}
            assert found == pytest.approx(expected, rel=1e-6), key
        else:
            assert found == pytest.approx(expected, rel=0.05), key
            assert max(found.values()) > 0
    assert set(names.values()) == {1}  # no two lines of a panel bear the same name


def test_the_variables_offer_runs_and_models(watching):
    offered = {}
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            query = variable["query"]["query"]
            metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", query).groups()
            words = {"match[]": metric, "start": watching.end - 3600, "end": watching.end}
            offered[variable["name"]] = set(watching.ask(f"label/{label}/values", **words))
    assert set(offered) == {"run", "model"}
    assert offered["run"] >= set(TRAINING)
    assert offered["model"] >= set(SERVED)


def test_all_that_ray_lists_is_scraped(watching, ray_cluster):
    assert set(watching.targets().values()) == {"up"}
    (listed,) = json.loads(ray_cluster.discovery.read_text())
    assert len(watching.targets()) == len(listed["targets"])


def test_a_level_outlives_its_sample_in_the_dashboard(watching):
    """Ray drops a gauge that is not set again; for what it told last a panel looks back."""
    told = f'ray_{GAUGES["train_loss"][0]}{{run="{ONCE}"}}'
    until(lambda: not watching.series(told))
    (expr,) = (one["expr"] for panel, one in QUERIES if panel["title"] == "Training loss")
    (series,) = watching.series(put(expr, {"run": [ONCE]}))
    assert float(series["value"][1]) == TRAINING[ONCE][0]["train_loss"]


def test_a_node_that_joins_is_found(tmp_path):
    """Ray replaces a file that a link names, of which a watcher of the link hears nothing."""
    (tmp_path / "session").mkdir()
    listed, link = tmp_path / "session" / "listed.json", tmp_path / "discovery.json"
    link.symlink_to(listed)

    def lists(*targets):
        new = listed.with_name("new")
        new.write_text(json.dumps([{"targets": [*targets]}]))
        new.replace(listed)

    lists("127.0.0.1:1")
    with prometheus(tmp_path, link) as server:
        until(lambda: len(server.targets()) == 1)
        lists("127.0.0.1:1", "127.0.0.1:2")
        until(lambda: len(server.targets()) == 2)


def test_promtool_takes_the_configuration():
    done = subprocess.run(
        [program("promtool"), "check", "config", CONFIG], capture_output=True, text=True
    )
    assert (done.returncode, "SUCCESS" in done.stdout) == (0, True), done.stdout + done.stderr
