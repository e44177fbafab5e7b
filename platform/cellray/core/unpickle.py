"""Reading pickles that somebody else may have written: they reach what the reader names, no more.

A pickle is a program, which looks up classes and functions by name and calls them. Its power is in
the names, so a reader that hands out a few harmless things takes it away.
"""

import io
import pickle
from collections.abc import Mapping
from typing import Any

from cellray.core.errors import CellrayError

Allowed = Mapping[tuple[str, str], Any]
"""What a pickle may look up: module and name, and what it is given for them."""


def unpickle(content: bytes, allowed: Allowed, *, what: str, mend: str) -> Any:  # noqa: ANN401
    """Read a pickle that may look up nothing but what is allowed.

    Parameters
    ----------
    content
        The pickle.
    allowed
        What it may look up. Nothing in it may run code that its arguments choose.
    what, mend
        Name the pickle, and say what to do about one that was tampered with.

    Raises
    ------
    CellrayError
        It asks for something else, or is a pickle of another making.
    EOFError, pickle.UnpicklingError
        It was not written to its end, or is no pickle at all.
    """
    try:
        return _Unpickler(content, allowed).load()
    except _ForbiddenError as error:
        raise CellrayError(
            f"{what} was tampered with: it asks for {error}, which cellray never writes there",
            mend,
        ) from None
    except (EOFError, pickle.UnpicklingError):
        raise
    except Exception as error:  # a pickle can raise anything
        raise CellrayError(
            f"{what} is not what cellray wrote ({type(error).__name__}: {error})", mend
        ) from error


class _ForbiddenError(Exception):
    """Names what a pickle may not look up."""


class _Unpickler(pickle.Unpickler):
    def __init__(self, content: bytes, allowed: Allowed) -> None:
        super().__init__(io.BytesIO(content))
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - as pickle's
        """Give what was allowed; nothing is imported."""
        try:
            return self._allowed[module, name]
        except KeyError:
            raise _ForbiddenError(f"{module}.{name}") from None
