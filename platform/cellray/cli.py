"""The ``cellray`` command: its verbs put together, and what becomes of errors."""

import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from functools import partial
from sys import stdlib_module_names
from typing import Annotated

import typer

from cellray import __version__
from cellray.cli_atlas import atlas_verbs
from cellray.cli_cluster import cluster
from cellray.cli_embed import embedding
from cellray.cli_evaluate import evaluating
from cellray.cli_jobs import jobs
from cellray.cli_models import models
from cellray.cli_pipeline import piping
from cellray.cli_serve import serve_verbs
from cellray.cli_submit import submitting
from cellray.cli_train import train_verbs
from cellray.cli_verbs import verbs
from cellray.completion import whole_words
from cellray.console import dump, lost_reader
from cellray.core import logs
from cellray.core.errors import CellrayError
from cellray.core.versions import check_version

INTERRUPTED = 130
TERMINATED = 143
UNREAD = 141
"""Exit status where stdout has lost its reader, as `head` ends: what a shell says of SIGPIPE."""
WRAPPINGS = ("cause", "controller_failure", "_base_exc")
"""Where Ray's errors keep what a task, a train controller and a train worker raised."""

_terminated: list[int] = []

app = typer.Typer(
    name="cellray",
    help="Self-supervised learning on single-cell atlases, on Ray.\n\n"
    "MLFLOW_TRACKING_URI and RAY_ADDRESS say where runs, models and workers are. Without them "
    "runs and models are kept under .cellray/ in the working folder, and Ray runs in this process.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(train_verbs)
app.add_typer(evaluating)
app.add_typer(embedding)
app.add_typer(serve_verbs)
app.add_typer(piping)
app.add_typer(verbs)
app.add_typer(atlas_verbs)
app.add_typer(models, name="models")
app.add_typer(submitting)
app.add_typer(jobs, name="jobs")
app.add_typer(cluster, name="cluster")


def _show_version(*, wanted: bool) -> None:
    if wanted:
        print(f"cellray {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            is_eager=True,
            callback=lambda wanted: _show_version(wanted=wanted),
            help="Print the version and exit.",
        ),
    ] = False,
) -> None:
    del version


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Returns
    -------
    int
        0; 1 for a bug or a demo that fails; 2 for what the user can mend, said in one line; 130
        for Ctrl-C, 141 where nobody reads on, 143 for SIGTERM.
    """
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv) or ["--help"])
        sys.stdout.flush()
    except BrokenPipeError as error:  # of a network's connections, too
        return UNREAD if lost_reader() else _bug(error)
    return code


def _run(arguments: list[str]) -> int:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    run = partial(app, arguments, prog_name="cellray", standalone_mode=False)
    try:
        logs.set_up()
        check_version()
        code = whole_words(run) if os.environ.get("_CELLRAY_COMPLETE") == "complete_bash" else run()
    except typer.TyperException as error:
        return _refuse(*usage(error), as_json="--json" in arguments)
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # typer has made this of it
            raise error.__context__ from None
        raise
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 - the outermost place: bugs show their traceback
        cause = user_error(error)
        if cause is None and interrupted(error):
            return _interrupted()
        if cause is None:
            return _bug(error)
        return _refuse(cause.what, cause.mend, as_json="--json" in arguments)
    if code == INTERRUPTED:
        return _interrupted()
    return code if isinstance(code, int) else 0


def _bug(error: Exception) -> int:
    logs.say("".join(traceback.format_exception(error)).rstrip(), level=logging.ERROR)
    return 1


def _terminate(*_: object) -> None:
    """End as Ctrl-C does, for `ray job stop` and `kill`: what was begun is put away."""
    _terminated.append(TERMINATED)
    # A shell has what it puts in the background ignore SIGINT.
    if signal.getsignal(signal.SIGINT) in {signal.default_int_handler, signal.SIG_IGN}:
        sys.exit(TERMINATED)
    signal.raise_signal(signal.SIGINT)  # while it trains, Ray ends its workers by a way of its own


def _interrupted() -> int:
    logs.say("terminated" if _terminated else "interrupted", level=logging.WARNING)
    return TERMINATED if _terminated else INTERRUPTED


def interrupted(error: BaseException) -> bool:
    """Say whether Ctrl-C is at the root of an error: Ray Train wraps it in its own."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, KeyboardInterrupt) or type(found).__name__ == "KeyboardInterrupt":
            return True
        found = found.__cause__ or found.__context__
    return False


def user_error(error: BaseException) -> CellrayError | None:
    """Find the user's error in what was raised, inside Ray's wrappings too."""
    queue: list[object] = [error]
    seen: set[int] = set()
    while queue:
        found = queue.pop(0)
        if not isinstance(found, BaseException) or id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, CellrayError):
            return found
        if isinstance(found, PermissionError) and found.filename:
            return CellrayError(
                f"{found.filename} may not be read or written", "check its permissions"
            )
        if isinstance(found, ModuleNotFoundError) and _is_package(found.name):
            return CellrayError(
                f"the module {found.name} is not installed where this ran",
                "install its package there: for a job by 'cellray submit --pip PACKAGE', or in the "
                "cluster's image",
            )
        queue += [found.__cause__, *(getattr(found, name, None) for name in WRAPPINGS)]
        queue += getattr(found, "worker_failures", {}).values()
    return None


def _is_package(name: str | None) -> bool:
    """Say whether a name is a package of others: what lacks in a package that is there is a bug."""
    return bool(name) and "." not in str(name) and name not in {"cellray", *stdlib_module_names}


def usage(error: typer.TyperException) -> tuple[str, str]:
    """Say what is wrong with a command line, and where its help is."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "cellray"
    return error.format_message().rstrip("."), f"see '{path} --help'"


def _refuse(what: str, mend: str, *, as_json: bool) -> int:
    logs.say(f"error: {what}; {mend}", level=logging.ERROR)
    if as_json:
        print(dump({"error": what, "mend": mend}))
    return 2
