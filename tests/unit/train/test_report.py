"""What the controller does with reports: records, tags, the planned cells, and failures."""

from types import SimpleNamespace

import pytest
from ray.exceptions import OutOfMemoryError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from cellray.atlas.plan import make_plan
from cellray.atlas.selection import Selection
from cellray.atlas.storage import StorageError
from cellray.core.errors import CellrayError
from cellray.core.recipe import Recipe
from cellray.track import runs
from cellray.track.store import client, tracking_uri
from cellray.train.exact import planned
from cellray.train.ledger import COLLAPSED, Ledger
from cellray.train.report import RunCallback

GOOD = {"step": 1.0, "embedding_std": 0.8, "effective_rank": 12.0}
FLAT = {"step": 2.0, "embedding_std": 0.8, "effective_rank": 1.1}
PLAN = make_plan(100, batch_size=8, slab_batches=2, epochs=2, seed=0)
SELECTION = Selection.everything(100)


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with runs.run(experiment="test", run_name="r", params={}, tags={}) as run_id:
        told = []
        setup = SimpleNamespace(choice=SimpleNamespace(plan=PLAN, selection=SELECTION))
        ledger = Ledger(
            setup,
            outbox=(run_id, tmp_path / "outbox.jsonl", tracking_uri()),
            logged=0,
            tell=told.append,
            step=0,
        )
        callback = RunCallback(Recipe(), None, setup, ledger, step=0)
        yield SimpleNamespace(
            callback=callback, ledger=ledger, run_id=run_id, told=told, outbox=ledger.outbox
        )
        ledger.outbox.close(60)


def report(made, *records, **facts):
    metrics = {"records": list(records), "step": int(records[-1]["step"])} | facts
    made.callback.after_report(None, [metrics], None)


def test_a_collapsed_run_is_tagged_and_the_tag_follows_it(made):
    report(made, GOOD)
    assert not made.told
    report(made, FLAT)
    assert "embeddings have collapsed" in made.told[0]["event"]
    report(made, {"step": 3.0, "train_loss": 1.0}, FLAT | {"step": 3.0})
    assert len(made.told) == 1  # it is said once
    report(made, GOOD | {"step": 4.0})
    assert "spread out again" in made.told[1]["event"]
    made.outbox.close(60)
    run = client().get_run(made.run_id)
    assert run.data.tags[COLLAPSED] == "false"
    ranks = client().get_metric_history(made.run_id, "effective_rank")
    assert [(one.step, one.value) for one in ranks] == [
        (1, 12.0),
        (2, 1.1),
        (3, 1.1),
        (4, 12.0),
    ]


def test_an_epoch_of_other_cells_than_planned_ends_the_run(made):
    cells, total = planned(PLAN, SELECTION, 0)
    report(made, {"step": 12.0, "train_loss": 1.0}, epoch=1, cells=cells, cells_hash=total)
    assert cells == PLAN.steps_per_epoch * 8
    for wrong in ({"cells": cells - 8}, {"cells_hash": total ^ 1}, {"epoch": 2}):
        facts = {"epoch": 1, "cells": cells, "cells_hash": total} | wrong
        with pytest.raises(RuntimeError, match="cells that are not the planned ones"):
            report(made, {"step": 12.0}, **facts)


def test_what_a_user_must_mend_is_not_tried_again(made):
    with pytest.raises(CellrayError, match="too much; less"):
        made.callback.after_exception(None, {1: CellrayError("too much", "less")})
    killed = WorkerHealthCheckFailedError("failed", failure=OutOfMemoryError("killed"))
    with pytest.raises(CellrayError, match=r"256 cells in 1 pass .*train\.accumulate to 2"):
        made.callback.after_exception(None, {0: killed})
    made.callback.after_exception(None, {0: StorageError("no answer", "wait")})
    assert "no answer" in made.told.pop()["event"]
    made.callback.after_exception(None, {1: RuntimeError("gloo: connection closed")})
    assert made.told == [{"event": "worker 1 failed (RuntimeError: gloo: connection closed)"}]


def test_what_mlflow_holds_already_is_not_sent_again(made):
    made.ledger._logged = 2
    report(made, *({"step": float(step), "train_loss": 1.0} for step in (1, 2, 3)))
    made.outbox.close(60)
    history = client().get_metric_history(made.run_id, "train_loss")
    assert [one.step for one in history] == [3]
