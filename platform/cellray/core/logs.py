"""Log lines of cellray's: as Python prints them, or one JSON object each.

``CELLRAY_LOG=json`` chooses. Entry points and workers call `set_up`; what they know of themselves
(run, job, rank) stands in every line from then on.
"""

import json
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from cellray.core.errors import CellrayError

VARIABLE = "CELLRAY_LOG"
FORMS = ("plain", "json")

_known: dict[str, Any] = {}


def set_up(**known: object) -> None:
    """Make this process's lines what the environment asks for.

    Parameters
    ----------
    known
        What stands in every line from now on, such as ``run`` and ``rank``; None takes it out.

    Raises
    ------
    CellrayError
        ``CELLRAY_LOG`` is none of `FORMS`.
    """
    form = os.environ.get(VARIABLE) or "plain"
    if form not in FORMS:
        raise CellrayError(f"{VARIABLE} is '{form}'", f"set it to {' or '.join(FORMS)}")
    if "job" not in _known and (job := submission_id()):
        _known["job"] = job
    _known.update(known)
    log = logging.getLogger("cellray")
    if form == "json" and not as_json():
        handler = logging.StreamHandler()
        handler.setFormatter(Json())
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False


def as_json() -> bool:
    """Say whether `set_up` has made this process's lines JSON."""
    handlers = logging.getLogger("cellray").handlers
    return any(isinstance(handler.formatter, Json) for handler in handlers)


def context() -> dict[str, Any]:
    """Give what stands in every line, for `set_up` in another process."""
    return {name: value for name, value in _known.items() if value is not None}


@contextmanager
def about(**known: object) -> Iterator[None]:
    """Let what is known stand in every line while the block runs."""
    before = {name: _known.get(name) for name in known}
    _known.update(known)
    try:
        yield
    finally:
        _known.update(before)


def say(line: str, *, level: int = logging.INFO, facts: Mapping[str, Any] | None = None) -> None:
    """Tell a person something on stderr; where lines are JSON, as one of them.

    Parameters
    ----------
    line
        In words.
    level
        Of the JSON line.
    facts
        What else the JSON line holds.
    """
    if as_json():
        logging.getLogger("cellray").log(level, line, extra={"facts": dict(facts or {})})
    else:
        print(line, file=sys.stderr, flush=True)


class Json(logging.Formatter):
    """One JSON object a record: time (ISO 8601, UTC), level, logger, message, what is known."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record; a traceback is a field of its own."""
        document = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **context(),
            **{name: _finite(value) for name, value in getattr(record, "facts", {}).items()},
        }
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        return json.dumps(document, ensure_ascii=False, default=str)


def _finite(value: object) -> object:
    """Give None for what JSON has no word for: a loss may be no number."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def resume_command(verb: str, run_id: str) -> str:
    """Give the command that goes on with a run or a sweep: on the cluster, where it is a job."""
    return f"cellray {'submit ' if submission_id() else ''}{verb} --resume {run_id}"


def submission_id() -> str | None:
    """Give the id of the Ray job that this process is the driver of, if any."""
    given = os.environ.get("RAY_JOB_SUBMISSION_ID")
    config = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR")  # what Ray gives a job's driver
    if given or not config:
        return given
    found: str | None = json.loads(config).get("metadata", {}).get("job_submission_id")
    return found
