"""Keeping passwords out of what is shown."""

import re

HIDDEN = "***@"
CREDENTIALS = re.compile(
    r"//(?:[^\s/:@]*:(?!\d+[/?#])\S*"  # a password may hold / and @, but no host:port/ is one
    r"|[^\s/?#]*)@"
)


def scrub(text: str) -> str:
    """Replace what stands for a user and a password in every URI of a text by ``***``.

    A URI that lacks its colon, as in ``postgresql//user:password@host``, is no less secret.
    """
    return CREDENTIALS.sub(f"//{HIDDEN}", text)


def first_line(error: BaseException) -> str:
    """Give the first line of what an error says, else its kind, without passwords."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return scrub(line)[:200]  # scrubbed first: a cut may take the @ by which it knows a password
