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
