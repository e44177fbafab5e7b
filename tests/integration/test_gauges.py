"""What a worker publishes comes out of its node's Prometheus endpoint."""

import os
import subprocess
import sys
import time
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cellray.feed.meters import TRAFFIC_COUNTERS
from cellray.train.gauges import CELLS, GAUGES, PHASES, STEP_SECONDS

SECONDS = 60
RUN = "0123456789abcdef0123456789abcdef"

WORKERS = """
import sys, time
from pathlib import Path
import ray
from cellray.feed.meters import publish_traffic
from cellray.train.gauges import GAUGES, PHASES, publish

@ray.remote(num_cpus=0.1)
class Worker:
    def __init__(self, run):
        self.run = run

    def record(self, number, rank):
        seconds = {f"seconds_{name}": 0.125 * (i + 1) for i, name in enumerate(PHASES)}
        if rank:
            del seconds["seconds_allreduce"]
        known = {key: 8.5 * number + i + rank / 4 for i, key in enumerate(GAUGES)}
        publish(known | seconds | {"cells": 256 + rank, "lr": 1.0}, run=self.run, rank=rank)

    def read(self, times):
        from cellray.atlas.traffic import TRAFFIC  # this process's own

        for _ in range(times):
            TRAFFIC.add(requests=3, retries=1, bytes=4096)
            publish_traffic()

    def check(self):
        publish({"cells": 0}, run=self.run, rank=2)

ray.init(address="auto", log_to_driver=False)
workers = [Worker.remote(sys.argv[1]) for _ in range(2)]
for number in range(3):
    ray.get([worker.record.remote(number, rank) for rank, worker in enumerate(workers)])
ray.get(workers[0].check.remote())
ray.get([worker.read.remote(2) for worker in workers])
Path(sys.argv[2]).touch()
time.sleep(60)
"""


def traffic(url):
    """Give what all workers of the node have asked of object stores."""
    until = time.monotonic() + SECONDS
    while True:  # a node that has just started does not answer yet
        try:
            with urlopen(url, timeout=10) as answer:
                families = [*text_string_to_metric_families(answer.read().decode())]
            break
        except URLError:
            if time.monotonic() > until:
                raise
            time.sleep(0.5)
    return {
        key: sum(one.value for family in families for one in family.samples if one.name == name)
        for key, name in ((key, f"ray_{name}") for key, (name, _) in TRAFFIC_COUNTERS.items())
    }


def samples(url):
    """Give the values of our metrics, by name and tags, and their helps, by name."""
    with urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    values, helps = {}, {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("ray_cellray_") and sample.labels.get("run") == RUN:
                tags = {key: sample.labels.get(key) for key in ("rank", "phase")}
                values[(sample.name, tags["rank"], tags["phase"])] = sample.value
                helps[sample.name] = family.documentation
    return values, helps


def expected():
    for rank in (0, 1):
        for i, (name, _) in enumerate(GAUGES.values()):
            yield (f"ray_{name}", str(rank), None), 8.5 * 2 + i + rank / 4
        for i, phase in enumerate(PHASES[: len(PHASES) - rank]):
            yield (f"ray_{STEP_SECONDS[0]}", str(rank), phase), 0.125 * (i + 1)
        yield (f"ray_{CELLS[0]}", str(rank), None), 3 * (256 + rank)


def test_a_node_serves_what_its_workers_publish(ray_cluster, tmp_path):
    before = traffic(ray_cluster.metrics)
    told = tmp_path / "told"
    env = {**os.environ, **ray_cluster.env, "RAY_ADDRESS": ray_cluster.address}
    driver = subprocess.Popen(
        [sys.executable, "-c", WORKERS, RUN, told], env=env, stderr=subprocess.PIPE, text=True
    )
    try:
        while not told.exists():
            if driver.poll() is not None:
                pytest.fail(driver.stderr.read())
            time.sleep(0.1)
        until = time.monotonic() + SECONDS
        wanted = dict(expected())
        while time.monotonic() < until:
            found, now = samples(ray_cluster.metrics), traffic(ray_cluster.metrics)
            if found[0] == wanted and now["requests"] > before["requests"]:
                break
            time.sleep(0.5)
        read = {key: value - before[key] for key, value in now.items()}
    finally:
        driver.kill()
        driver.communicate()
    values, helps = found
    assert values == wanted
    assert read == {"requests": 12, "retries": 4, "bytes": 4 * 4096}
    for name, meaning in [*GAUGES.values(), STEP_SECONDS, CELLS]:
        assert helps[f"ray_{name}"] == meaning
