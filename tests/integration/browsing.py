"""A window of the browser on MLflow's pages, and pictures of what was seen.

They are kept in ``build/screenshots``.
"""

from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import expect

SHOTS = Path(__file__).parents[2] / "build" / "screenshots"
PATIENCE = 90_000
"""Milliseconds until a page that does not show what it should counts as wrong."""

# MLflow greets who is new with a dialogue and an assistant.
KNOWN = """
if (location.protocol === "http:") {
  localStorage.setItem("_mlflow_model_registry_promo_modal_dismissed_v1", "true");
  localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
  localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
}
"""
SHOWN = """
(count) => {
  const found = [...document.images].filter((one) => one.src.includes("get-artifact?"));
  return found.length === count && found.every((one) => one.complete && one.naturalWidth > 100);
}
"""


class Visit:
    """A window of the browser, with what it asked for and complained of."""

    def __init__(self, browser, **settings):
        self.context = browser.new_context(
            viewport={"width": 1440, "height": 1900}, accept_downloads=True, **settings
        )
        self.context.set_default_timeout(PATIENCE)
        self.context.add_init_script(KNOWN)
        self.asked, self.said = [], []
        self.context.on("request", lambda request: self.asked.append(request.url))
        self.context.on("console", self._hear)
        self.context.on("weberror", lambda error: self.said.append(str(error.error)))
        self.page = self.context.new_page()

    def _hear(self, message):
        if message.type in {"error", "warning"}:
            self.said.append(message.text)

    @property
    def outside(self):
        """What was asked of other machines."""
        hosts = {urlsplit(url).hostname for url in self.asked if url.startswith(("http", "ws"))}
        return hosts - {"127.0.0.1"}

    def follow(self, link):
        """Go where a link leads; MLflow opens some in a window of their own."""
        if link.get_attribute("target") != "_blank":
            link.click()
            return
        with self.context.expect_page() as opened:
            link.click()
        self.page.close()
        self.page = opened.value

    def pictures(self, count):
        """Wait until so many artifacts are shown as pictures."""
        self.page.wait_for_function(SHOWN, arg=count)

    def keep(self, name):
        """Keep what is to be seen."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


@contextmanager
def visiting(browser, **settings):
    expect.set_options(timeout=PATIENCE)
    visit = Visit(browser, **settings)
    yield visit
    assert visit.outside == set()
    visit.context.close()
