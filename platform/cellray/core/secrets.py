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


WRAPPED = (
    (re.compile(r"<urlopen error (.*?)>"), r"\1"),
    (
        re.compile(
            r"HTTPS?ConnectionPool\(host='(.*?)', port=(\d+)\): .*NewConnectionError\("
            r".*\[Errno -?\d+\] ([\w ]+).*"
        ),
        r"cannot connect to \1:\2: \3",
    ),
    (re.compile(r"([\w.]+\.)?Client\w*Error: "), ""),
    (re.compile(r"Cannot connect to host (\S+) ssl:\S+ \[.*\]"), r"cannot connect to \1"),
    (re.compile(r"\[Errno -?\d+\] "), ""),
)
"""What libraries put around the words of a lost connection: patterns, and what stays."""


def first_line(error: BaseException) -> str:
    """Give the first line of what an error says, else its kind, without passwords."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    # Scrubbed first: a cut may take the @ by which it knows a password.
    return in_words(scrub(line))[:200]


def in_words(line: str) -> str:
    """Take off what libraries put around the words of a lost connection."""
    for pattern, words in WRAPPED:
        line = pattern.sub(words, line)
    return line
