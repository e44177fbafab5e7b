"""Optuna's CMA-ES, which keeps its state as a pickle in the study, read as data alone."""

from pickle import UnpicklingError
from typing import Any

import numpy as np
from cmaes import CMA
from optuna.samplers import CmaEsSampler
from optuna.trial import FrozenTrial

from cellray.core.errors import CellrayError
from cellray.core.unpickle import unpickle

MEND = "find out who may write to the study, and begin another sweep"


def _number(name: str, align: bool = False, copy: bool = True) -> np.dtype[Any]:  # noqa: FBT001, FBT002 - as NumPy's
    """Give a dtype of numbers; others could take bytes for addresses of objects."""
    del align, copy
    kind = np.dtype(name)
    if kind.kind not in "biuf":
        msg = f"{name} are no numbers"
        raise TypeError(msg)
    return kind


_CORE = "numpy._core.multiarray"
NAMED = {
    (CMA.__module__, CMA.__name__): CMA,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _number,
    (_CORE, "_reconstruct"): np._core.multiarray._reconstruct,
    (_CORE, "scalar"): np._core.multiarray.scalar,
}
"""What a state may look up: what Optuna writes there."""


class PlainCmaEsSampler(CmaEsSampler):
    """CMA-ES that goes on from a study which others may have written to."""

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> CMA | None:
        """Read the newest state; Optuna unpickles it as it comes.

        Raises
        ------
        CellrayError
            It asks for more than Optuna puts there, or is no state.
        """
        for trial in reversed(completed_trials):
            kept = {
                key: value
                for key, value in trial.system_attrs.items()
                if key.startswith(self._attr_key_optimizer)
            }
            if kept:
                return _state(self._concat_optimizer_attrs(kept), trial.number)
        return None


def _state(text: str, trial: int) -> CMA:
    what = f"the state of CMA-ES in the study's trial {trial}"
    try:
        found = unpickle(bytes.fromhex(text), NAMED, what=what, mend=MEND)
    except (ValueError, EOFError, UnpicklingError) as error:
        raise CellrayError(f"{what} is damaged", MEND) from error
    if not isinstance(found, CMA):
        raise CellrayError(f"{what} is none", MEND)
    return found
