"""How much memory a training step holds at once, as a function of its batch.

The passes are run on 2, 4 and 8 cells and every tensor that appears is noted with its size and its
lifetime. Which tensors there are does not depend on the number of cells, so each has a size for any
batch, and playing their lives back at those sizes gives the peak of a batch that never was.
"""

import copy
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, UntypedStorage, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cellray.learn.cost import run_step
from cellray.learn.learner import Learner

TRACED_CELLS = (2, 4, 8)
SQUARE = 3.0
"""What grows by more at each doubling of the batch grows with its square: by 4, and never by 2."""


@dataclass(frozen=True, eq=False)
class StepMemory:
    """The tensors of a training step, without parameters, buffers and gradients.

    Attributes
    ----------
    fixed, linear, square
        A tensor's bytes are ``fixed + linear * cells + square * cells**2``, each shape
        (n_tensors,), float64.
    events
        Numbers of the tensors in the order in which they come, and ``~number`` where one goes.
    """

    fixed: NDArray[np.float64]
    linear: NDArray[np.float64]
    square: NDArray[np.float64]
    events: NDArray[np.int64]

    def peak(self, cells: int, world: int = 1) -> int:
        """Give the most bytes that are held at once.

        Parameters
        ----------
        cells
            Of a pass, on one rank.
        world
            Ranks, whose cells each of them compares its own with.
        """
        sizes = self.fixed + self.linear * cells + self.square * (cells * cells * world)
        signed = np.where(self.events >= 0, sizes[self.events], -sizes[~self.events])
        return int(signed.cumsum().max(initial=0))


def step_memory(
    learner: Learner,
    *,
    expressed: int,
    dtype: torch.dtype | None = None,
    dense: bool = True,
    change: Callable[[nn.Module], object] | None = None,
) -> StepMemory:
    """Trace the forward and the backward pass of a learner, which is left as it was.

    What the optimiser's step and a compiler do is not seen, nor what kernels hold inside.

    Parameters
    ----------
    learner
        What is trained; neither sharded nor compiled.
    expressed, dtype, dense
        As for `cellray.learn.cost.run_step`.
    change
        Called with each block of a copy of the encoder before it is traced.

    Raises
    ------
    RuntimeError
        The number of tensors depends on the number of cells.
    """
    traces = []
    for n_cells in TRACED_CELLS:
        changed = copy.deepcopy(learner).cpu().train()
        for block in changed.encoder.blocks if change is not None else ():
            change(block)  # type: ignore[misc] # it is not None here
        traces.append(_trace(changed, n_cells, expressed, dtype, dense=dense))
    if len({len(trace.sizes) for trace in traces}) > 1:
        msg = f"{[len(trace.sizes) for trace in traces]} tensors in batches of {TRACED_CELLS}"
        raise RuntimeError(msg)
    _, one, two, four = (0, *(np.array(trace.sizes, np.float64) for trace in traces))
    grows = (two > SQUARE * one) & (four > SQUARE * two) & (one > 0)
    few, many = TRACED_CELLS[1:]
    square = np.where(grows, four / many**2, 0.0)
    linear = np.where(grows, 0.0, (four - two) / (many - few))
    fixed = np.where(grows, 0.0, two - linear * few)
    return StepMemory(fixed, linear, square, np.array(traces[-1].events, np.int64))


def _trace(
    learner: Learner, n_cells: int, expressed: int, dtype: torch.dtype | None, *, dense: bool
) -> "_Trace":
    held = [t.untyped_storage() for t in (*learner.parameters(), *learner.buffers())]
    trace = _Trace(held)
    with trace:
        run_step(learner, n_cells, expressed, dtype=dtype, dense=dense)
        trace.leave_out(
            p.grad.untyped_storage() for p in learner.parameters() if p.grad is not None
        )
    return trace


class _Trace(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch does not annotate it
    """Notes when the storages of tensors come and go.

    Attributes
    ----------
    sizes
        Bytes of each storage, in the order in which they came; 0 for those left out.
    events
        As of `StepMemory`.
    """

    def __init__(self, held: list[UntypedStorage]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: list[int] = []
        self.events: list[int] = []
        self._number: dict[int, int] = {}
        self._ends: list[Any] = []
        for storage in held:
            self._number[storage._cdata] = -1
        self._held = held

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - torch's signature
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        found = func(*args, **(kwargs or {}))
        # Arguments too: what is made of NumPy's arrays comes past no operator.
        for leaf in tree_leaves((args, kwargs, found)):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage())
        return found

    def leave_out(self, storages: Any) -> None:  # noqa: ANN401 - an iterable
        for storage in storages:
            number = self._number.get(storage._cdata, -1)
            if number >= 0:
                self.sizes[number] = 0

    def _note(self, storage: UntypedStorage) -> None:
        key = storage._cdata
        if key in self._number:
            return
        number = self._number[key] = len(self.sizes)
        self.sizes.append(storage.nbytes())
        self.events.append(number)
        self._ends.append(weakref.finalize(storage, self._end, key, number))

    def _end(self, key: int, number: int) -> None:
        del self._number[key]
        self.events.append(~number)
