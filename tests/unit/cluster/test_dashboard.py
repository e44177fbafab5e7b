"""The Grafana dashboard shows what the code publishes, all of it and nothing else."""

import json
import re
from pathlib import Path

import pytest
import yaml

from cellray.feed.meters import TRAFFIC_COUNTERS
from cellray.serving import gauges as serving
from cellray.train import gauges as training

CLUSTER = Path(__file__).parents[3] / "cluster"
PUBLISHED = [
    *training.GAUGES.values(),
    *(training.STEP_SECONDS, training.CELLS),
    *TRAFFIC_COUNTERS.values(),
    *(serving.REQUESTS, serving.CELLS, serving.GENES),
    *serving.DRIFT.values(),
]
LABELS = {"run", "rank", "phase", "path", "status", "model", "le"}


@pytest.fixture(scope="module")
def dashboard():
    return json.loads((CLUSTER / "grafana" / "cellray.json").read_text())


@pytest.fixture(scope="module")
def panels(dashboard):
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def test_it_names_the_metrics_that_are_published(panels):
    known = {f"ray_{name}" for name, _ in PUBLISHED} | {f"ray_{serving.SECONDS[0]}_bucket"}
    assert len(known) == len(PUBLISHED) + 1
    exprs = [target["expr"] for panel in panels for target in panel["targets"]]
    assert {name for expr in exprs for name in re.findall(r"ray_\w+", expr)} == known
    labels = {
        name
        for expr in exprs
        for found in re.findall(r"by \((.*?)\)", expr)
        for name in found.split(", ")
    }
    assert labels <= LABELS


def test_every_module_that_publishes_is_looked_at():
    """A metric of ours that is made elsewhere would be missing above."""
    platform = CLUSTER.parent / "platform"
    users = {
        path.relative_to(platform / "cellray").as_posix()
        for path in platform.rglob("*.py")
        if re.search(r"ray\.util\.metrics|ray\.serve\.metrics|feed\.meters", path.read_text())
    }
    users -= {"feed/source.py"}  # it publishes what feed/meters.py names
    assert users == {"feed/meters.py", "serving/gauges.py", "train/gauges.py"}


def test_it_has_what_grafana_asks_for(dashboard, panels):
    assert dashboard["schemaVersion"] >= 36  # from then on a data source is a type and a uid
    assert {"title", "uid", "time", "templating", "panels"} <= set(dashboard)
    variables = {one["name"]: one for one in dashboard["templating"]["list"]}
    assert variables["datasource"]["query"] == "prometheus"
    source = {"type": "prometheus", "uid": "${datasource}"}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in panels:
        assert panel["datasource"] == source
        assert panel["targets"]
        assert set(panel["fieldConfig"]) == {"defaults", "overrides"}
        assert {"h", "w", "x", "y"} == set(panel["gridPos"])
        for target in panel["targets"]:
            assert target["datasource"] == source
            used = set(re.findall(r'=~"\$(\w+)"', target["expr"]))
            assert used <= set(variables)
            assert target["expr"].count("(") == target["expr"].count(")")


def test_no_two_panels_lie_on_each_other(dashboard):
    places = set()
    for panel in dashboard["panels"]:
        box = panel["gridPos"]
        assert box["x"] + box["w"] <= 24
        cells = {
            (x, y)
            for x in range(box["x"], box["x"] + box["w"])
            for y in range(box["y"], box["y"] + box["h"])
        }
        assert not cells & places
        places |= cells


def test_prometheus_finds_what_ray_writes():
    import ray._private.ray_constants as constants

    (job,) = yaml.safe_load((CLUSTER / "prometheus.yml").read_text())["scrape_configs"]
    (file,) = job["file_sd_configs"][0]["files"]
    assert Path(file).name == constants.PROMETHEUS_SERVICE_DISCOVERY_FILE
