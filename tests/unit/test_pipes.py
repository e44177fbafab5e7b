"""What becomes of a command whose reader goes, as `head` does; the pipes are real ones."""

import os
import subprocess
import sys

import pytest

LARGE = """
import sys
from cellray.cli import app, main
from cellray.console import console

@app.command()
def large():
    with console(as_json=False) as to:
        to.answer({}, "a line" * 100_000)

@app.command()
def stream():
    with console(as_json=False) as to:
        while True:
            to.text("a line")

@app.command()
def network():
    raise BrokenPipeError(32, "the server has closed the connection")

sys.exit(main(sys.argv[1:]))
"""


def unread(command, folder, *, stderr=subprocess.PIPE):
    """Run a command whose stdout nobody reads; its status, and what it has said on stderr."""
    ours, theirs = os.pipe()
    os.close(ours)
    try:
        stderr = theirs if stderr is subprocess.STDOUT else stderr
        done = subprocess.run(
            command, stdout=theirs, stderr=stderr, cwd=folder, text=True, timeout=120
        )
    finally:
        os.close(theirs)
    return done.returncode, done.stderr


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["large"], ["stream"]], ids="".join)
def test_a_reader_that_goes_ends_a_command_quietly(words, tmp_path):
    assert unread([sys.executable, "-c", LARGE, *words], tmp_path) == (141, "")


def test_an_error_that_nobody_reads_on_stdout_is_said_once(tmp_path):
    code, err = unread([sys.executable, "-m", "cellray", "jobs", "nosuch", "--json"], tmp_path)
    assert code == 141
    assert err == "error: No such command 'nosuch'; see 'cellray jobs --help'\n"


def test_stderr_may_be_unread_too(tmp_path):
    command = [sys.executable, "-m", "cellray", "jobs", "nosuch"]
    assert unread(command, tmp_path, stderr=subprocess.STDOUT) == (141, None)


def test_a_connection_that_breaks_is_no_reader_that_goes(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LARGE, "network"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.endswith(
        "BrokenPipeError: [Errno 32] the server has closed the connection\n"
    )
