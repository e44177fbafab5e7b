"""Log lines as JSON, in a process of their own: handlers are a process's."""

import json
import os
import subprocess
import sys

import pytest

from cellray.core import logs
from cellray.core.errors import CellrayError

LINES = """
import logging
from cellray.core import logs

log = logging.getLogger("cellray.feed.source")
log.warning("before")
logs.set_up(rank=3)
logs.set_up(rank=3)
log.warning("reading %s again", "c/0")
with logs.about(run="r1", rank=4):
    logs.say("train 5/10", facts={"train_loss": float("nan"), "done": 5})
try:
    1 / 0
except ZeroDivisionError:
    log.exception("it failed")
logging.getLogger("other").warning("not ours")
print(logs.context())
"""


def run(code, **env):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_job_goes_on_where_it_ran(monkeypatch):
    for name in ("RAY_JOB_SUBMISSION_ID", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    assert logs.resume_command("sweep", "7a") == "cellray sweep --resume 7a"
    monkeypatch.setenv("RAY_JOB_SUBMISSION_ID", "raysubmit_1")
    assert logs.resume_command("pretrain", "7a") == "cellray submit pretrain --resume 7a"


def test_lines_are_json_objects_with_what_is_known():
    done = run(LINES, CELLRAY_LOG="json", RAY_JOB_SUBMISSION_ID="raysubmit_1")
    assert done.returncode == 0, done.stderr
    first, *ours, last = done.stderr.splitlines()
    assert (first, last) == ("before", "not ours")
    again, told, failed = map(json.loads, ours)
    assert again.pop("time").endswith("+00:00")
    assert again == {
        "level": "warning",
        "logger": "cellray.feed.source",
        "message": "reading c/0 again",
        "job": "raysubmit_1",
        "rank": 3,
    }
    assert (told["level"], told["message"], told["run"], told["rank"]) == (
        *("info", "train 5/10"),
        *("r1", 4),
    )
    assert (told["train_loss"], told["done"]) == (None, 5)
    assert "run" not in failed
    assert failed["rank"] == 3
    assert "ZeroDivisionError" in failed["traceback"]
    assert done.stdout.strip() == "{'job': 'raysubmit_1', 'rank': 3}"


def test_lines_are_plain_unless_asked_for():
    done = run(LINES, CELLRAY_LOG="")
    assert done.returncode == 0, done.stderr
    assert "reading c/0 again\ntrain 5/10\nit failed\nTraceback" in done.stderr
    assert "{" not in done.stderr


def test_another_form_is_refused(monkeypatch):
    monkeypatch.setenv("CELLRAY_LOG", "xml")
    with pytest.raises(CellrayError, match="CELLRAY_LOG is 'xml'; set it to plain or json"):
        logs.set_up()


def test_errors_of_the_command_line_are_json_too():
    code = "import sys; from cellray.cli import main; sys.exit(main(['inspect', '/nowhere']))"
    done = run(code, CELLRAY_LOG="json")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    document = json.loads(line)
    assert document["level"] == "error"
    assert document["message"].startswith("error: no atlas at /nowhere")
    assert run(code, CELLRAY_LOG="xml").stderr.startswith("error: CELLRAY_LOG is 'xml'")
