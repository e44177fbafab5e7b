"""The one error that a user can cause, and the words to mend it."""

from collections.abc import Iterable
from difflib import get_close_matches


class CellrayError(Exception):
    """Something the user gave cannot be used; the message says what and how to mend it.

    The command line prints it as one line and exits with status 2; no traceback is shown, since
    the cause is the input and not the code.

    Parameters
    ----------
    what
        What is wrong, naming the file, column, key or value.
    mend
        What to do about it, as an instruction.
    """

    def __init__(self, what: str, mend: str) -> None:
        self.what = " ".join(what.split())
        self.mend = " ".join(mend.split())
        super().__init__(self.what, self.mend)

    def __str__(self) -> str:
        return f"{self.what}; {self.mend}"


def suggest(name: str, known: Iterable[str], *, limit: int = 12) -> str:
    """Name the nearest known word, or list the known ones.

    Parameters
    ----------
    name
        What was given.
    known
        What exists.
    limit
        How many names to list at most.
    """
    words = sorted(set(known))
    near = get_close_matches(name, words, n=1, cutoff=0.6)
    if near:
        return f"did you mean '{near[0]}'?"
    if not words:
        return "there are none"
    more = f" and {len(words) - limit} more" if len(words) > limit else ""
    return f"choose from: {', '.join(words[:limit])}{more}"
