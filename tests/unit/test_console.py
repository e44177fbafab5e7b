"""What goes to stdout and what to stderr."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

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
        to.progress("train", 0, 0)
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "read 0/1,000 0%"
    assert re.fullmatch(r"read 1,000/1,000 100% [\d,]+ cells/s", lines[1])
    assert len(lines) == 3


SHOW = """
import time
from cellray.console import console
with console(as_json=True) as to:
    for done in (0, 50, 100):
        to.progress("read", done, 100)
        time.sleep(0.2)
    to.answer(1, "1")
"""


def on_a_terminal(**env):
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", SHOW],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", **env},
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
    assert child.returncode == 0
    assert out == b"1\n"
    return shown.decode()


COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9][0-9;]*m")


def test_progress_on_a_terminal_is_a_bar():
    shown = on_a_terminal()
    assert "100/100" in shown
    assert "cells/s" in shown
    assert COLOUR.search(shown)


def test_no_color_is_respected():
    shown = on_a_terminal(NO_COLOR="1")
    assert "100/100" in shown
    assert not COLOUR.search(shown)


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
