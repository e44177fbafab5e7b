"""What is said of a model that is worse than a baseline, and where its report is."""

import pandas as pd
import pytest

from cellray.answers import report_text, suite_text
from cellray.evaluation.report import verdicts
from cellray.tasks.task import Report


def report(metric="macro_f1", **means):
    """A report of two splits; its first score is of this metric, and a second one is opposite."""
    scores = [
        {"method": method, "readout": readout, "metric": of, "split": split, "value": value}
        for method, mean in means.items()
        for readout, of, sign in (("knn", metric, 1), ("probe", "micro_f1", -1))
        for split, value in enumerate((sign * mean - 0.1, sign * mean + 0.1))
    ]
    return Report("annotation", "Cells are labelled.", pd.DataFrame(scores))


def test_a_model_that_is_worse_is_said_to_be_by_its_main_score():
    found = verdicts(report(model=0.5, pca_all=0.6, untrained=0.5001, majority=0.9))
    assert found == (
        "worse than untrained: macro F1 (kNN (k = 5)) is 0.5000, and 0.5001 there",
        "worse than PCA (50), all cells: macro F1 (kNN (k = 5)) is 0.5000, and 0.6000 there",
    )
    assert verdicts(report(model=0.5, pca_all=0.4, untrained=0.5)) == ()
    assert verdicts(report(majority=0.5, untrained=0.6)) == ()


def test_of_an_error_the_lower_is_the_better():
    (found,) = verdicts(report("ece", model=0.5, pca_all=0.6, untrained=0.4))
    assert found.startswith("worse than untrained: calibration error")


@pytest.mark.parametrize("job", [None, "raysubmit_1"])
@pytest.mark.parametrize("page", [None, "http://h/#/experiments/1/runs/2/artifacts/report.html"])
def test_a_report_is_named_by_a_place_that_stays(job, page, monkeypatch):
    """A job's folder goes with it; where only the folder has the report, it is named still."""
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.delenv("RAY_JOB_SUBMISSION_ID", raising=False)
    if job is not None:
        monkeypatch.setenv("RAY_JOB_SUBMISSION_ID", job)
    made = report(model=0.5, untrained=0.6)
    document = made.document() | {"folder": "reports/x", "run_id": "2", "page": page}
    document["verdicts"] = verdicts(made)
    suite = {"reports": {"one": document}, "gates": None, "folder": "reports/x"}
    for text in (report_text(document), suite_text(suite)):
        assert ("reports/x/report.html" in text) == (job is None or page is None)
        assert (page or "worse than untrained") in text
        assert text.index("macro f1") < text.index("worse than untrained: macro F1")
