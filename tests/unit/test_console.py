"""What goes to stdout and what to stderr."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cellray.answers import facts, size, table
from cellray.console import console, dump
from cellray.core.types import Span


def test_stdout_holds_the_answer_alone(capfd):
    with console(as_json=True) as to:
        print("printed by a library")
        os.write(1, b"written by native code\n")
        subprocess.run(["echo", "said by a child"], check=True)
        to.say("said to the user")
        to.answer({"a": 1}, "for people")
    print("afterwards")
    out, err = capfd.readouterr()
    answer, after = out.rsplit("afterwards", 1)
    assert json.loads(answer) == {"a": 1}
    assert after == "\n"
    for words in ("printed by", "written by", "said by a child", "said to the user"):
        assert words in err


def test_people_get_the_text(capfd):
    with console(as_json=False) as to:
        to.answer({"a": 1}, "for people")
    assert capfd.readouterr().out == "for people\n"


def test_stdout_comes_back_after_an_error(capfd):
    try:
        with console(as_json=True):
            raise ValueError
    except ValueError:
        os.write(1, b"back\n")
    assert capfd.readouterr().out == "back\n"


def test_documents_are_strict_json():
    document = {
        "nan": float("nan"),
        "infinite": np.float32(np.inf),
        "integer": np.int64(3),
        "array": np.arange(2),
        "path": Path("a"),
        "tuple": (1, "ü"),
        "record": Span(1, 2),
        3: None,
    }
    read = json.loads(dump(document), parse_constant=lambda name: 1 / 0)
    assert read == {
        "nan": None,
        "infinite": None,
        "integer": 3,
        "array": [0, 1],
        "path": "a",
        "tuple": [1, "ü"],
        "record": {"start": 1, "stop": 2},
        "3": None,
    }


def test_progress_without_a_terminal_is_plain_lines(capfd):
    with console(as_json=True) as to:
        for done in range(0, 1001, 10):
            to.progress("read", done, 1000)
        to.progress("train", 5, 10, {"epoch": 1, "epochs": 2, "train_loss": 0.5})
        to.progress("train", 6, 10, {"epoch": 2, "train_loss": 0.4})
        to.progress("train", 10, 10, {"train_loss": 0.3})
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "read 0/1,000 0%"
    assert re.fullmatch(r"read 1,000/1,000 100% · [\d,]+ cells/s · took 0 s", lines[1])
    assert lines[2] == "train 5/10 steps · epoch 1/2 · loss 0.5"
    assert lines[3].startswith("train 10/10 steps · epoch 2/2 · loss 0.3 · ")
    assert len(lines) == 4


def test_lines_come_now_and_then(capfd, monkeypatch):
    now = 0.0
    monkeypatch.setattr("cellray.console.time", SimpleNamespace(monotonic=lambda: now))
    with console(as_json=True) as to:
        for second in range(60):
            now = float(second)
            to.progress("train", second, 100, {"train_loss": 1 / (1 + second)})
    lines = capfd.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == [f"{second}/100" for second in range(0, 60, 5)]
    assert lines[-1] == "train 55/100 steps · loss 0.01786 · 1 steps/s · ETA 45 s"


def test_what_is_said_parts_the_stages(capfd, monkeypatch):
    now = 0.0
    monkeypatch.setattr("cellray.console.time", SimpleNamespace(monotonic=lambda: now))
    with console(as_json=True) as to:
        for model in ("first", "second"):
            to.say(model)
            to.progress("embed", 1, 2)
            now += 4
            to.progress("embed", 2, 2)
    assert capfd.readouterr().err.splitlines() == [
        "first",
        "embed 1/2 50%",
        "embed 2/2 100% · 0.25 cells/s · took 4 s",
        "second",
        "embed 1/2 50%",
        "embed 2/2 100% · 0.25 cells/s · took 4 s",
    ]


SHOW = """
import sys, time
from cellray.console import console
with console(as_json=True) as to:
    to.say("first we read")
    for done in (0, 50, 100):
        to.progress("read", done, 100)
        time.sleep(0.1)
    to.say("then we train")
    for step in range(21):
        facts = {"epoch": 1 + step // 7, "epochs": 3, "train_loss": 1 / (1 + step)}
        facts |= {"cells_per_s": 10300, "feed_wait_share": 0.04}
        to.progress("train", step, 20, facts | ({"validation_loss": 0.6} if step > 7 else {}))
        time.sleep(0.05)
        if step == 10:
            print("printed by a library")
            print("warned by a library", file=sys.stderr)
    ENDING
    to.answer(1, "1")
"""


QUIET = """
import time
from cellray.console import console
with console(as_json=True) as to:
    time.sleep(4)
    FIRST
    to.answer(1, "1")
"""


def on_a_terminal(ending="", code=0, *, script=SHOW, columns=100, stdout=subprocess.PIPE, **env):
    """Run a script on a terminal, and give what came to the terminal; stdout is checked."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    settings = ("COLUMNS", "LINES", "CI", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE")
    clean = {name: value for name, value in os.environ.items() if name not in settings}
    child = subprocess.Popen(
        [sys.executable, "-c", script.replace("ENDING", ending)],
        stdin=theirs,
        stdout=theirs if stdout is None else stdout,
        stderr=theirs,
        env={**clean, "TERM": "xterm-256color", **env},
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:  # how Linux says that the other end is closed
        pass
    finally:
        os.close(ours)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == code, shown.decode()
    assert stdout is None or out == (b"1\n" if not code else b"")
    return shown.decode()


CONTROL = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|([^\x1b])")
COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9][0-9;]*m")


