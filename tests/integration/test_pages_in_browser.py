"""The pages as people see them: opened in a real browser, without a network."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.image import imread
from tests.unit.conftest import make_cells
from tests.unit.evaluation.test_leaderboard import made_board
from tests.unit.evaluation.test_report import FACTS

from cellray.core.recipe import Recipe
from cellray.evaluation.board_page import render_board
from cellray.evaluation.report import render
from cellray.learn.embed import embed_matrix
from cellray.learn.learner import Learner
from cellray.tasks import finetune
from cellray.tasks.annotation import annotation
from cellray.tasks.integration import integration
from cellray.tasks.steps import Schedule
from cellray.tasks.task import Spec
from cellray.tasks.transfer import transfer

GENES = np.array([f"GENE{number}" for number in range(60)])
WIDTHS = (1280, 390)
"""Of a desk and of a telephone."""

PROMISED = {
    "annotation": {"scores", "classes", "confusion", "reliability", "umap_label", "umap_split"},
    "integration": {"scores", "umap_label", "umap_batch"},
    "transfer": {"few_labels"},
}


class Opened:
    """A page in the browser, with what it has asked for and complained of."""

    def __init__(self, browser, path, width):
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.asked, self.said = [], []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.goto(path.as_uri(), wait_until="load")

    @property
    def outside(self):
        """What of that is neither the file nor in it."""
        return [url for url in self.asked[1:] if not url.startswith("data:")]

    def count(self, script):
        return self.page.evaluate(script)


@pytest.fixture(scope="module")
def reports():
    cells = make_cells(240)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "Schedule", lambda: Schedule(steps=5))
        recipe = {"encoder": {"name": "mlp", "widths": [16], "dim": 8, "dropout": 0.0}}
        learner = Learner.of(Recipe.of(recipe), GENES.tolist())
        learners = {"model": learner, "untrained": learner.untrained()}
        champion = embed_matrix(learner, cells.counts, GENES)
        frozen = {**cells.frozen, "champion": champion}
        data = replace(cells, genes=GENES, learners=learners, frozen=frozen)
        spec = Spec(label="cell_type", split_by="donor", batch="donor", splits=2)
        found = {task.__name__: task(data, spec) for task in (annotation, integration)}
        found["transfer"] = transfer(data, Spec(label="cell_type", splits=1))
    facts = FACTS | {"champion": "models:/cells/1", "champion_seen_in_pretraining": 0.9}
    return {name: replace(report, facts=facts) for name, report in found.items()}


@pytest.fixture(scope="module")
def report_page(reports, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render(reports), encoding="utf-8")
    return path


def test_the_figures_are_those_that_are_promised(reports):
    for name, report in reports.items():
        assert PROMISED[name] <= {figure.name for figure in report.figures}


@pytest.mark.parametrize("width", WIDTHS)
def test_the_report_renders_and_asks_for_nothing(browser, reports, report_page, width):
    opened = Opened(browser, report_page, width)
    assert opened.outside == []
    assert opened.said == []
    figures = sum(len(report.figures) for report in reports.values())
    sizes = opened.count(
        "[...document.images].map(i => [i.complete, i.naturalWidth, i.offsetWidth])"
    )
    assert len(sizes) == figures
    assert all(complete and own > 100 and 0 < shown <= width for complete, own, shown in sizes)
    # Wide tables scroll within themselves: the page as a whole does not.
    assert opened.count("document.documentElement.scrollWidth") <= width
    assert opened.count("[...document.querySelectorAll('article')].map(a => a.id)") == [*reports]
    shown = opened.page.inner_text("#annotation table >> nth=0")
    value = reports["annotation"].metrics["model/knn/macro_f1"]
    assert re.search(rf"model\s+25.0%\s+{value:.4f} ± \d\.\d{{4}}\s+\[", shown)
    assert re.search(r"champion\s+90.0%", shown)
    opened.page.locator("details >> nth=0").click()
    assert opened.count("document.querySelector('details').open")
    image = imread(io.BytesIO(opened.page.screenshot(full_page=True)))
    assert image[..., :3].std() > 0.05  # not one colour
    opened.page.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_the_leaderboard_renders_and_asks_for_nothing(browser, tmp_path, width):
    path = tmp_path / "leaderboard.html"
    path.write_text(render_board(made_board()), encoding="utf-8")
    opened = Opened(browser, path, width)
    assert (opened.outside, opened.said) == ([], [])
    assert opened.count("[...document.images].map(i => i.complete && i.naturalWidth > 100)") == [
        True
    ]
    assert opened.count("document.documentElement.scrollWidth") <= width
    opened.page.close()


def test_a_page_that_asks_or_fails_would_be_caught_and_gets_nothing(browser, report_page, tmp_path):
    path = tmp_path / "evil.html"
    more = "<img src='http://127.0.0.1:9/a.png'><script>nothing.at.all</script></main>"
    path.write_text(report_page.read_text().replace("</main>", more))
    opened = Opened(browser, path, 1280)
    assert opened.outside == ["http://127.0.0.1:9/a.png"]
    assert sum("Content Security Policy" in line for line in opened.said) == 2
    assert not all(opened.count("[...document.images].map(i => i.naturalWidth > 100)"))
    opened.page.close()
