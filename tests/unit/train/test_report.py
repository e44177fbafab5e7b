"""What the controller tells MLflow: records, and whether embeddings have collapsed."""

import pytest

from cellray.track import runs
from cellray.track.store import client, tracking_uri
from cellray.train.report import COLLAPSED, RunCallback

GOOD = {"step": 1.0, "embedding_std": 0.8, "effective_rank": 12.0}
FLAT = {"step": 2.0, "embedding_std": 0.8, "effective_rank": 1.1}


@pytest.fixture
def callback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with runs.run(experiment="test", run_name="r", params={}, tags={}) as run_id:
        made = RunCallback(
            run_id=run_id,
            uri=tracking_uri(),
            ticker=tmp_path / "ticks",
            atlas=None,
            plan=None,
            selection=None,
            world=1,
        )
        yield made, run_id


def test_a_collapsed_run_is_tagged_and_the_tag_follows_it(callback):
    made, run_id = callback

    def report(*records):
        metrics = {"records": list(records), "step": int(records[-1]["step"])}
        made.after_report(None, [metrics], None)
        return client().get_run(run_id).data.tags.get(COLLAPSED)

    assert report(GOOD) is None
    assert report(FLAT) == "true"
    assert report({"step": 3.0, "train_loss": 1.0}) == "true"
    assert report(GOOD | {"step": 4.0}) == "false"
    assert client().get_run(run_id).data.metrics["effective_rank"] == 12.0