def screen(shown, columns):
    """Give the rows that a terminal shows in the end; only what rich uses is understood."""
    rows, row, column = [[]], 0, 0
    assert "".join(found[0] for found in CONTROL.finditer(shown)) == shown
    for argument, command, sign in CONTROL.findall(shown):
        if command == "A":
            row -= int(argument or 1)
            assert row >= 0
        elif command == "K":
            assert argument == "2"
            rows[row].clear()
        elif command:
            assert command in "hlm"
        elif sign == "\r":
            column = 0
        elif sign == "\n":
            row += 1
        else:
            assert column < columns, "a row wraps"
            rows[row] += " " * (column + 1 - len(rows[row]))
            rows[row][column] = sign
            column += 1
        rows += [[] for _ in range(row + 1 - len(rows))]
    return ["".join(signs).rstrip() for signs in rows]


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_progress_on_a_terminal_is_one_tidy_block(columns):
    shown = on_a_terminal(columns=columns, stdout=None)
    assert COLOUR.search(shown)
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 2
    rows = screen(shown, columns)
    known = [" ".join(re.sub("[━╸╺▁▂▃▄▅▆▇█]+", "", row).split()) for row in rows]
    rate = r" [\d,.]+ cells/s" if columns >= 80 else ""
    expected = [
        "first we read",
        rf"read 100/100{rate} took 0:0\d",
        "then we train",
        "printed by a library",
        "warned by a library",
        "train 100%",
        "epoch 3/3 step 20/20",
        r"loss 0\.04762 validation 0\.6, best 0\.6",
        "speed 10,300 cells/s feed wait 4%",
        r"elapsed 0:0\d ETA 0:00",
        "1",
        "",
    ]
    assert len(known) == len(expected), rows
    for row, pattern in zip(known, expected, strict=True):
        assert re.fullmatch(pattern, row), rows


def test_stdout_on_a_pipe_gets_the_answer_alone():
    assert "20/20" in on_a_terminal()  # and checks what came to stdout


@pytest.mark.parametrize(
    ("first", "left"),
    [
        ("", []),
        ("to.note('told')", ["told"]),
        ("to.progress('read', 100, 100)", ["read 100/100 took 0:00"]),
    ],
    ids=["answer", "note", "progress"],
)
def test_a_command_that_says_nothing_for_long_is_seen_to_run_and_leaves_no_trace(first, left):
    shown = on_a_terminal(script=QUIET.replace("FIRST", first), stdout=None)
    assert "still running" in shown
    rows = [re.sub("[━╸╺]+", "", row) for row in screen(shown, 100)]
    assert [" ".join(row.split()) for row in rows if row.strip()] == [*left, "1"]
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h")


@pytest.mark.parametrize(("word", "again"), [("note", True), ("text", False)])
def test_what_is_told_early_hides_only_for_a_while_that_a_command_runs(word, again):
    """A note says that work goes on; a log on stdout has a cursor of its own."""
    waits = f"to.{word}('told\\n')\n    time.sleep(4)"
    script = QUIET.replace("time.sleep(4)", waits).replace("FIRST", "")
    shown = on_a_terminal(script=script, stdout=None)
    assert ("still running" in shown.partition("told")[2]) == again
    rows = [row.strip() for row in screen(shown, 100)]
    assert [row for row in rows if row] == ["told", "1"]


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"CI": "true"}], ids=["dumb", "CI"])
def test_a_log_is_not_told_that_a_command_runs(env):
    assert on_a_terminal(script=QUIET.replace("FIRST", ""), **env) == ""


def test_no_color_is_respected():
    shown = on_a_terminal(NO_COLOR="1")
    assert "20/20" in shown
    assert not COLOUR.search(shown)


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"CI": "true"}], ids=["dumb", "CI"])
def test_where_no_cursor_moves_lines_are_plain(env):
    shown = on_a_terminal(**env)
    assert "\x1b" not in shown
    assert "train 20/20 steps · epoch 3/3 · loss 0.04762 · validation 0.6, best 0.6" in shown


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("raise ValueError", 1),
        ("import os; os.kill(os.getpid(), 2); time.sleep(9)", -signal.SIGINT),
        ("sys.exit(143)", 143),
    ],
    ids=["an exception", "Ctrl-C", "kill"],
)
def test_the_cursor_comes_back(ending, code):
    shown = on_a_terminal(ending, code)
    assert shown.count("\x1b[?25l") == 2
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
    assert shown.rindex("ETA") < shown.rindex("\x1b[?25h")
    if code != 143:
        assert shown.rindex("Traceback") > shown.rindex("\x1b[?25h")


def test_tables_align():
    text = table(["name", "cells"], [["a", 1200], ["longer", 7]])
    assert text == "name    cells\na       1,200\nlonger      7"
    assert facts({"a": 1, "longer": 0.123456789}) == "a       1\nlonger  0.123457"


def test_sizes_have_units():
    assert [size(n) for n in (0, 999, 1000, 1_234_567, 3 * 10**15)] == [
        "0 B",
        "999 B",
        "1 kB",
        "1.23 MB",
        "3,000 TB",
    ]
