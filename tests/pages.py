"""The fenced blocks of the documentation: what they are, and running them as a reader would."""

import itertools
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(
    r"^(?:<!-- *(?P<how>not run|run): *(?P<what>[^>]*?) *-->\n+)?"
    r"(?P<fence>```+)(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes
    ----------
    language
        The word behind the fence; empty for commands.
    how, what
        ``run`` and the group that it belongs to, ``not run`` and the reason, or None and "".
    line
        Where it begins.
    """

    language: str
    text: str
    how: str | None
    what: str
    line: int


def blocks(page):
    """Give the fenced blocks of a page, but for Sphinx's directives."""
    source = page.read_text()
    found = [
        Block(
            one["language"].strip(),
            one["text"],
            one["how"],
            one["what"] or "",
            source.count("\n", 0, one.start("fence")) + 1,
        )
        for one in BLOCK.finditer(source)
    ]
    return [block for block in found if not block.language.startswith("{")]


def commands(text):
    """Take apart a block of commands: a list of words for each line that is none of comments."""
    joined = text.replace("\\\n", " ")
    return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


def verb_of(words):
    """Give the words behind ``cellray`` where a line runs a verb: itself, in a shell, as a job."""
    if words[0] == "eval":
        words = shlex.split(words[1].removeprefix("$(").removesuffix(")"))
    if words[0].rpartition("/")[2] == "cellray":
        return words[1:]
    for at, word in enumerate(words):
        if found := re.fullmatch(r"jobs/(\w+)\.py", word):
            return [found[1], *words[at + 1 :]]
    return None


def run_page(page, test, folder, env=MappingProxyType({})):
    """Run the blocks of a page that a test runs, in order.

    Parameters
    ----------
    page
        The page.
    test
        The test's file from the root of the repository, as the page names it.
    folder
        Where they run.
    env
        Variables that they have beside this process's.

    Returns
    -------
    list of str
        What each run has said on stdout.
    """
    mine = [block for block in blocks(page) if (block.how, block.what) == ("run", test)]
    assert mine, f"{page.name} has no block that {test} runs"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    hidden = {"MLFLOW_TRACKING_URI", "RAY_ADDRESS"}
    given = {name: value for name, value in os.environ.items() if name not in hidden}
    said = []
    # Blocks of Python that follow on each other are one program; each block of commands is one.
    for (language, _), together in itertools.groupby(
        mine, key=lambda block: (block.language, block.language != "python" and block.line)
    ):
        text = "\n".join(block.text for block in together).replace(".venv/bin/", "")
        shell = ["bash", "-euo", "pipefail", "-c"]
        done = subprocess.run(
            [*([sys.executable, "-c"] if language == "python" else shell), text],
            cwd=folder,
            env=given | {"PATH": path, "MPLBACKEND": "agg"} | env,
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        said.append(done.stdout)
    return said
