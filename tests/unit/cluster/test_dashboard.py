"""The Grafana dashboard shows what the code publishes, all of it and nothing else."""

import json
import re
from functools import cache
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

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


# Grafana takes the second form of dashboards too, but only lately; this one goes into all.
@pytest.mark.filterwarnings("ignore:Prefer using dashboardv2:DeprecationWarning")
def test_grafanas_schema_knows_all_of_it(dashboard):
    assert [*faults(dashboard)] == []


@pytest.mark.filterwarnings("ignore:Prefer using dashboardv2:DeprecationWarning")
@pytest.mark.parametrize(
    ("right", "wrong", "found"),
    [
        ('"schemaVersion"', '"schemaversion"', ".schemaversion is unknown"),
        ('"includeAll"', '"includeall"', ".templating.list[1].includeall is unknown"),
        ('"displayMode"', '"display"', ".panels[1].options.legend.display is unknown"),
        ('"legendFormat"', '"legend"', ".panels[1].targets[0].legend is unknown"),
        ('"multi": true', '"multi": "yes"', ".templating.list_val[1].multi is 'yes'"),
        ('"mode": "multi"', '"mode": "many"', ".panels[1].options.tooltip.mode is 'many'"),
        ('"title": "Training loss"', '"title": 7', ".panels[2].title is 7"),
        ('"unit": "percentunit"', '"unit": "percents"', "the unit percents is unknown"),
    ],
)
def test_the_schema_finds_what_is_wrong(dashboard, right, wrong, found):
    text = json.dumps(dashboard)
    assert right in text
    assert found in [*faults(json.loads(text.replace(right, wrong)))]


def faults(dashboard):
    """Hold a dashboard against Grafana's schema: keys, types, units."""
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models import units
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()  # what the options of each kind of panel are
    parsed = Dashboard.from_json(dashboard)
    yield from lost(dashboard, json.loads(json.dumps(parsed, cls=JSONEncoder)))
    yield from mistyped(parsed)
    for panel in dashboard["panels"]:
        unit = panel.get("fieldConfig", {}).get("defaults", {}).get("unit", "none")
        if unit not in vars(units).values() and not unit.startswith("suffix:"):
            yield f"the unit {unit} is unknown"


def lost(ours, theirs, where=""):
    """Name what is not there, or another, once Grafana's own classes have read and written it."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key, value in ours.items():
            if key in theirs:
                yield from lost(value, theirs[key], f"{where}.{key}")
            else:
                yield f"{where}.{key} is unknown"
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for number, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from lost(mine, other, f"{where}[{number}]")
    elif ours != theirs:
        yield f"{where} is {ours!r}, and was read as {theirs!r}"


def mistyped(value, where=""):
    """Name what is of another type than the classes say, which do not look themselves."""
    if isinstance(value, list):
        for number, one in enumerate(value):
            yield from mistyped(one, f"{where}[{number}]")
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from mistyped(one, f"{where}.{key}")
    elif hasattr(value, "to_json"):
        for name, hint in get_type_hints(type(value)).items():
            one = getattr(value, name)
            if not fits(one, hint):
                yield f"{where}.{name} is {one!r}"
            yield from mistyped(one, f"{where}.{name}")


def fits(value, hint):
    try:
        found = checker(hint).validate_python(value)
    except ValidationError:
        return False
    # Pydantic would make a number of "8" and a truth of 1, and be content.
    return found == value and isinstance(found, bool) == isinstance(value, bool)


@cache
def checker(hint):
    return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))


def test_its_data_source_and_variables_are_its_own(dashboard, panels):
    variables = {one["name"]: one for one in dashboard["templating"]["list"]}
    assert variables["datasource"]["query"] == "prometheus"
    source = {"type": "prometheus", "uid": "${datasource}"}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in panels:
        assert panel["datasource"] == source
        assert panel["targets"]
        for target in panel["targets"]:
            assert target["datasource"] == source
            assert set(re.findall(r'=~"\$(\w+)"', target["expr"])) <= set(variables)


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
