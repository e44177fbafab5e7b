"""``python -m cellray`` is ``cellray``."""

import sys

from cellray.cli import main

if __name__ == "__main__":
    sys.exit(main())
